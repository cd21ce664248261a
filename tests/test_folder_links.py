"""Links in a member's folder stay in it, or lead to the blobs of a hub cache."""

import os
from pathlib import Path

import pytest

from fuse.checkpoint import locate
from fuse.errors import CheckpointError
from fuse.folder_links import check_links


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "member"
    (made / "qformer_tokenizer").mkdir(parents=True)
    (tmp_path / "secret.json").write_text("{}")
    (made / "config.json").write_text("{}")
    return made


NAMES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.txt", "tokenizer.model",
         "generation_config.json", "model.safetensors", "qformer_tokenizer/vocab.txt")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["absolute", "relative"])
def test_a_link_out_is_refused(folder: Path, name: str, how: str) -> None:
    secret = folder.parent / "secret.json"
    target = secret if how == "absolute" else Path(os.path.relpath(secret, (folder / name).parent))
    (folder / name).symlink_to(target)
    with pytest.raises(CheckpointError) as error:
        locate(str(folder), None, folder, "")
    assert str(error.value) == f"{folder / name}: is a link out of the folder, to {secret}"


def test_a_folder_in_it_that_leads_out(folder: Path) -> None:
    (folder / "qformer_tokenizer").rmdir()
    (folder / "qformer_tokenizer").symlink_to(folder.parent)
    with pytest.raises(CheckpointError, match=r"qformer_tokenizer: is a link out of the folder, to "):
        check_links(folder)


def test_links_that_stay(folder: Path) -> None:
    (folder / "vocab.json").symlink_to("config.json")
    (folder / "qformer_tokenizer" / "vocab.txt").symlink_to("../config.json")
    (folder / "README.md").symlink_to("../secret.json")  # only looked through for a licence
    (folder / "logs").symlink_to("..")  # never read
    check_links(folder)
    through = folder.parent / "link"
    through.symlink_to(folder)
    check_links(through)


def test_the_hubs_cache(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--o--n" / "snapshots" / "0123", tmp_path / "models--o--n" / "blobs"
    (snapshot / "qformer_tokenizer").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "qformer_tokenizer" / "vocab.txt").symlink_to("../../../blobs/abc")
    check_links(snapshot)
    (tmp_path / "models--o--n" / "refs").write_text("x")
    (snapshot / "vocab.json").symlink_to("../../refs")
    with pytest.raises(CheckpointError, match="is a link out of the folder"):
        check_links(snapshot)
