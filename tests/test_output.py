"""Where an output may be written: what --force replaces, and that no output lies in another one."""

import shutil
from pathlib import Path

import pytest

from tests.cli import Ran, fuse_here

ZOO = Path(__file__).parents[1] / "recipes" / "zoo"
RECIPE = f"base: {ZOO}/base\nmembers: {{hue: {ZOO}/hue, expert: {ZOO}/expert}}\nvision: [hue]\n" + (
    "language: {method: task_arithmetic, weights: {hue: 0.5, expert: 1}}\n"
)
KEPT = "which fuse did not write and --force would delete (move it out, or choose another folder)"


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("merged")
    (root / "recipe.yaml").write_text(RECIPE)
    (root / "fused.yaml").write_text(RECIPE + "output: {model: fuse}\n")
    for name, recipe in (("out", "recipe"), ("fused", "fused")):
        assert fuse_here("merge", root / f"{recipe}.yaml", root / name, "--no-sync").code == 0
    return root


@pytest.fixture
def room(merged: Path, tmp_path: Path) -> Path:
    return shutil.copytree(merged, tmp_path / "room")


def again(room: Path) -> Ran:
    return fuse_here("merge", room / "recipe.yaml", room / "out", "--force", "--quiet", "--no-sync")


@pytest.mark.parametrize(
    "name",
    [
        "NOTES.md",
        "lora/adapter_model.safetensors",
        "model-old.safetensors",
        ".git/config",
        ".cache/huggingface/x",
        ".env",
    ],
)
def test_what_fuse_did_not_write_is_not_replaced(room: Path, name: str) -> None:
    file = room / "out" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    assert again(room) == Ran(2, "", f"fuse: {room}/out: holds {name!r}, {KEPT}\n")
    assert file.read_text() == "mine" and not (room / ".out.partial").exists()


def test_a_link_to_a_folder_is_not_replaced(room: Path) -> None:
    (room / "more").mkdir()
    (room / "out" / "more").symlink_to("../more")
    assert again(room) == Ran(2, "", f"fuse: {room}/out: holds 'more', {KEPT}\n")


def test_what_fuse_wrote_is_replaced(room: Path) -> None:
    """With the card, which people and `fuse eval` add to, and what file managers and the hub put there."""
    (room / "out" / "README.md").write_text("# Mine\n")
    for name in (".DS_Store", ".gitattributes"):
        (room / "out" / name).write_text("")
    (room / "out" / "empty").mkdir()
    assert again(room).code == 0
    assert not any((room / "out" / name).exists() for name in (".DS_Store", ".gitattributes", "empty"))
    assert (room / "out" / "README.md").read_text() != "# Mine\n"


@pytest.mark.parametrize("form", ["portable", "native"])
def test_an_export_replaces_what_fuse_wrote_alone(room: Path, form: str) -> None:
    words = ("export", room / "fused", "--to", form, room / "out", "--force")
    (room / "out" / "NOTES.md").write_text("mine")
    assert fuse_here(*words) == Ran(2, "", f"fuse: {room}/out: holds 'NOTES.md', {KEPT}\n")
    (room / "out" / "NOTES.md").unlink()
    assert fuse_here(*words).code == 0
    assert fuse_here(*words).code == 0  # of its own, too


def test_what_an_unreadable_record_names_is_not_known(room: Path) -> None:
    (room / "out" / "fuse.json").write_text("{}")
    told = f"{room}/out/fuse.json: has no table sha256, so what fuse wrote there is not known"
    assert again(room) == Ran(2, "", f"fuse: {told} (choose another folder, or remove it yourself)\n")


@pytest.mark.parametrize("out", ["sub", "parts/sub"])
def test_no_output_lies_in_another(room: Path, out: str) -> None:
    (room / "out" / out).parent.mkdir(exist_ok=True)
    told = f"the output would lie in {str(room / 'out')!r}, which is an output of fuse (choose another folder)"
    (room / "mapper.pt").touch()
    before = sorted(room.rglob("*"))
    for words in (
        ("merge", room / "recipe.yaml"),
        ("export", room / "fused", "--to", "native"),
        ("import", "clipcap", room / "mapper.pt"),
    ):
        ran = fuse_here(*words, room / "out" / out)
        assert ran == Ran(2, "", f"fuse: {room}/out/{out}: {told}\n")
    assert sorted(room.rglob("*")) == before


def test_no_gguf_lies_in_another_output(room: Path) -> None:
    (out := room / "fused" / "out.gguf").touch()
    told = f"the output would lie in {str(room / 'fused')!r}, which is an output of fuse (choose another folder)"
    assert fuse_here("export", room / "out", "--to", "gguf", out, "--force") == Ran(2, "", f"fuse: {out}: {told}\n")


def test_no_output_lies_in_another_by_a_link(room: Path) -> None:
    (room / "link").symlink_to("out")
    ran = fuse_here("merge", room / "recipe.yaml", room / "link" / "sub")
    told = f"the output would lie in {str(room / 'out')!r}, which is an output of fuse (choose another folder)"
    assert ran == Ran(2, "", f"fuse: {room}/link/sub: {told}\n")
