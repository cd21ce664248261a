"""`fuse studio` in a real browser: chosen, planned, inspected, merged and asked by clicks; and what the browser fetched."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import chromium, zoo_tools  # noqa: F401 - the path of the tools

import demo  # isort: skip

ZOO = Path(__file__).parent.parent / "recipes" / "zoo"
pytestmark = [
    pytest.mark.skipif(find_spec("nicegui") is None, reason="nicegui is not installed (the extra studio)"),
    pytest.mark.skipif(chromium.FOUND is None, reason=f"no browser is installed: {', '.join(chromium.NAMES)}"),
]
MEMBER = 'input[aria-label="Folder or hub id of a member"]'
BASE = 'input[aria-label="Base, the language model that they share"]'
METHOD = 'input[aria-label="Method"]'
TABS = ("Recipe", "Plan", "Inspect", "Merge", "Ask")


def field(label: str) -> str:
    return f'input[aria-label="{label}"]'


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A studio that was started with nothing, in a folder with members and a picture: its address, and the folder."""
    folder = tmp_path_factory.mktemp("studio")
    for name in ("base", "hue", "form"):
        shutil.copytree(ZOO / name, folder / name)
    demo.drawn(folder / "scene.png")
    with (folder / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "fuse", "studio", "--port", "0"], cwd=folder, stdout=subprocess.PIPE, stderr=err,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ZOO.parent.parent)},
        )  # fmt: skip
        assert process.stdout is not None
        yield process.stdout.readline().removeprefix("studio: ").strip(), folder
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert (folder / "err").read_text() == ""
    assert sorted(path.name for path in folder.iterdir()) == [
        "base", "err", "form", "fused", "hue", "kept.yaml", "scene.png",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tab(studio: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Tab]:
    with chromium.tab(tmp_path_factory.mktemp("browser") / "profile") as tab:
        tab.look(1280, 900)
        tab.open(studio[0])
        tab.sees("Add a member, open a recipe, or write one here.")
        yield tab
        assert [
            place
            for place in tab.asked
            if not place.startswith((studio[0].split("?")[0], "ws://127.", "data:", "blob:http://127."))
        ] == []
        assert tab.errors == []


def choose(tab: chromium.Tab) -> None:
    for name in ("nowhere", "hue", "form"):
        tab.type(MEMBER, name)
        tab.click_text("Add", "button")
        refused = "'nowhere' does not exist (a folder or a hub id org/name)"
        tab.sees(refused if name == "nowhere" else f"{name}\nvisibility")
    tab.type(BASE, "base")
    tab.sees("base: base")
    tab.click(METHOD)
    tab.click_text("task_arithmetic", ".q-item__label")
    tab.sees("method: task_arithmetic")
    tab.type(field("Weight of form"), "0.5")
    tab.sees("weights: {hue: 1.0, form: 0.5}")
    tab.type(field("Weight of hue"), "0.5")
    tab.sees("weights: {hue: 0.5, form: 0.5}")
    tab.sees("This recipe makes a fused model on hue: 157 tensors, 2.5 MB.")


def mistake(tab: chromium.Tab) -> None:
    """Typed by hand, it is told with its place."""
    tab.click_text("method: task_arithmetic", ".cm-line")
    tab.call("Input.dispatchKeyEvent", type="keyDown", key="End", code="End", windowsVirtualKeyCode=35)
    tab.call("Input.insertText", text="s")
    told = "unknown method 'task_arithmetics' (did you mean: task_arithmetic"
    tab.sees(f"recipe.yaml:6:3: language.method: {told}")
    tab.call("Input.dispatchKeyEvent", type="keyDown", key="Backspace", code="Backspace", windowsVirtualKeyCode=8)
    tab.sees("This recipe makes a fused model on hue")


def plan(tab: chromium.Tab) -> None:
    tab.click_text("Plan", ".q-tab__label")
    tab.sees("task_arithmetic of hue + form over base, 0.5/0.5")
    tab.sees("same architecture: llama, 4 layers, hidden 128, 4/4 heads")
    tab.sees("licence: apache-2.0")


def inspect(tab: chromium.Tab) -> None:
    tab.click_text("Inspect", ".q-tab__label")
    tab.click_text("Inspect", "button")
    inside = "document.querySelector('iframe')?.contentDocument?.body?.innerText"
    assert "Do these speak one language?" in tab.wait(inside)


def merge_and_ask(tab: chromium.Tab, folder: Path) -> None:
    """The answers on the page: the parents know what they see, and the fused model both."""
    tab.click_text("Merge", ".q-tab__label")
    tab.type(field("New folder"), "fused")
    tab.click_text("Merge", "button")
    tab.sees("39 tensors merged, 118 copied or made")
    tab.click_text("Merge", "button")
    tab.sees("fused: the output already exists (name another folder)")
    tab.click_text("Ask", ".q-tab__label")
    tab.upload("input[type=file]", folder / "scene.png")
    tab.sees("scene.png, 96x96")
    scene, _ = demo.drawn(folder / "scene.png")
    for question, right, needs in demo.asked(scene)[:2]:
        tab.type(field("Question"), question)
        tab.click_text("Ask", "button")
        found = tab.wait(
            "(() => { const all = [...document.querySelectorAll('.answers .sheet')]; return all.length == 3 && "
            "Object.fromEntries(all.map(e => [...e.children].slice(0, 2).map(c => c.innerText))) })()"
        )
        tab.value("document.querySelector('.answers').remove()")
        assert found.keys() == {"hue", "form", "fused"}
        if needs in found:
            assert found[needs] == right


def save(tab: chromium.Tab, folder: Path) -> None:
    tab.click_text("Recipe", ".q-tab__label")
    tab.type(field("Recipe file"), "kept.yaml")
    tab.click_text("Save", "button")
    tab.sees("Saved kept.yaml")
    assert (folder / "kept.yaml").read_text().startswith("base: base\nmembers:\n  hue: hue\n")


def remove(tab: chromium.Tab) -> None:
    tab.click('[aria-label="More about form"]')
    tab.click_text("Remove", ".q-item")
    tab.sees("This recipe makes a llava model: 98 tensors, 1.9 MB.")


def test_from_members_to_answers(tab: chromium.Tab, studio: tuple[str, Path]) -> None:
    """One walk through the page; each step needs the one before."""
    choose(tab)
    mistake(tab)
    plan(tab)
    inspect(tab)
    merge_and_ask(tab, studio[1])
    save(tab, studio[1])
    remove(tab)


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_reaches_past_the_window(tab: chromium.Tab, width: int) -> None:
    tab.look(width, 900)
    for name in TABS:
        tab.click_text(name, ".q-tab__label")
        tab.wait(f"document.querySelector('.q-tab--active .q-tab__label').innerText === {name!r}")
        assert tab.value("document.documentElement.scrollWidth") <= width, name


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_as_light_as_its_reader_likes(tab: chromium.Tab, dark: bool) -> None:
    tab.look(1280, 900, dark=dark)
    color = tab.wait(
        f"document.body.classList.contains('body--dark') === {str(dark).lower()} && getComputedStyle(document.body).backgroundColor"
    )
    assert color == ("rgb(19, 19, 22)" if dark else "rgb(244, 245, 247)")
