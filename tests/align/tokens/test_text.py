"""A text through several tokenizers: spans and ids by hand."""

from pathlib import Path

import pytest

from fuse.align.tokens.folder import open_speakers
from fuse.align.tokens.text import Encoded, encode, read_text
from fuse.errors import FuseError
from tests.token_folders import CORE, write

TEXT = "the cat sat on a mat"


def encoded(tmp_path: Path, text: str = TEXT, **other: object) -> list[Encoded]:
    write(tmp_path / "a")
    write(tmp_path / "b", **other)  # pyright: ignore
    return encode(open_speakers([str(tmp_path / "a"), str(tmp_path / "b")]), text)


def test_the_same_tokenizer(tmp_path: Path) -> None:
    assert encoded(tmp_path) == [Encoded(6, 0, 1.0, 1.0, None)] * 2


def test_two_tokens_at_other_ids(tmp_path: Path) -> None:
    swapped = ["<unk>", "<s>", "</s>", "the", "sat", "cat", *CORE[6:]]
    assert encoded(tmp_path, tokens=swapped)[1] == Encoded(6, 0, 4 / 6, 1.0, 4)


def test_letters_make_more_tokens(tmp_path: Path) -> None:
    """Words are cut at another place, so what follows is still the same by its letters."""
    split = {"type": "Sequence", "pretokenizers": [
        {"type": "WhitespaceSplit"}, {"type": "Split", "pattern": {"String": "c"}, "behavior": "Isolated", "invert": False},
    ]}  # fmt: skip
    found = encoded(tmp_path, tokenizer={"pre_tokenizer": split})[1]
    assert found == Encoded(7, 2, 5 / 6, 5 / 6, 4)  # "c" and "at" are both unknown


def test_a_text_that_goes_on(tmp_path: Path) -> None:
    cut = {"type": "Sequence", "pretokenizers": [
        {"type": "WhitespaceSplit"}, {"type": "Split", "pattern": {"String": "mat"}, "behavior": "Removed", "invert": False},
    ]}  # fmt: skip
    assert encoded(tmp_path, tokenizer={"pre_tokenizer": cut})[1] == Encoded(5, 0, 5 / 6, 5 / 6, 17)


def test_neither_padding_nor_truncation_nor_special_tokens_count(tmp_path: Path) -> None:
    changes = {
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<unk>"},
    }  # fmt: skip
    assert encoded(tmp_path, tokenizer=changes)[1] == Encoded(6, 0, 1.0, 1.0, None)


def test_a_tokenizer_that_the_library_does_not_read(tmp_path: Path) -> None:
    with pytest.raises(FuseError) as error:
        encoded(tmp_path, tokenizer={"pre_tokenizer": {"type": "Magic"}})
    assert str(error.value).startswith(f"{tmp_path}/b/tokenizer.json: not a tokenizer: ") and error.value.exit_code == 3


TEXTS = {
    "missing": (None, "the file is missing"),
    "empty": (b" \n", "the file holds no text"),
    "bytes": (b"ab\xff", "not UTF-8 at byte 2"),
    "long": (b"a" * ((4 << 20) + 1), "4,194,305 bytes is more than the 4,194,304 that fuse reads"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_bad_texts(tmp_path: Path, case: str) -> None:
    data, message = TEXTS[case]
    file = tmp_path / "text.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(FuseError) as error:
        read_text(file)
    assert str(error.value) == f"{file}: {message}" and error.value.exit_code == 2
