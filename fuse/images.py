"""Opening still images: any picture a person may hand over becomes 8-bit RGB, upright, or one sentence says why not.

What the reader cannot know is our choice, stated here: transparency is laid on white, 16-bit grey maps 0..65535 to
0..255 (rounded, never clipped), colour profiles are ignored, a picture has at most 100 million pixels, a picture within
an address at most 64 Mi letters, and an orientation tag that cannot be read counts as none. Sizes are checked before
anything is decoded.
"""

import base64
import errno
import io
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuse.errors import FuseError, MachineError, RecipeError

MAX_PIXELS = 100_000_000
DATA, MAX_DATA = "data:", 64 << 20
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
READ = "PNG, JPEG, WebP, GIF, BMP and TIFF are read"
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv"}
WEB = re.compile(r"(https?|ftp):/+(.+)", re.IGNORECASE)  # a Path has one slash left of two
LFS = b"version https://git-lfs"
_ORIENTATION = 0x0112  # Exif 2.32, table 4
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def open_image(path: Path) -> Image.Image:
    """The picture in a file, mode RGB, upright.

    Raises RecipeError when there is no single still picture of a known format in it, or it is broken or too large;
    MachineError when the file may not be read.
    """
    _check_file(path)
    return _guarded(lambda: _read(path, path), where=path)


def open_data(address: str) -> Image.Image:
    """The picture that an address brings along (`data:image/png;base64,...`, RFC 2397), mode RGB, upright.

    Which format it is, the bytes say. Raises RecipeError for data that is not base64, and as `open_image` does.
    """
    head, comma, body = address.partition(",")
    where = f"{address[:40]}..." if len(address) > 40 else address
    if not comma or not head.lower().endswith(";base64"):
        raise RecipeError("is an address without base64", where=where, hint="data:image/png;base64,...")
    if len(body) > MAX_DATA:
        raise RecipeError(f"has {len(body):,} letters, more than {MAX_DATA:,}", where=where, hint="scale it down")
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except ValueError:
        raise RecipeError("is no base64: it holds other letters, or too few", where=where) from None
    if not data:
        raise RecipeError("is empty (0 bytes)", where=where)
    return _guarded(lambda: _read(io.BytesIO(data), where), where=where)


def as_image(value: Any, *, where: object = "image") -> Image.Image:
    """A picture handed over by code, mode RGB: a PIL image, a numpy array uint8 [h, w, 3], the path of a file, or a
    `data:` address.

    The limits are those of `open_image`. Raises RecipeError for anything else.
    """
    if isinstance(value, str) and value[: len(DATA)].lower() == DATA:
        return open_data(value)
    if isinstance(value, str | Path):
        return open_image(Path(value))
    if isinstance(value, Image.Image):
        return _guarded(lambda: _convert(value, where), where=where)
    if not isinstance(value, np.ndarray):
        raise RecipeError(
            f"is a {type(value).__name__}, not an image", where=where, hint="PIL images and uint8 arrays [h, w, 3] work"
        )
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        raise RecipeError(
            f"is an array {value.dtype} {list(value.shape)}, not uint8 [h, w, 3]", where=where,
            hint="scale the values to 0..255 and put the colours last",
        )  # fmt: skip
    _check_size(value.shape[1], value.shape[0], where)
    return Image.fromarray(np.ascontiguousarray(value))


def _check_file(path: Path) -> None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if web := WEB.fullmatch(str(path)):
            told = "addresses of the web are not fetched"
            raise RecipeError(told, where=f"{web[1]}://{web[2]}", hint="download it first") from None
        raise RecipeError("there is no such file", where=path) from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise RecipeError("is a link that leads back to itself", where=path) from None
        raise MachineError(f"cannot be read ({type(error).__name__})", where=path) from None
    if stat.S_ISDIR(found.st_mode):
        raise RecipeError("is a folder, not an image", where=path)
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise RecipeError("is not a plain file", where=path)
    if found.st_size == 0:
        raise RecipeError("is empty (0 bytes)", where=path)
    if path.suffix.lower() in VIDEOS:
        raise RecipeError("is a video; fuse reads still images", where=path, hint="give single frames as images")


def _guarded(work: Callable[[], Image.Image], *, where: object) -> Image.Image:
    """Runs the decoder, and says in one sentence what it stumbled over."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata; we have our own limit
            return work()
    except FuseError:
        raise
    except PermissionError:
        raise MachineError("may not be read (permission denied)", where=where) from None
    except Image.UnidentifiedImageError:
        if isinstance(where, Path) and _is_pointer(where):
            hint = "`git lfs pull` brings the picture"
            raise RecipeError("is a git-lfs pointer, not an image", where=where, hint=hint) from None
        raise RecipeError("is not an image that fuse can read", where=where, hint=READ) from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(int(pixels[1]) if pixels else 2 * MAX_PIXELS, where) from None
    except Exception as error:  # decoders of broken files raise anything: struct.error, SyntaxError, IndexError ...
        if isinstance(error, MemoryError):
            raise MachineError("there is not enough memory to decode it", where=where) from None
        if "truncated" in str(error).lower():
            raise RecipeError("is truncated: the file ends before the picture does", where=where) from None
        raise RecipeError(f"is broken and does not decode ({type(error).__name__})", where=where) from None


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(LFS)) == LFS


def _read(source: Path | io.BytesIO, where: object) -> Image.Image:
    with Image.open(source, formats=FORMATS) as image:
        return _convert(image, where)


def _convert(image: Image.Image, where: object) -> Image.Image:
    """RGB and upright, from any mode."""
    _check_size(image.width, image.height, where)
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a photo and its own previews
    if frames > 1:
        raise RecipeError(
            f"has {frames} frames; video is not supported", where=where, hint="save the frame you mean as one image"
        )
    orientation = _orientation(image)
    image.load()
    image = _rgb(image, where)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _check_size(width: int, height: int, where: object) -> None:
    if width < 1 or height < 1:
        raise RecipeError(f"is {width}x{height} and has no pixels", where=where)
    if width * height > MAX_PIXELS:
        raise _too_large(width * height, where)


def _too_large(pixels: int, where: object) -> RecipeError:
    return RecipeError(
        f"has {pixels:,} pixels, more than {MAX_PIXELS:,}", where=where, hint="scale it down; encoders see far fewer"
    )


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # metadata of strangers; the picture itself may be whole
        return None


def _rgb(image: Image.Image, where: object) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image, where).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        if image.mode in {"RGBa", "La"}:  # premultiplied; Pillow knows the way back only for colour
            image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image, where: object) -> Image.Image:
    """8-bit grey from 16-bit grey: round(v * 255 / 65535). 32-bit integers count as 16-bit if they are in range."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        kind = "floating point" if image.mode == "F" else "32-bit"
        raise RecipeError(
            f"holds {kind} values, whose black and white are not known", where=where, hint="save it with 8 or 16 bits"
        )
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
