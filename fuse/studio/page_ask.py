"""The tab of questions: an image, a question, and the answers of parents and fused model side by side."""

from base64 import b64encode
from pathlib import Path

from nicegui import events, ui

from fuse.errors import printable
from fuse.images import open_image
from fuse.studio.asked import Answer
from fuse.studio.parts import attempt, live, progress, sheet, state_of
from fuse.studio.state import Studio

LARGEST = 64 << 20  # bytes of an upload


def build(studio: Studio) -> None:
    """The tab."""
    with ui.element("div").classes("two"):
        with sheet("Image"):
            upload = ui.upload(
                label="Choose or drop an image", auto_upload=True, max_file_size=LARGEST, max_files=1,
                on_upload=lambda event: _take(studio, event),
                on_rejected=lambda: ui.notify(f"An image has at most {LARGEST >> 20} MiB.", type="negative"),
            )  # fmt: skip
            upload.props('accept="image/*" flat bordered').classes("w-full").mark("image")
            live(lambda: studio.image, lambda: _shown(studio))
        with sheet("Question"):
            question = ui.input("Question", placeholder="what is in the picture?").props("outlined").classes("w-full")
            question.mark("question")
            chosen: dict[str, ui.checkbox] = {}
            live(lambda: (studio.text, len(studio.made)), lambda: _whom(studio, chosen))
            other = ui.input("Another folder to ask").props("dense outlined").classes("w-full").mark("other")
            with ui.row().classes("w-full items-center"):
                most = ui.number("Longest answer, in tokens", value=64, min=1, max=8192, precision=0).classes("w-48")
                most.props("dense outlined")
                draw = ui.switch("Draw where fused models look").mark("draw")
                ui.space()
                ui.button("Ask", on_click=lambda: attempt(ask)).props("unelevated no-caps").mark("ask")
            progress(lambda: studio.asking, studio.jobs.stop)

    def ask() -> None:
        wanted = [name for name, box in chosen.items() if box.value]
        members = set(studio.recipe().recipe.members) if studio.loaded else set()
        folders = [*(one for one in wanted if one not in members), *filter(None, [(other.value or "").strip()])]
        names = [one for one in wanted if one in members]
        studio.ask(names, folders, question.value or "", most=int(most.value or 64), draw=bool(draw.value))

    live(lambda: (*state_of(studio.asking), _count(studio)), lambda: _answers(studio))


async def _take(studio: Studio, event: events.UploadEventArguments) -> None:
    data = await event.file.read()
    attempt(lambda: studio.take_image(event.file.name, data))
    event.sender.reset()  # pyright: ignore[reportAttributeAccessIssue]


def _shown(studio: Studio) -> None:
    if studio.image is None:
        ui.label("Without an image the models are asked the question alone.").classes("quiet")
        return
    picture = open_image(studio.image)
    ui.label(f"{studio.image.name}, {picture.width}x{picture.height}").classes("quiet").mark("image-name")
    picture.thumbnail((600, 600))
    ui.image(picture).classes("shown")


def _whom(studio: Studio, chosen: dict[str, ui.checkbox]) -> None:
    """A box for each member and for each folder that was made here."""
    chosen.clear()
    members = list(studio.loaded.recipe.members) if studio.loaded else []
    made = [str(made.folder) for made in studio.made]
    with ui.row().classes("gap-x-4 gap-y-0"):
        for name in members:
            chosen[name] = ui.checkbox(name, value=True).mark(f"who-{name}")
        for number, folder in enumerate(made):
            box = ui.checkbox(studio.made[number].folder.name, value=number == len(made) - 1)
            chosen[folder] = box.mark(f"who-{studio.made[number].folder.name}")
    if not chosen:
        ui.label("Members of the recipe and folders merged here can be asked.").classes("quiet")


def _count(studio: Studio) -> int:
    return len(studio.asking.result or ()) if studio.asking else 0


def _answers(studio: Studio) -> None:
    found = list(studio.asking.result or ()) if studio.asking else []
    if not found:
        return
    made = {one.folder for one in studio.made}
    with ui.element("div").classes("answers").mark("answers"):
        for one in found:
            _answer(one, fused=one.folder in made)
    for one in found:
        if one.picture is not None:
            _looked(one.name, one.picture)


def _answer(one: Answer, *, fused: bool) -> None:
    with ui.card().classes(f"sheet {'fused' * fused}").mark(f"answer-{one.name}"):
        ui.label(one.name).classes("title").props('role="heading" aria-level="3"')
        if one.problem:
            ui.label(one.problem).classes("said bad")
            return
        ui.label(printable(one.text) or "(an empty answer)").classes("answer")
        ui.label(f"{one.seconds:.1f} s with loading").classes("quiet")


def _looked(name: str, picture: Path) -> None:
    png = b64encode(picture.read_bytes()).decode()
    with sheet(f"Where {name} looked"):
        ui.element("img").classes("where").props(f'alt="Where {name} looked"').props["src"] = (
            f"data:image/png;base64,{png}"
        )
