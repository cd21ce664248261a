"""A report: one HTML file that needs nothing beside it, and a PNG of every chart.

The page holds its pictures and its style, runs no script and asks no network; what strangers named is escaped. Charts
are SVG in it, so that they stay sharp and take the colours of a light or a dark page.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fuse import __version__
from fuse.errors import MachineError, RecipeError
from fuse.report.page import Heat, Page, Picture, Scatter, Table, line

FILE, GENERATOR = "report.html", "fuse inspect"
MADE = re.compile(r'<meta name="generator" content="fuse inspect [^"]*" data-files="([^"]*)">')
PNG = re.compile(r"[0-9]{2,}-[a-z0-9-]+\.png")
START = 1 << 20  # bytes of a page that hold its generator and the names of its PNGs


def prepare(folder: Path) -> None:
    """Check before the work begins that the report can be written.

    Raises MachineError where matplotlib is missing, RecipeError for what is no folder or holds anything but a report of
    fuse.
    """
    from fuse.report.png import check_installed

    check_installed()
    _earlier(folder)


def write_report(
    document: Mapping[str, Any], folder: Path, *, samples: Mapping[str, Mapping[str, Any]] | None = None,
    image: Any = None,
) -> Path:  # fmt: skip
    """Write report.html and the PNGs of its charts, in place of those of an earlier report; the page's path.

    document: of a kind of `fuse inspect`. samples: for encoders, `Compared.samples`. image: for attention, the Pillow
    image as it was opened. Raises RecipeError as `prepare`, MachineError where a file cannot be written.
    """
    from fuse.report.png import draw

    page = page_of(document, samples, image)
    earlier = _earlier(folder)
    drawn = {f"{number:02}-{chart.name}.png": draw(chart) for number, chart in enumerate(page.charts, 1)}
    for name in drawn.keys() - earlier:
        if (folder / name).exists():
            raise RecipeError(f"holds {name}, which is not of the report", where=folder, hint="name another folder")
    text = render(page, list(drawn))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in {**drawn, FILE: text.encode()}.items():
            partial = folder / f".{name}.partial"
            partial.write_bytes(data)
            partial.replace(folder / name)
        for name in earlier - drawn.keys():
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"cannot be written ({error.strerror})", where=folder) from None
    return folder / FILE


def page_of(
    document: Mapping[str, Any], samples: Mapping[str, Mapping[str, Any]] | None = None,
    image: Any = None,
) -> Page:  # fmt: skip
    """The page of a document, by its kind."""
    from fuse.report import inspect_attention, inspect_deltas, inspect_encoders, inspect_pairs, inspect_tokens

    pages: dict[str, Callable[[], Page]] = {
        "encoders": lambda: inspect_encoders.page(document, samples),
        "deltas": lambda: inspect_deltas.page(document),
        "tokens": lambda: inspect_tokens.page(document),
        "pairs": lambda: inspect_pairs.page(document),
        "attention": lambda: inspect_attention.page(document, image),
    }
    return pages[document["inspect"]]()


def render(page: Page, files: list[str]) -> str:
    """The HTML. files: the names of the PNGs of `page.charts`, in order."""
    from jinja2 import Environment, FileSystemLoader

    from fuse.report import svg

    drawings = {id(chart): svg.heat(chart) if isinstance(chart, Heat) else svg.scatter(chart)
                for chart in page.charts if not isinstance(chart, Picture)}  # fmt: skip
    named = {id(chart): name for chart, name in zip(page.charts, files, strict=True)}
    kinds = {Table: "table", Heat: "heat", Scatter: "scatter", Picture: "picture"}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["line"] = line
    return environment.get_template("page.html.j2").render(
        page=page, version=__version__, generator=GENERATOR, files=files,
        kind=lambda part: kinds[type(part)], drawing=lambda part: drawings[id(part)], file=lambda part: named[id(part)],
        data=lambda picture: b64encode(picture.png).decode(),
    ) + "\n"  # fmt: skip


def _earlier(folder: Path) -> set[str]:
    """The PNGs of the report that is there, none where there is nothing. Raises RecipeError for a stranger's folder."""
    try:
        if not folder.exists() or (folder.is_dir() and next(folder.iterdir(), None) is None):
            return set()
        if not folder.is_dir():
            raise RecipeError("is a file, not a folder for a report", where=folder)
        start = (folder / FILE).read_bytes()[:START] if (folder / FILE).is_file() else b""
    except OSError as error:
        raise MachineError(f"cannot be read ({error.strerror})", where=folder) from None
    found = MADE.search(start.decode(errors="replace"))
    if found is None:
        raise RecipeError("is not empty, and no report of fuse inspect", where=folder, hint="name another folder")
    return {name for name in found[1].split() if PNG.fullmatch(name)}
