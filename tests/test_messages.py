"""Pictures in conversations: local files under any key, nothing from the web."""

import base64
import io
from pathlib import Path

import pytest

from fuse.errors import RecipeError
from fuse.model.messages import images_in, with_images
from fuse.model.processor import FusedProcessor
from tests import tiny_fused
from tests.test_fused_model import own, picture

WORDS = {"type": "text", "text": "w5 w6"}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> FusedProcessor:
    return tiny_fused.fused({"a": own("llava", 1)[0]}, "a", tmp_path_factory.mktemp("fused"))[1]


@pytest.mark.parametrize("key", ["image", "path", "url"])
@pytest.mark.parametrize("kind", [str, Path])
def test_local_files_under_any_key(ours: FusedProcessor, tmp_path: Path, key: str, kind: type) -> None:
    file = tmp_path / "https-photo.png"
    picture((60, 40)).save(file)
    turn = {"role": "user", "content": [{"type": "image", key: kind(file)}, WORDS]}
    batch = ours.apply_chat_template([turn], tokenize=True)
    direct = ours(images=[picture((60, 40))], text=["<image> w5 w6 "], add_special_tokens=False)
    assert batch["input_ids"].tolist() == direct["input_ids"].tolist()
    assert (batch["branches.a.pixel_values"][0] == direct["branches.a.pixel_values"][0]).all()


@pytest.mark.parametrize("key", ["image", "path", "url"])
@pytest.mark.parametrize("address", ["https://example.com/x.png", "HTTP://example.com/x.png"])
def test_addresses_of_the_web_are_refused(ours: FusedProcessor, key: str, address: str) -> None:
    turn = {"role": "user", "content": [{"type": "image", key: address}, WORDS]}
    with pytest.raises(RecipeError) as error:
        ours.apply_chat_template([turn], tokenize=True)
    assert str(error.value) == f"{address}: fuse fetches no images: download it first"


def test_pictures_in_order_and_parts_without_one() -> None:
    turns = [
        {"role": "user", "content": [{"type": "image", "path": "a.png"}, WORDS, {"type": "image"}]},
        {"role": "assistant", "content": "w5"},
        {"role": "user", "content": [{"type": "image", "url": Path("b.png")}]},
    ]
    assert images_in(turns) == ["a.png", Path("b.png")]


def test_the_address_form_of_an_image() -> None:
    turn = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "w"}],
    }
    assert images_in([turn]) == ["a.png"]
    assert [part["type"] for part in with_images([turn])[0]["content"]] == ["image", "text"]
    with pytest.raises(RecipeError, match="fuse fetches no images: download it first"):
        images_in([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]}])


def test_a_picture_that_its_address_brings_along(ours: FusedProcessor) -> None:
    file = io.BytesIO()
    picture((60, 40)).save(file, "png")
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}, WORDS]}
    batch = ours.apply_chat_template([turn], tokenize=True)
    direct = ours(images=[picture((60, 40))], text=["<image> w5 w6 "], add_special_tokens=False)
    assert batch["input_ids"].tolist() == direct["input_ids"].tolist()
    assert (batch["branches.a.pixel_values"][0] == direct["branches.a.pixel_values"][0]).all()


def test_parts_of_another_kind_are_not_lost() -> None:
    for part, told in (({"type": "audio"}, "'audio'"), ({}, "None"), ("words", "'words'")):
        with pytest.raises(RecipeError, match=f"a message has a part of type {told}"):
            images_in([{"role": "user", "content": [part]}])
    assert images_in([{"role": "assistant"}]) == []
