"""One question about one image to several folders, one model after another in memory."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fuse.errors import RecipeError
from fuse.host import open_named
from fuse.recipe_yaml import LoadedRecipe
from fuse.studio.jobs import Job, problem_of
from fuse.suggest import did_you_mean

HEAVY = 1 << 28  # bytes of a model that is worth looking for, which takes half a second


@dataclass(frozen=True)
class Answer:
    """What one folder said. text: the answer, or "" with a `problem`. picture: where it looked, a PNG, or None."""

    name: str
    folder: Path
    text: str = ""
    problem: str = ""
    seconds: float = 0.0
    picture: Path | None = None


def folder_of(loaded: LoadedRecipe, name: str) -> Path:
    """The folder that answers for a member; weights that are elsewhere are fetched.

    Raises RecipeError for a name that is no member's, for a base with an adapter, which no folder holds, and as
    `open_named` does.
    """
    from fuse.checkpoint import fetch

    if name not in loaded.recipe.members:
        raise loaded.error(("members",), f"{name!r} is not a member ({did_you_mean(name, loaded.recipe.members)})")
    member = open_named(loaded, ("members", name), name)
    if member.adapter:
        told = f"{name} is a base with an adapter, which no folder holds"
        raise loaded.error(("members", name), told, "merge it into a folder of its own first")
    fetch(member.checkpoint)
    return member.folder


def ask_all(
    folders: Mapping[str, Path | RecipeError], question: str, images: Sequence[Path], job: Job, *,
    max_tokens: int = 128, pictures: Path | None = None,
) -> list[Answer]:  # fmt: skip
    """The greedy answer of every folder, by its name; `job.result` grows as they come.

    A folder that does not answer, or whose error is given, has the sentence as its `problem`, and the others go on.
    pictures: a folder in which fused models draw where they looked. Raises RecipeError for an empty question, and for
    an image that does not open.
    """
    from fuse.images import open_image

    if not question.strip():
        raise RecipeError("the question is empty")
    for image in images:
        open_image(image)
    job.total, job.result = len(folders), []
    for name, folder in folders.items():
        job.result.append(_answer(name, folder, question, tuple(images), max_tokens, pictures))
        job.advance(1)
        if not isinstance(folder, RecipeError) and _size(folder) > HEAVY:
            gc.collect()  # the model that was there
    return job.result


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _answer(
    name: str, folder: Path | RecipeError, question: str, images: tuple[Path, ...], max_tokens: int,
    pictures: Path | None,
) -> Answer:  # fmt: skip
    from fuse.ask import ask, load

    if isinstance(folder, RecipeError):
        return Answer(name, Path(), problem=problem_of(folder))
    began = time.monotonic()
    try:
        answerer = load(folder, images=images)
        draws = pictures is not None and bool(images) and answerer.model.config.model_type == "fuse"
        if draws and pictures is not None:
            from fuse.attend import attended_answer

            picture = pictures / f"{name}.png"
            text, files = attended_answer(answerer, question, images, picture, max_tokens=max_tokens)
            return Answer(name, folder, text, seconds=time.monotonic() - began, picture=files[0])
        text = ask(answerer, question, images=images, max_tokens=max_tokens)
        return Answer(name, folder, text, seconds=time.monotonic() - began)
    except Exception as error:  # one answer is missing, the others are shown
        return Answer(name, folder, problem=problem_of(error))
