"""What the page shows and what it may do: one for the process, so that a page loaded again finds all as it was."""

import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fuse import interruption, torchvision_shim
from fuse.errors import FuseError, MachineError, RecipeError, printable
from fuse.recipe_edit import recipe_text
from fuse.recipe_yaml import LoadedRecipe, load_recipe, parse_recipe
from fuse.sizes import size_text
from fuse.studio import form
from fuse.studio.asked import Answer, ask_all, folder_of
from fuse.studio.inspected import Asked, inspect_into
from fuse.studio.jobs import Job, Jobs
from fuse.studio.merged import Made, merge_into
from fuse.studio.planned import Planned, planned

RECIPES = frozenset({".yaml", ".yml", ".json"})
NAME = "recipe.yaml"  # what the recipe is called until it is saved
Change = Callable[[LoadedRecipe], str]


@dataclass(frozen=True)
class Opened:
    """A checkpoint that was opened, in a few words."""

    path: str
    sees: bool
    told: str


class Studio:
    """The recipe, the jobs about it, and what came of them.

    file: where the recipe stands, or would: its relative paths lead from there. text: of the recipe, right or wrong.
    loaded: the recipe, where the text is one; mistake: the sentences, where it is not. here: where relative paths lead
    from that somebody types. scratch: a folder for uploads, reports and pictures, which goes when the studio ends.
    """

    def __init__(self, scratch: Path, here: Path) -> None:
        self.scratch, self.here, self.file = scratch, here, here / NAME
        self.jobs = Jobs()
        self.text, self.mistake = "", ""
        self.loaded: LoadedRecipe | None = None
        self.opening: Job | None = None
        self.planning: Job | None = None
        self.merging: Job | None = None
        self.inspecting: Job | None = None
        self.asking: Job | None = None
        self.made: list[Made] = []
        self.image: Path | None = None
        self._lock = threading.RLock()
        self._numbers = iter(range(1, 1 << 31))

    def start(self, paths: Sequence[str], base: str | None) -> None:
        """Begin with a recipe file, or with member folders and their base. Raises RecipeError and as opening does."""
        recipes = [path for path in paths if Path(path).suffix in RECIPES]
        if recipes and (len(paths) > 1 or base):
            raise RecipeError("a recipe stands alone: it names its members and its base", where=recipes[0])
        if recipes:
            self.open_recipe(recipes[0])
            return
        for path in paths:
            self._add(path)
        if base and paths:
            self.change(lambda loaded: form.with_base(loaded, self.place(base)))
        elif base:
            raise RecipeError("--base is the base of members", hint="name their folders too")

    def edit(self, text: str) -> None:
        """Take another text for the recipe; where it is one, its plan is made."""
        with self._lock:
            loaded, mistake = None, ""
            try:
                loaded = parse_recipe(self.file, text) if text.strip() else None
            except FuseError as error:
                mistake = str(error)
            self._drop_plan()
            if loaded is not None:
                self.planning = self.jobs.submit("plan", lambda _job, loaded=loaded: planned(loaded))
            self.loaded, self.mistake, self.text = loaded, mistake, text  # the text last, which the page looks at

    def change(self, change: Change) -> None:
        """Have the form change the recipe. Raises RecipeError where there is none, or the change makes none."""
        with self._lock:
            self.edit(change(self.recipe()))

    def recipe(self) -> LoadedRecipe:
        """The recipe. Raises RecipeError where the text is none."""
        if self.loaded is None:
            raise RecipeError("there is no recipe yet", hint="add a member") if not self.text.strip() else RecipeError(
                "the recipe has mistakes", hint="they are told beside it")  # fmt: skip
        return self.loaded

    def add(self, path: str) -> Job:
        """Open a checkpoint and make it a member."""
        self.opening = self.jobs.submit(f"open {printable(path)}", lambda _job: self._add(path))
        return self.opening

    def _add(self, path: str) -> Opened:
        opened = self._open(self.place(path))
        with self._lock:
            if not self.text.strip():
                self.edit(form.begun(self.file, opened.path, sees=opened.sees))
            else:
                self.change(lambda loaded: form.with_member(loaded, opened.path, sees=opened.sees))
        return opened

    def _open(self, path: str) -> Opened:
        from fuse.anatomy import open_member

        if not path:
            raise RecipeError("a member is a folder or a hub id such as org/name")
        here = os.path.exists(self.here / path)  # noqa: PTH110 - Path.exists raises where a name is too long
        within = self.file.parent if self.text.strip() or here else None  # else there is no recipe to speak of
        member = open_member(form.name_of(path, ()), path, revision=None, relative_to=within)
        sight = "sees" if member.sees else "text only"
        return Opened(path, member.sees, f"{member.family.model_type}, {sight}, {size_text(member.checkpoint.nbytes)}")

    def place(self, path: str) -> str:
        """A path as the recipe writes it: from its own folder. Hub ids and addresses stay as they are."""
        path = path.strip()
        given = Path(path).expanduser()
        if path.startswith("~") or (self.file.parent != self.here and not given.is_absolute()):
            here = self.here / given
            return os.path.relpath(here, self.file.parent) if here.exists() else str(given)
        return path

    def open_recipe(self, path: str) -> None:
        """Read a recipe from a file, which it then stands in. Raises as `load_recipe` does."""
        file = (self.here / Path(path.strip()).expanduser()).absolute()
        loaded = load_recipe(file)
        with self._lock:
            self.file = file
            self.edit(loaded.text)

    def save(self, path: str) -> Path:
        """Write the recipe into a new file, from where its paths lead to the same folders. Raises RecipeError for a
        file that is there, MachineError where it cannot be written."""
        if not path.strip():
            raise RecipeError("the file has no name", hint="such as recipe.yaml")
        file = (self.here / Path(path.strip()).expanduser()).absolute()
        text = recipe_text(self.recipe(), file.parent)
        try:
            with file.open("x", encoding="utf-8") as out:
                out.write(text)
        except FileExistsError:
            raise RecipeError("the file is there already", where=file, hint="name another") from None
        except OSError as error:
            raise MachineError(f"cannot be written ({error.strerror})", where=file) from None
        return file

    def merge(self, out: str) -> Job:
        """Run the recipe into a new folder. Raises RecipeError where there is none."""
        loaded = self.recipe()

        def work(job: Job) -> Made:
            _import("torch")
            made = merge_into(loaded, str(self.here / Path(out.strip()).expanduser()) if out.strip() else "", job)
            self.made.append(made)
            return made

        self.merging = self.jobs.submit("merge", work)
        return self.merging

    def inspect(self, kind: str, *, images: str = "", question: str = "") -> Job:
        """Make a report of `fuse inspect`; the job's result is its page."""
        folder = self.scratch / "reports" / str(next(self._numbers))
        given = self.here / Path(images.strip()).expanduser() if images.strip() else None
        asked = Asked(self.recipe(), given, self.image, question)

        def work(job: Job) -> Path:
            _import(*(("torch", "transformers") if kind != "tokens" else ()))
            return inspect_into(kind, asked, folder, job)

        self.inspecting = self.jobs.submit(f"inspect {kind}", work)
        return self.inspecting

    def ask(self, names: Sequence[str], folders: Sequence[str], question: str, *, most: int, draw: bool) -> Job:
        """Ask members by name, and folders, about the image that was uploaded last; none where there is none."""
        loaded, images = self.loaded, [self.image] if self.image else []
        pictures = self.scratch / "looks" / str(next(self._numbers))

        def work(job: Job) -> list[Answer]:
            _import("torch", "transformers")
            asked: dict[str, Path | RecipeError] = {}
            for name in names:
                try:
                    asked[name] = folder_of(loaded, name) if loaded else RecipeError(f"{name} is no member")
                except FuseError as error:
                    asked[name] = RecipeError(str(error))
            for folder in folders:
                place = (self.here / Path(folder.strip()).expanduser()).absolute()
                asked[form.name_of(place.name, tuple(asked))] = place
            if not asked:
                raise RecipeError("nobody is asked", hint="choose members, or merge first")
            pictures.mkdir(parents=True)
            return ask_all(asked, question, images, job, max_tokens=most, pictures=pictures if draw else None)

        self.asking = self.jobs.submit("ask", work)
        return self.asking

    def take_image(self, name: str, data: bytes) -> None:
        """Keep an uploaded image for questions. Raises RecipeError where it does not open."""
        from fuse.images import open_image

        folder = self.scratch / "images" / str(next(self._numbers))
        folder.mkdir(parents=True)
        last = re.split(r"[/\\]", name)[-1]
        file = folder / (re.sub(r"[^\w.-]+", "_", last, flags=re.ASCII)[-80:].lstrip(".-") or "image")
        file.write_bytes(data)
        try:
            open_image(file)
        except FuseError as error:
            file.unlink()
            raise RecipeError(str(error).removeprefix(f"{folder}{os.sep}")) from None
        self.image = file

    def plan(self) -> Planned | None:
        """The plan of the text as it is, once it is made."""
        return self.planning.result if self.planning and self.planning.state == "done" else None

    def _drop_plan(self) -> None:
        if self.planning:
            if self.planning.state == "waiting":
                self.jobs.stop(self.planning)
            self.planning = None


def _import(*names: str) -> None:
    """Import libraries before a job needs them, whole: half of one, left by a job that was stopped, is none."""
    with interruption.held():
        if "torch" in names:
            torchvision_shim.install()
        for name in names:
            import_module(name)
