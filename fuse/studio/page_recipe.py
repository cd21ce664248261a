"""The page's first tab: members, method and eyes as a form, beside the text of the recipe."""

from collections.abc import Callable
from functools import partial

from nicegui import events, ui

from fuse.methods.table import METHODS
from fuse.recipe_yaml import LoadedRecipe
from fuse.studio import form
from fuse.studio.parts import SECONDS, attempt, live, progress, said, sheet, state_of
from fuse.studio.state import Studio

PATH = "folder, or hub id such as org/name"

# tells the server whether the reader likes dark pages, which the rest of the page knows by itself
SCHEME = (
    "const wish = matchMedia('(prefers-color-scheme: dark)'), tell = () => emitEvent('scheme', wish.matches);"
    "wish.addEventListener('change', tell); tell()"
)


def build(studio: Studio) -> None:
    """The tab."""
    with ui.element("div").classes("two"):
        with ui.column().classes("w-full gap-4"):
            _members(studio)
            _how(studio)
            _file(studio)
        with sheet("Recipe", "The form writes it, and it may be written by hand."):
            _editor(studio)
            live(lambda: (studio.text, studio.mistake, *state_of(studio.planning)), lambda: _verdict(studio))


def _editor(studio: Studio) -> None:
    editor = ui.codemirror(studio.text, language="YAML", line_wrapping=True, indent="  ").classes("editor")
    editor.props('aria-label="Recipe"').mark("recipe")

    def typed(event: events.ValueChangeEventArguments) -> None:
        if event.value != studio.text:
            studio.edit(event.value)

    def look() -> None:
        if editor.value != studio.text:
            editor.value = studio.text

    editor.on_value_change(typed)
    ui.timer(SECONDS, look)
    ui.on("scheme", lambda event: editor.set_theme("basicDark" if event.args else "basicLight"))
    ui.run_javascript(SCHEME)


def _verdict(studio: Studio) -> None:
    """What the text is worth: mistakes, a refusal, or what it makes."""
    plan, job = studio.plan(), studio.planning
    if not studio.text.strip():
        said("Add a member, open a recipe, or write one here.", "wait")
    elif studio.mistake:
        said(studio.mistake, "bad")
    elif job and job.state in {"failed", "stopped"}:
        said(job.problem, "bad")
    elif plan:
        said(plan.headline, "good")
    else:
        said("Planning ...", "wait")


def _members(studio: Studio) -> None:
    with sheet("Members", "Checkpoints that take part, and how much of each."):
        live(lambda: (studio.text, studio.mistake), lambda: _rows(studio))
        with ui.row().classes("w-full items-center no-wrap gap-2"):
            path = ui.input(placeholder=PATH).props('dense outlined aria-label="Folder or hub id of a member"')
            path.classes("grow").mark("member")

            def add() -> None:
                studio.add(path.value or "")
                path.value = ""

            path.on("keydown.enter", add)
            ui.button("Add", on_click=add).props("unelevated no-caps").mark("add")
        progress(lambda: studio.opening, studio.jobs.stop)


def _rows(studio: Studio) -> None:
    if studio.loaded is None:
        ui.label("None yet." if not studio.text.strip() else "The recipe has mistakes.").classes("quiet")
        return
    shown = form.form_of(studio.loaded)
    for row in shown.members:
        with ui.element("div").classes("member"):
            with ui.column().classes("gap-0 min-w-0"):
                with ui.row().classes("items-center gap-2 no-wrap"):
                    ui.label(row.name).classes("font-medium")
                    if row.sees:
                        ui.icon("visibility", size="1.1em").tooltip("its eyes are in the output")
                ui.label(row.path).classes("quiet")
            _weight(studio, row, weighs=shown.weighs)
            with (
                ui.button(icon="more_vert", color=None).props(f'flat dense round aria-label="More about {row.name}"'),
                ui.menu(),
            ):
                ui.menu_item("Make it the base", partial(_change, studio, form.with_base_of, row.name))
                ui.menu_item("Remove", partial(_change, studio, form.without_member, row.name))


def _change(studio: Studio, change: Callable[[LoadedRecipe, str], str], name: str) -> None:
    attempt(lambda: studio.change(lambda loaded: change(loaded, name)))


def _weight(studio: Studio, row: form.Row, *, weighs: bool) -> None:
    """The member's number; where it has none or more than one, the recipe's text says more."""
    if not weighs:
        ui.label("")
        return

    def typed(event: events.ValueChangeEventArguments) -> None:
        if event.value != row.weight:
            attempt(lambda: studio.change(lambda loaded: form.with_weight(loaded, row.name, event.value)))

    number = ui.number(value=row.weight, step=0.1, on_change=typed).props("dense outlined debounce=500")
    number.props(f'aria-label="Weight of {row.name}"').mark(f"weight-{row.name}")


def _how(studio: Studio) -> None:
    with sheet("How they are put together"):
        live(lambda: (studio.text, studio.mistake), lambda: _controls(studio))


def _controls(studio: Studio) -> None:
    if studio.loaded is None:
        ui.label("Choose members first.").classes("quiet")
        return
    shown = form.form_of(studio.loaded)
    methods = list(dict.fromkeys([*form.NATIVE, shown.method]))
    ui.select(methods, value=shown.method, label="Method", on_change=lambda event: _chosen(studio, event.value)).props(
        "dense outlined"
    ).classes("w-full").mark("method")
    ui.label(f"{METHODS[shown.method].doc}; base: {METHODS[shown.method].base}").classes("quiet")
    base = ui.input("Base, the language model that they share", value=shown.base, placeholder=PATH)
    base.props("dense outlined debounce=600").classes("w-full").mark("base")
    base.on_value_change(lambda event: _change(studio, form.with_base, studio.place(event.value or "")))
    names = list(dict.fromkeys([*shown.eyes, *(row.name for row in shown.members)]))
    ui.select(
        names, value=list(shown.eyes), multiple=True, label="Eyes, in this order",
        on_change=lambda event: attempt(lambda: studio.change(lambda loaded: form.with_eyes(loaded, event.value))),
    ).props("dense outlined use-chips").classes("w-full").mark("eyes")  # fmt: skip
    ui.label("Two or more: their tokens stand one after another, and the output is a fused model.").classes("quiet")


def _chosen(studio: Studio, method: str) -> None:
    attempt(lambda: studio.change(lambda loaded: form.with_method(loaded, method)))


def _file(studio: Studio) -> None:
    with sheet("File"):
        with ui.row().classes("w-full items-center no-wrap gap-2"):
            given = ui.input("Recipe file").props("dense outlined").classes("grow").mark("file")
            ui.button(
                "Open", color=None, on_click=lambda: attempt(lambda: studio.open_recipe(given.value or ""))
            ).props("outline no-caps")
            ui.button("Save", color=None, on_click=lambda: _save(studio, given.value or "")).props("outline no-caps")
        live(lambda: studio.file, lambda: _led(studio))


def _led(studio: Studio) -> None:
    ui.label(f"Paths lead from {studio.file.parent}.").classes("quiet")


def _save(studio: Studio, path: str) -> None:
    if attempt(lambda: studio.save(path)):
        ui.notify(f"Saved {path.strip()}", type="positive")
