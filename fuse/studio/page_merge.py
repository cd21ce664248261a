"""The tab of merges: into a new folder, with progress, and what was made."""

from nicegui import ui

from fuse.studio.parts import attempt, live, progress, said, sheet, state_of
from fuse.studio.state import Studio


def build(studio: Studio) -> None:
    """The tab."""
    with sheet("Merge", "The folder appears whole, or not at all; nothing that is there is replaced."):
        live(lambda: (studio.mistake, *state_of(studio.planning)), lambda: _ready(studio))
        with ui.row().classes("w-full items-center no-wrap gap-2"):
            out = ui.input("New folder", placeholder="build/fused").props("dense outlined").classes("grow").mark("out")
            merge = ui.button("Merge", on_click=lambda: attempt(lambda: studio.merge(out.value or "")))
            merge.props("unelevated no-caps").mark("merge")
        progress(lambda: studio.merging, studio.jobs.stop)
    live(lambda: len(studio.made), lambda: _made(studio))


def _ready(studio: Studio) -> None:
    if plan := studio.plan():
        said(plan.headline, "good")
    elif studio.mistake or (studio.planning and studio.planning.problem):
        said(studio.mistake or (studio.planning.problem if studio.planning else ""), "bad")
    else:
        ui.label("There is no recipe to merge yet.").classes("quiet")


def _made(studio: Studio) -> None:
    for made in reversed(studio.made):
        with sheet(made.folder.name, str(made.folder)):
            said(made.told, "good")
