"""Pictures and processors: bombs, broken files, what is no picture; numbers that no picture has."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.attacks.harness import Attack, attack, hold, within
from tests.attacks.making import Make, directory, fifo, file, link
from tests.attacks.scenes import FUSED, changed, gone, place

ASK = "ask v1 w5 --max-tokens 2 --image "
PROCESSOR = "v1/processor_config.json"
UNKNOWN = "is it of a newer release, or of code that came with the model? fuse runs none"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *between: bytes) -> bytes:
    """A PNG that says so large it is, whatever is in it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 200))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(between) + pixels + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHH", 0, 0, width, height) + b"\0\x02\x02D\x01\0;"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff" + frame


def moving(folder: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    frames[0].save(folder / "x.gif", save_all=True, append_images=frames[1:])


def cut(folder: Path) -> None:
    Image.effect_noise((64, 64), 50).save(folder / "x.png")
    (folder / "x.png").write_bytes((folder / "x.png").read_bytes()[:900])


def odd(name: str, mode: str, size: tuple[int, int], **how: Any) -> Make:
    return lambda folder: Image.new(mode, size).save(folder / name, **how)


def turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 16)).save(folder / "x.jpg", exif=exif)


PICTURES: list[tuple[str, str, Make, str]] = [
    ("50,000 pixels an edge", "x.png", file("x.png", png(50_000, 50_000)), "x.png: has 2,500,000,000 pixels, more than 100,000,000 (scale it down; encoders see far fewer)"),
    ("2**31 - 1 pixels an edge", "x.png", file("x.png", png(2**31 - 1, 2**31 - 1)), "x.png: has 4,611,686,014,132,420,609 pixels, more than 100,000,000 (scale it down; encoders see far fewer)"),
    ("65,535 pixels an edge as GIF", "x.gif", file("x.gif", gif(65_535, 65_535)), "x.gif: has 4,294,836,225 pixels, more than 100,000,000 (scale it down; encoders see far fewer)"),
    ("no pixels", "x.png", file("x.png", png(0, 0)), "x.png: is not an image that fuse can read (PNG, JPEG, WebP, GIF, BMP and TIFF are read)"),
    ("200 MB of packed text", "x.png", file("x.png", lambda: png(8, 8, chunk(b"zTXt", b"x\0\0" + zlib.compress(b"a" * (200 << 20))))), "x.png: is broken and does not decode (ValueError)"),
    ("half a picture", "x.png", cut, "x.png: is truncated: the file ends before the picture does"),
    ("half a head", "x.png", file("x.png", png(64, 64)[:30]), "x.png: is not an image that fuse can read (PNG, JPEG, WebP, GIF, BMP and TIFF are read)"),
    ("words", "x.png", file("x.png", "hello"), "x.png: is not an image that fuse can read (PNG, JPEG, WebP, GIF, BMP and TIFF are read)"),
    ("SVG", "x.svg", file("x.svg", "<svg xmlns='http://www.w3.org/2000/svg'/>"), "x.svg: is not an image that fuse can read (PNG, JPEG, WebP, GIF, BMP and TIFF are read)"),
    ("PostScript", "x.eps", file("x.eps", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"), "x.eps: is not an image that fuse can read (PNG, JPEG, WebP, GIF, BMP and TIFF are read)"),
    ("a git-lfs pointer", "x.png", file("x.png", "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 10\n"), "x.png: is a git-lfs pointer, not an image (`git lfs pull` brings the picture)"),
    ("moving", "x.gif", moving, "x.gif: has 3 frames; video is not supported (save the frame you mean as one image)"),
    ("a film", "x.mp4", file("x.mp4", b"\0\0\0\x18ftypmp42"), "x.mp4: is a video; fuse reads still images (give single frames as images)"),
    ("no bytes", "x.png", file("x.png", b""), "x.png: is empty (0 bytes)"),
    ("a folder", "x.png", directory("x.png"), "x.png: is a folder, not an image"),
    ("a pipe", "x.png", fifo("x.png"), "x.png: is not a plain file"),
    ("a device", "x.png", link("x.png", "/dev/zero"), "x.png: is not a plain file"),
    ("a link to itself", "x.png", link("x.png", "x.png"), "x.png: is a link that leads back to itself"),
    ("nothing", "x.png", lambda folder: None, "x.png: there is no such file"),
]  # fmt: skip
PROCESSORS: list[tuple[str, Make, str]] = [
    ("a list", file(PROCESSOR, "[]"), "v1/processor_config.json: holds a JSON list, not an object"),
    ("an unknown type", changed(PROCESSOR, image_processor__image_processor_type="EvilProcessor"), f"v1/processor_config.json: image_processor_type is 'EvilProcessor', which transformers does not have ({UNKNOWN})"),
    ("a type that is no name", changed(PROCESSOR, image_processor__image_processor_type=["x"]), "v1/processor_config.json: image_processor_type is ['x'], not a name"),
    ("a type of another kind", changed(PROCESSOR, image_processor__image_processor_type="LlamaModel"), f"v1/processor_config.json: image_processor_type is 'LlamaModel', which transformers does not have ({UNKNOWN})"),
    ("an edge below 0", changed(PROCESSOR, image_processor__size={"shortest_edge": -1}), "v1/processor_config.json: size.shortest_edge is -1, not a whole number from 1 to 10,000"),
    ("a million pixels an edge", changed(PROCESSOR, image_processor__size={"shortest_edge": 10**6}), "v1/processor_config.json: size.shortest_edge is 1000000, not a whole number from 1 to 10,000"),
    ("cut to nothing", changed(PROCESSOR, image_processor__crop_size={"height": 0, "width": 0}), "v1/processor_config.json: crop_size.height is 0, not a whole number from 1 to 10,000"),
    ("cut to another size", changed(PROCESSOR, image_processor__crop_size={"height": 56, "width": 56}), "v1: the processor makes images of 56x56 pixels, and vision_config.image_size is 28"),
    ("a mean by a word", changed(PROCESSOR, image_processor__image_mean=["x"]), "v1/processor_config.json: image_mean is ['x'], not three numbers"),
    ("seven means", changed(PROCESSOR, image_processor__image_mean=[0.5] * 7), "v1/processor_config.json: image_mean is [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, ...], not three numbers"),
    ("a deviation of 0", changed(PROCESSOR, image_processor__image_std=[0, 0, 0]), "v1/processor_config.json: image_std holds 0, by which pixels cannot be divided"),
    ("patches of no pixels", changed(PROCESSOR, patch_size=0), "v1/processor_config.json: patch_size is 0, not a whole number from 1 to 65,535"),
    ("patches by a word", changed(PROCESSOR, patch_size="x"), "v1/processor_config.json: patch_size is 'x', not a whole number from 1 to 65,535"),
    ("a billion tokens", changed(PROCESSOR, num_additional_image_tokens=10**9), "v1/processor_config.json: num_additional_image_tokens is 1000000000, not a whole number from 0 to 65,535"),
    ("a token that is not there", changed(PROCESSOR, image_token="<nope>"), "out: llava takes no image of 320x240 pixels: Mismatch in `image` token count between text and `input_ids`. Got ids=[1] and text=[4]. Likely due to `truncation='max_length'`. Please disable truncation or increase `max_length`. (crop it or pad it)"),
    ("none", gone(PROCESSOR), "v1: a has no preprocessor_config.json, so its branch could not prepare images (copy it from the member's own repository)"),
]  # fmt: skip
ASKED: list[tuple[str, Make, int, str]] = [
    ("a million pixels an edge", changed(PROCESSOR, image_processor__size={"shortest_edge": 10**6}), 3, "v1/processor_config.json: size.shortest_edge is 1000000, not a whole number from 1 to 10,000"),
    ("a billion tokens", changed(PROCESSOR, num_additional_image_tokens=10**9), 3, "v1/processor_config.json: num_additional_image_tokens is 1000000000, not a whole number from 0 to 65,535"),
    ("cut to another size", changed(PROCESSOR, image_processor__crop_size={"height": 56, "width": 56}), 3, "v1: the model does not run: Input image size (56*56) doesn't match model (28*28)."),
    ("a token that is not there", changed(PROCESSOR, image_token="<nope>"), 2, "v1: its processor refuses it: The total number of <nope> tokens in the prompts should be the same as the number of images passed. Found total 0 <nope> tokens and 1 images."),
]  # fmt: skip


@pytest.mark.parametrize("case", PICTURES, ids=lambda case: case[0])
@pytest.mark.parametrize("verb", ["ask", "eval"])
def test_pictures(verb: str, case: tuple[str, str, Make, str], seeing: Path, tmp_path: Path) -> None:
    name, picture, make, said = case
    place(tmp_path, seeing)
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": picture, "question": "w5", "answer": "w5"}) + "\n")
    argv, where = (ASK + picture, "") if verb == "ask" else ("eval v1 --data data.jsonl", "data.jsonl:1: image ")
    hold(Attack(name, make, 2, where + said, argv=argv), tmp_path)


@pytest.mark.parametrize("name", ["50,000 pixels an edge", "half a picture", "a pipe", "a link to itself"])
def test_pictures_of_an_inspection(name: str, seeing: Path, tmp_path: Path) -> None:
    _, picture, make, said = next(case for case in PICTURES if case[0] == name)
    place(tmp_path, seeing)
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        Image.effect_noise((30, 30), 50 + number).save(tmp_path / "pictures" / f"a{number}.png")
    make(tmp_path)
    (tmp_path / picture).rename(tmp_path / "pictures" / picture)
    said = f"pictures/{said.partition(' (')[0]} (--skip-bad leaves it out)"
    hold(Attack(name, lambda folder: None, 2, said, argv="inspect encoders v1 v2 --images pictures"), tmp_path)


ODD = {
    "one pixel": odd("x.png", "RGB", (1, 1)), "one pixel wide": odd("x.png", "RGB", (1, 5000)),
    "CMYK": odd("x.jpg", "CMYK", (9, 9)), "16 bits": odd("x.png", "I;16", (9, 9)), "turned": turned,
    "black and white": odd("x.png", "1", (9, 9)), "with transparency": odd("x.webp", "RGBA", (9, 9)),
    "a palette": odd("x.gif", "P", (9, 9)),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_are_seen(name: str, seeing: Path, tmp_path: Path) -> None:
    place(tmp_path, seeing)
    ODD[name](tmp_path)
    ran = attack(ASK + next(tmp_path.glob("x.*")).name, tmp_path)
    assert (ran.code, ran.err) == (0, "")
    within(ran)


@pytest.mark.parametrize("case", [Attack(name, make, 3, said) for name, make, said in PROCESSORS], ids=str)
def test_processors_of_a_fused_recipe(case: Attack, seeing: Path, tmp_path: Path) -> None:
    place(tmp_path, seeing, FUSED)
    hold(case, tmp_path)


@pytest.mark.parametrize("case", [Attack(*row, argv=f"{ASK}x.png") for row in ASKED], ids=str)
def test_processors_that_are_asked(case: Attack, seeing: Path, tmp_path: Path) -> None:
    place(tmp_path, seeing)
    odd("x.png", "RGB", (30, 30))(tmp_path)
    hold(case, tmp_path)
