"""Reports in a real browser: light and dark, on a desk and on a phone, without a script and without an error."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fuse.report import html
from tests import chromium, report_documents

pytestmark = pytest.mark.skipif(chromium.FOUND is None, reason=f"no browser is installed: {', '.join(chromium.NAMES)}")
needs_websockets = pytest.mark.skipif(find_spec("websockets") is None, reason="websockets is not installed")
WIDTHS = {"phone": 390, "desk": 1100}
LONG = "a-member-in-a-folder-with-a-long-name-that-has-no-place-to-break-it-on-a-phone"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A report of each kind."""
    root, found = tmp_path_factory.mktemp("pages"), {}
    for document in report_documents.every(LONG):
        kind = document["inspect"]
        drawn = report_documents.samples(document) if kind == "encoders" else None
        found[kind] = html.write_report(document, root / kind, samples=drawn, image=report_documents.image())
    return found


def browse(page: Path, *options: str) -> str:
    command = [
        str(chromium.FOUND), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
        f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


def screenshot(page: Path, width: int, dark: bool, folder: Path) -> np.ndarray:
    """RGB pixels of the first 2,000 rows."""
    file = folder / f"{width}.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browse(page, scheme, f"--window-size={width},2000", f"--screenshot={file}")
    return np.asarray(Image.open(file).convert("RGB"))


@needs_websockets
@pytest.mark.parametrize("kind", ["encoders", "deltas", "tokens", "attention", "pairs"])
def test_the_page_fits_a_phone(pages, tmp_path, kind):
    """No element reaches past 390 pixels but inside a box that scrolls. A script is let into a copy to measure it."""
    text = pages[kind].read_text()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("<details>", "<details open>")
    script = (
        "<script>const all = [...document.querySelectorAll('main *')].filter(e => !e.closest('.box > *'));"
        "const right = Math.max(...all.map(e => e.getBoundingClientRect().right));"
        "document.title = [document.documentElement.scrollWidth, innerWidth, Math.ceil(right)].join(' ')</script>"
    )
    copy = tmp_path / "copy.html"
    copy.write_text(text.replace("</body>", f"{script}</body>"))
    with chromium.tab(tmp_path / "profile") as tab:  # a window may not be as narrow
        tab.look(WIDTHS["phone"], 844)
        tab.open(copy.as_uri())
        scroll, inner, right = map(int, tab.wait(r"/^\d+ \d+ \d+$/.test(document.title) && document.title").split())
    assert (scroll, inner) == (390, 390) and right <= 390


@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("kind", ["encoders", "attention"])
def test_light_and_dark(pages, tmp_path, kind, size):
    """The page takes the colour of its reader; its cells and pictures keep theirs; text has contrast in both."""
    light, dark = (screenshot(pages[kind], WIDTHS[size], dark, tmp_path) for dark in (False, True))
    assert light.shape == dark.shape == (2000, WIDTHS[size], 3)
    assert light[0, 0].tolist() == [255, 255, 255] and dark[0, 0].tolist() == [19, 19, 22]
    heading = slice(16, 80)
    assert light[heading].min() < 60 and dark[heading].max() > 200
    colored = (light.max(2).astype(int) - light.min(2)) > 60
    same = (light == dark).all(2)
    assert colored.sum() > 2000 and same[colored].mean() > 0.6


def test_nothing_of_the_page_runs(tmp_path):
    """Even where a name got through, the page's own rule keeps scripts from running."""
    page = html.write_report(report_documents.tokens("<img src=x onerror=\"document.title='ran'\">"), tmp_path / "r")
    assert "<title>Do these speak one language?" in browse(page, "--dump-dom")
    page.write_text(page.read_text().replace("</body>", "<script>document.title = 'ran'</script></body>"))
    assert "<title>Do these speak one language?" in browse(page, "--dump-dom")
