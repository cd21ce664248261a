"""Small pieces that the page is made of."""

from collections.abc import Callable, Sequence

from nicegui import ui

from fuse.errors import FuseError
from fuse.studio.jobs import OVER, Job

SECONDS = 0.25  # between two looks at what changed


def live(key: Callable[[], object], build: Callable[[], None]) -> None:
    """What `build` makes, made anew whenever `key` gives something else."""
    box = ui.column().classes("w-full gap-2")
    seen: list[object] = []

    def look() -> None:
        if (found := key()) not in seen:
            seen[:] = [found]
            box.clear()
            with box:
                build()

    look()
    ui.timer(SECONDS, look)


def attempt(act: Callable[[], object]) -> bool:
    """Do what a control asks for; a refusal is shown, and False."""
    try:
        act()
    except FuseError as error:
        ui.notify(str(error), type="negative", multi_line=True, close_button="Close", timeout=10_000)
        return False
    return True


def sheet(title: str, about: str = "") -> ui.card:
    """A card with a title."""
    card = ui.card().classes("sheet")
    with card:
        ui.label(title).classes("title").props('role="heading" aria-level="2"')
        if about:
            ui.label(about).classes("quiet")
    return card


def said(text: str, kind: str) -> None:
    """A sentence on its own ground. kind: good, bad or wait."""
    ui.label(text).classes(f"said {kind}").props(f'role="{"alert" if kind == "bad" else "status"}"')


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows of text under their names."""
    with ui.element("div").classes("scroll"), ui.element("table").classes("rows"):
        with ui.element("thead"), ui.element("tr"):
            for cell in head:
                with ui.element("th").props('scope="col"'):
                    ui.label(cell)
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for cell in row:
                        with ui.element("td"):
                            ui.label(cell)


def state_of(job: Job | None) -> tuple[object, ...]:
    """What to look at for a change of a job's state."""
    return (id(job), job.state, job.problem) if job else ()


def progress(job: Callable[[], Job | None], stop: Callable[[Job], None]) -> None:
    """A job that waits or runs: its name, how far it is, and a way to end it. One that failed: its sentence."""

    def build() -> None:
        now = job()
        if now is None:
            return
        if now.state in {"failed", "stopped"}:
            said(now.problem, "bad")
        if now.state in OVER:
            return
        with ui.row().classes("w-full items-center no-wrap"):
            ui.spinner(size="1.4em")
            ui.label(now.name if now.state == "running" else f"{now.name} waits for what was asked before").classes(
                "quiet"
            )
            ui.space()
            ui.button("Stop", color=None, on_click=lambda: stop(now)).props("outline dense no-caps")
        bar = ui.linear_progress(0, show_value=False, size="6px").props("rounded")
        bar.bind_visibility_from(now, "total")
        ui.timer(SECONDS, lambda: bar.set_value(min(1.0, now.done / max(now.total, 1))))

    live(lambda: state_of(job()), build)
