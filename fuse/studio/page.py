"""The page: a bar with what is being done, and a tab for each step."""

from pathlib import Path

from nicegui import ui

from fuse.studio import page_ask, page_inspect, page_merge, page_plan, page_recipe
from fuse.studio.parts import live
from fuse.studio.state import Studio

BAR = "no-caps dense inline-label align=left indicator-color=primary"
STYLE = Path(__file__).with_name("page.css")
TABS = {
    "Recipe": ("tune", page_recipe.build), "Plan": ("fact_check", page_plan.build),
    "Inspect": ("insights", page_inspect.build), "Merge": ("merge_type", page_merge.build),
    "Ask": ("question_answer", page_ask.build),
}  # fmt: skip


def build(studio: Studio) -> None:
    """The whole page of a studio."""
    ui.add_css(STYLE)
    ui.colors(primary="#3556c8", negative="#b3261e", positive="#1e7a3c")
    bar = ui.header(elevated=False).classes("bar q-py-none")
    with bar, ui.row().classes("page items-center no-wrap").style("padding-top: 0; padding-bottom: 0"):
        ui.label("fuse studio").classes("text-lg font-semibold whitespace-nowrap")
        with ui.tabs().props(BAR).classes("grow min-w-0") as tabs:
            for name, (icon, _) in TABS.items():
                ui.tab(name, icon=icon).mark(f"tab-{name}")
        with ui.element("div").classes("shrink-0"):
            live(lambda: studio.jobs.running, lambda: _running(studio))
    with ui.column().classes("page"), ui.tab_panels(tabs, value="Recipe", animated=False, keep_alive=True):
        for name, (_, make) in TABS.items():
            with ui.tab_panel(name), ui.column().classes("w-full gap-4"):
                make(studio)


def _running(studio: Studio) -> None:
    if job := studio.jobs.running:
        with ui.row().classes("items-center no-wrap gap-2"):
            ui.spinner(size="1.2em")
            ui.label(job.name).classes("quiet whitespace-nowrap")
