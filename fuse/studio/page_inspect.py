"""The tab of inspections: one kind at a time, and its report."""

from nicegui import ui

from fuse.studio.inspected import KINDS
from fuse.studio.parts import attempt, live, progress, sheet, state_of
from fuse.studio.state import Studio


def build(studio: Studio) -> None:
    """The tab."""
    with sheet("Inspect", "Whether the members fit together, before they are merged."):
        kind = ui.toggle(list(KINDS), value="tokens").props("no-caps unelevated spread").classes("w-full").mark("kind")
        ui.label().classes("quiet").bind_text_from(kind, "value", lambda name: KINDS[name].told)
        images = ui.input("Folder of images").props("dense outlined").classes("w-full").mark("images")
        images.bind_visibility_from(kind, "value", lambda name: name in {"encoders", "pairs"})
        question = ui.input("Question, about the image of the tab Ask").props("dense outlined").classes("w-full")
        question.bind_visibility_from(kind, "value", lambda name: name == "attention").mark("inspect-question")

        def run() -> None:
            attempt(lambda: studio.inspect(kind.value, images=images.value or "", question=question.value or ""))

        ui.button("Inspect", on_click=run).props("unelevated no-caps").mark("inspect")
        progress(lambda: studio.inspecting, studio.jobs.stop)
    live(lambda: state_of(studio.inspecting), lambda: _report(studio))


def _report(studio: Studio) -> None:
    job = studio.inspecting
    if job is None or job.state != "done":
        return
    place = job.result.relative_to(studio.scratch).as_posix()
    frame = ui.element("iframe").classes("report").props('sandbox="allow-same-origin" title="Report"').mark("report")
    frame.props["src"] = f"/{place}"
