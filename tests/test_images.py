"""Every picture becomes upright 8-bit RGB, or one sentence says why not."""

import base64
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fuse.errors import FuseError, MachineError, RecipeError
from fuse.images import MAX_DATA, MAX_PIXELS, as_image, open_image

COLOURS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def sentence(error: pytest.ExceptionInfo, path: Path) -> str:
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text.removeprefix(f"{path}: ")


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims a size, with whatever compressed rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_give_the_same_pixels(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(COLOURS), **({"lossless": True} if suffix == "webp" else {}))
    image = open_image(path)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), COLOURS)


def test_jpeg_and_gif_open(tmp_path):
    grey = Image.new("L", (5, 3), 77)
    for name in ("a.jpg", "a.gif"):
        image = open_image(saved(tmp_path / name, grey))
        assert image.mode == "RGB" and image.size == (5, 3)
        assert abs(np.asarray(image).astype(int) - 77).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    # what a viewer shows, from the definition: where row 0 and column 0 of the stored picture lie (Exif 2.32, 4.6.4 A)
    shown = {
        1: COLOURS, 2: COLOURS[:, ::-1], 3: COLOURS[::-1, ::-1], 4: COLOURS[::-1], 5: COLOURS.transpose(1, 0, 2),
        6: COLOURS[::-1].transpose(1, 0, 2), 7: COLOURS[::-1, ::-1].transpose(1, 0, 2),
        8: COLOURS.transpose(1, 0, 2)[::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", Image.fromarray(COLOURS), exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(path)), shown)


def test_exif_that_is_rubbish_or_out_of_range_leaves_the_picture_as_stored(tmp_path):
    for i, exif in enumerate(
        (b"Exif\x00\x00MM\x00*\xff\xff\xff\xff", b"rubbish", b"Exif\x00\x00II*\x00\x08\x00\x00\x00")
    ):
        path = saved(tmp_path / f"{i}.png", Image.fromarray(COLOURS), exif=exif)
        np.testing.assert_array_equal(np.asarray(open_image(path)), COLOURS)
    strange = Image.Exif()
    strange[0x0112] = 77
    path = saved(tmp_path / "77.png", Image.fromarray(COLOURS), exif=strange)
    np.testing.assert_array_equal(np.asarray(open_image(path)), COLOURS)


def test_cmyk_is_converted(tmp_path):
    ink = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    for name in ("a.tiff", "a.jpg"):
        red, green, blue = np.asarray(open_image(saved(tmp_path / name, ink)))[0, 0].astype(int)
        assert red <= 3 and green >= 252 and blue >= 252


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 128, 129, 257], [32768, 65535, 65407, 65406], [1000, 40000, 256, 12345]], dtype=np.uint16)
    path = saved(tmp_path / name, Image.fromarray(values))
    expected = np.floor(values.astype(np.float64) * 255 / 65535 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(open_image(path)), np.repeat(expected[..., None], 3, 2))


def test_every_16_bit_value_rounds_to_the_nearest():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values.astype(np.float64) * 255 / 65535)  # no value lies half way: 257 is odd
    np.testing.assert_array_equal(np.asarray(as_image(Image.fromarray(values)))[..., 1], expected)


def test_32_bit_grey_and_floats_are_refused_unless_they_are_16_bit(tmp_path):
    wide = np.array([[0, 65535]], dtype=np.int32)
    np.testing.assert_array_equal(np.asarray(as_image(Image.fromarray(wide)))[0, :, 0], [0, 255])
    path = saved(tmp_path / "a.tiff", Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))
    with pytest.raises(RecipeError) as error:
        open_image(path)
    assert (
        sentence(error, path) == "holds 32-bit values, whose black and white are not known (save it with 8 or 16 bits)"
    )
    path = saved(tmp_path / "f.tiff", Image.fromarray(np.array([[0.5, 1.0]], dtype=np.float32)))
    with pytest.raises(RecipeError) as error:
        open_image(path)
    assert sentence(error, path) == (
        "holds floating point values, whose black and white are not known (save it with 8 or 16 bits)"
    )


def test_transparency_is_laid_on_white(tmp_path):
    alpha = np.array([[0, 255, 51]], dtype=np.uint8)
    expected = np.rint(255.0 + (100.0 - 255.0) * alpha[0].astype(np.float64) / 255)
    rgba = np.dstack([np.full_like(alpha, 100)] * 3 + [alpha])
    path = saved(tmp_path / "rgba.png", Image.fromarray(rgba))
    np.testing.assert_array_equal(np.asarray(open_image(path))[0, :, 2], expected)
    path = saved(tmp_path / "la.png", Image.fromarray(np.dstack([np.full_like(alpha, 100), alpha])))
    np.testing.assert_array_equal(np.asarray(open_image(path))[0, :, 0], expected)


def test_palettes_with_and_without_a_transparent_colour(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.putdata([0, 1])
    opaque = open_image(saved(tmp_path / "a.png", palette))
    assert [opaque.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 0)]
    for name in ("b.png", "b.gif"):
        clear = open_image(saved(tmp_path / name, palette, transparency=1))
        assert [clear.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_premultiplied_alpha_from_code():
    image = Image.new("RGBA", (1, 1), (200, 100, 0, 128)).convert("RGBa")
    expected = [255 + (c - 255) * 128 / 255 for c in (200, 100, 0)]
    np.testing.assert_allclose(np.asarray(as_image(image))[0, 0], expected, atol=2)
    assert as_image(Image.new("La", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tiff", "a.png"])
def test_several_frames_are_refused(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(RecipeError) as error:
        open_image(path)
    assert sentence(error, path) == "has 3 frames; video is not supported (save the frame you mean as one image)"


def test_a_photo_with_previews_in_one_jpeg_is_a_still_picture(tmp_path):
    photo, preview = Image.new("RGB", (16, 8), "red"), Image.new("RGB", (4, 2), "blue")
    path = saved(tmp_path / "a.jpg", photo, format="MPO", save_all=True, append_images=[preview])
    image = open_image(path)
    assert image.size == (16, 8) and np.asarray(image)[0, 0, 0] > 250


@pytest.mark.parametrize("suffix", [".mp4", ".MOV", ".avi", ".mkv", ".webm"])
def test_videos_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"\x00\x00\x00\x20ftypisom")
    with pytest.raises(RecipeError) as error:
        open_image(path)
    assert sentence(error, path) == "is a video; fuse reads still images (give single frames as images)"


def test_files_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    for name, problem in {
        "missing.png": "there is no such file",
        "text.png/a.png": "there is no such file",
        ".": "is a folder, not an image",
        "pipe.png": "is not a plain file",
        "empty.png": "is empty (0 bytes)",
        "text.png": "is not an image that fuse can read (PNG, JPEG, WebP, GIF, BMP and TIFF are read)",
    }.items():
        with pytest.raises(RecipeError) as error:
            open_image(tmp_path / name)
        assert sentence(error, tmp_path / name) == problem
        assert error.value.exit_code == 2


@pytest.mark.parametrize("address", ["http://example.org/a.png", "https://example.org/b/a.png?size=1", "ftp://x/y"])
def test_addresses_of_the_web_are_not_fetched(address):
    for given in (address, Path(address)):
        with pytest.raises(RecipeError) as error:
            as_image(given)
        assert str(error.value) == f"{address}: addresses of the web are not fetched (download it first)"
        assert error.value.exit_code == 2


def test_a_name_that_is_too_long_for_the_file_system(tmp_path):
    with pytest.raises(MachineError, match=r"cannot be read \(OSError\)"):
        open_image(tmp_path / ("a" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("L", (2, 2)))
    path.chmod(0)
    with pytest.raises(MachineError) as error:
        open_image(path)
    assert sentence(error, path) == "may not be read (permission denied)"


def test_formats_that_are_not_on_the_list_are_refused(tmp_path):
    for name, options in {"a.ppm": {}, "a.ico": {}, "a.eps": {}, "a.pcx": {}}.items():
        path = saved(tmp_path / name, Image.new("RGB", (16, 16)), **options)
        with pytest.raises(RecipeError, match="is not an image that fuse can read"):
            open_image(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.gif", "a.tiff"])
def test_truncated_files_are_one_sentence(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = saved(tmp_path / name, Image.fromarray(noise)).read_bytes()
    known = {
        "is truncated: the file ends before the picture does",
        "is broken and does not decode (OSError)",
        "is broken and does not decode (SyntaxError)",
        "is broken and does not decode (ValueError)",
        "is broken and does not decode (TypeError)",
        "is not an image that fuse can read (PNG, JPEG, WebP, GIF, BMP and TIFF are read)",
    }
    for cut in range(1, len(whole) // 2, max(1, len(whole) // 40)):
        path = tmp_path / f"cut-{name}"
        path.write_bytes(whole[:cut])
        with pytest.raises(RecipeError) as error:
            open_image(path)
        assert sentence(error, path) in known
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecipeError) as error:
        open_image(path)
    if name in {"a.jpg", "a.png", "a.bmp"}:
        assert sentence(error, path) == "is truncated: the file ends before the picture does"


def test_flipped_bytes_open_or_are_one_sentence(tmp_path):
    generator = np.random.default_rng(1)
    picture = Image.fromarray(generator.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        buffer = io.BytesIO()
        picture.save(buffer, format)
        for _ in range(60):
            data = bytearray(buffer.getvalue())
            for place in generator.integers(0, len(data), 3):
                data[place] = generator.integers(0, 256)
            path = tmp_path / "flipped"
            path.write_bytes(data)
            try:
                assert open_image(path).mode == "RGB"
            except FuseError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("side", [10_001, 20_000, 60_000])
def test_decompression_bombs_are_refused_before_decoding(tmp_path, side, recwarn):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, b"\x00" * 1000))
    with pytest.raises(RecipeError) as error:
        open_image(path)
    assert sentence(error, path) == (
        f"has {side * side:,} pixels, more than 100,000,000 (scale it down; encoders see far fewer)"
    )
    assert not recwarn.list


def test_the_limit_itself_is_allowed(tmp_path, recwarn):
    path = tmp_path / "large.png"
    path.write_bytes(png(10_000, 10_000, b"\x00" * 100))
    with pytest.raises(RecipeError) as error:
        open_image(path)
    assert sentence(error, path) == "is truncated: the file ends before the picture does"
    assert MAX_PIXELS == 10_000 * 10_000 and not recwarn.list


def test_arrays_and_pictures_from_code():
    np.testing.assert_array_equal(np.asarray(as_image(COLOURS)), COLOURS)
    np.testing.assert_array_equal(np.asarray(as_image(COLOURS[:, ::-1])), COLOURS[:, ::-1])
    np.testing.assert_array_equal(np.asarray(as_image(Image.fromarray(COLOURS))), COLOURS)
    assert as_image(Image.new("CMYK", (2, 3))).mode == "RGB"


def test_a_path_from_code(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(COLOURS))
    for value in (path, str(path)):
        np.testing.assert_array_equal(np.asarray(as_image(value)), COLOURS)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "image 2: is a NoneType, not an image (PIL images and uint8 arrays [h, w, 3] work)"),
        ([[1]], "image 2: is a list, not an image (PIL images and uint8 arrays [h, w, 3] work)"),
        (
            np.zeros((3, 8, 8), np.float32),
            "image 2: is an array float32 [3, 8, 8], not uint8 [h, w, 3] (scale the values to 0..255 and put the colours last)",
        ),
        (
            np.zeros((8, 8), np.uint8),
            "image 2: is an array uint8 [8, 8], not uint8 [h, w, 3] (scale the values to 0..255 and put the colours last)",
        ),
        (np.zeros((0, 8, 3), np.uint8), "image 2: is 8x0 and has no pixels"),
        (
            np.broadcast_to(np.uint8(0), (10_000, 10_001, 3)),
            "image 2: has 100,010,000 pixels, more than 100,000,000 (scale it down; encoders see far fewer)",
        ),
        (Image.new("RGB", (0, 4)), "image 2: is 0x4 and has no pixels"),
        (
            Image.new("1", (10_000, 10_001)),
            "image 2: has 100,010,000 pixels, more than 100,000,000 (scale it down; encoders see far fewer)",
        ),
    ],
    ids=["none", "list", "chw", "grey", "empty", "huge", "empty picture", "huge picture"],
)
def test_values_from_code_that_are_no_pictures(value, problem):
    with pytest.raises(RecipeError) as error:
        as_image(value, where="image 2")
    assert str(error.value) == problem


def address(data: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(data).decode()


@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:;BASE64,", "data:image/jpeg;charset=x;base64,\n "])
def test_a_picture_within_an_address(head: str) -> None:
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "png")
    assert (np.asarray(as_image(address(file.getvalue(), head))) == COLOURS).all()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("data:image/png,AAAA", "data:image/png,AAAA: is an address without base64 (data:image/png;base64,...)"),
        ("data:", "data:: is an address without base64 (data:image/png;base64,...)"),
        ("data:;base64,", "data:;base64,: is empty (0 bytes)"),
        ("data:;base64,AAA", "data:;base64,AAA: is no base64: it holds other letters, or too few"),
        ("data:;base64,%41AAA", "data:;base64,%41AAA: is no base64: it holds other letters, or too few"),
        ("data:;base64,Ä", "data:;base64,Ä: is no base64: it holds other letters, or too few"),
        (address(b"x" * 99), "data:image/png;base64,eHh4eHh4eHh4eHh4eH...: is not an image that fuse can read (PNG, JPEG, WebP, GIF, BMP and TIFF are read)"),
        (address(png(40_000, 40_000)), "data:image/png;base64,iVBORw0KGgoAAAANSU...: has 1,600,000,000 pixels, more than 100,000,000 (scale it down; encoders see far fewer)"),
        ("data:;base64," + "A" * (MAX_DATA + 4), "data:;base64,AAAAAAAAAAAAAAAAAAAAAAAAAAA...: has 67,108,868 letters, more than 67,108,864 (scale it down)"),
    ],
)  # fmt: skip
def test_addresses_that_bring_no_picture(given: str, told: str) -> None:
    with pytest.raises(FuseError) as error:
        as_image(given)
    assert str(error.value) == told
