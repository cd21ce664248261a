"""The reports of `fuse inspect` for the members of a recipe, each into a folder that the page shows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.errors import RecipeError
from fuse.recipe_yaml import LoadedRecipe
from fuse.studio.asked import folder_of
from fuse.studio.jobs import Job


@dataclass(frozen=True)
class Asked:
    """What an inspection is about. images: a folder of images. image, question: what models are asked."""

    loaded: LoadedRecipe
    images: Path | None = None
    image: Path | None = None
    question: str = ""


@dataclass(frozen=True)
class Kind:
    """One kind of inspection. told: what it says, and what it reads. needs: fields of `Asked`, besides the recipe."""

    told: str
    run: Callable[[Asked, Job], tuple[Mapping[str, Any], dict[str, Any]]]
    needs: tuple[str, ...] = ()


def inspect_into(kind: str, asked: Asked, folder: Path, job: Job) -> Path:
    """Inspect the members and write the report into `folder`; the path of its page.

    Raises RecipeError where something that the kind needs is missing, MachineError without matplotlib, and what the
    inspection raises.
    """
    from fuse.report.html import prepare, write_report

    for need in KINDS[kind].needs:
        if not getattr(asked, need):
            raise RecipeError(f"{kind} needs {NEEDS[need]}")
    prepare(folder)
    document, more = KINDS[kind].run(asked, job)
    return write_report(document, folder, **more)


def places_of(loaded: LoadedRecipe, *, seeing: bool = False) -> list[str]:
    """Where the members lie, as `fuse inspect` takes them; seeing: only those whose eyes the recipe names.

    Raises RecipeError for a base with an adapter.
    """
    found, eyes = [], {branch.from_ for branch in loaded.recipe.vision or []}
    for name, given in loaded.recipe.members.items():
        if seeing and name not in eyes:
            continue
        if not given.path:
            told = f"{name} is a base with an adapter, which is inspected as part of a recipe only"
            raise loaded.error(("members", name), told, "deltas takes it")
        found.append(_place(loaded, given.path))
    return found


def base_of(loaded: LoadedRecipe) -> str | None:
    """Where the base lies, or None."""
    given = loaded.recipe.base
    return _place(loaded, given.path) if given and given.path else None


def _place(loaded: LoadedRecipe, path: str) -> str:
    here = loaded.folder / path
    return str(here) if here.exists() else path


def _tokens(asked: Asked, _job: Job) -> tuple[Mapping[str, Any], dict[str, Any]]:
    from fuse.align.tokens.document import inspect_tokens

    return inspect_tokens(places_of(asked.loaded), base=base_of(asked.loaded)), {}


def _deltas(asked: Asked, job: Job) -> tuple[Mapping[str, Any], dict[str, Any]]:
    from fuse.align.deltas.measure import bytes_of, measure
    from fuse.align.deltas.plan import delta_plan

    plan = delta_plan(asked.loaded)
    job.total = bytes_of(plan)
    return measure(plan, progress=job.advance), {}


def _encoders(asked: Asked, _job: Job) -> tuple[Mapping[str, Any], dict[str, Any]]:
    from fuse.align.encoders.compare import compare

    places = places_of(asked.loaded, seeing=True)
    if not places:
        raise RecipeError("encoders compares the members whose eyes the recipe names, and it names none")
    compared = compare(places, asked.images or Path())
    return compared.document, {"samples": compared.samples}


def _pairs(asked: Asked, _job: Job) -> tuple[Mapping[str, Any], dict[str, Any]]:
    from fuse.align.encoders.compare import Options
    from fuse.align.pairs.rank import rank

    base = base_of(asked.loaded)
    if base is None:
        raise RecipeError("pairs compares members with their base, and the recipe names none", hint="add `base:`")
    return rank(places_of(asked.loaded), base, asked.images, Options()), {}


def _attention(asked: Asked, _job: Job) -> tuple[Mapping[str, Any], dict[str, Any]]:
    from fuse.align.attention.document import inspect_attention

    folders = [folder_of(asked.loaded, name) for name in asked.loaded.recipe.members]
    found = inspect_attention(folders, asked.image or Path(), asked.question)
    return found.document, {"image": found.image}


NEEDS = {"images": "a folder of images", "image": "an image", "question": "a question"}
KINDS: Mapping[str, Kind] = {
    "tokens": Kind("Do their tokens and chat templates go together? Reads no weights.", _tokens),
    "deltas": Kind("How do their changes to the base lie to each other? Reads the weights once.", _deltas),
    "encoders": Kind("How alike do their encoders see the same images?", _encoders, ("images",)),
    "attention": Kind("Where does each look in an image when it answers?", _attention, ("image", "question")),
    "pairs": Kind("Which of them fit together best? One score, made of the measures above.", _pairs),
}
