"""Where an answer looked: the attention of its words over every branch's visual tokens, drawn over the image.

The figure that VisionFuse opens with (arXiv 2412.01289, Figure 1): members of one family look at different regions.
"""

from collections.abc import Callable
from pathlib import Path

from fuse import strict_json
from fuse.ask import Answerer, inputs_of
from fuse.errors import RecipeError
from fuse.images import open_image
from fuse.sizes import counted


def check_attention(folder: Path, images: tuple[Path, ...], picture: Path) -> None:
    """What can be wrong before a model is loaded.

    Raises RecipeError for a folder that is not fused, for a question without an image, and for a picture that is no PNG
    or would lie in no folder.
    """
    if strict_json.read_object(folder / "config.json").get("model_type") != "fuse":
        raise RecipeError(
            "--attention shows branches, and this folder is not a fused one", where=folder,
            hint="`output: {model: fuse}` in a recipe makes one, of a single encoder too",
        )  # fmt: skip
    if not images:
        raise RecipeError("--attention needs an image", hint="--image FILE")
    if picture.suffix.lower() != ".png":
        raise RecipeError("the attention picture is a PNG", where=picture, hint=f"name it {picture.stem}.png")
    if not picture.parent.is_dir():
        raise RecipeError("there is no such folder for the attention picture", where=picture.parent)
    for file in _files(picture, len(images)):
        if file.exists() and any(image.exists() and image.samefile(file) for image in images):
            raise RecipeError("the attention picture would be written over an image", where=file, hint="name another")


def _files(picture: Path, images: int) -> list[Path]:
    """One file for each image: `picture`, or with several images picture-1.png and so on."""
    return [picture] if images == 1 else [picture.with_stem(f"{picture.stem}-{i}") for i in range(1, images + 1)]


def attended_answer(
    answerer: Answerer, question: str, images: tuple[Path, ...], picture: Path, *, max_tokens: int = 128,
    say: Callable[[str], None] | None = None,
) -> tuple[str, list[Path]]:  # fmt: skip
    """The greedy answer and one PNG for each image: `picture`, or with several images picture-1.png and so on.

    Raises RecipeError as `check_attention` does, MachineError where the picture cannot be written.
    """
    from fuse.align.attention.answer import fused_looks, hear
    from fuse.branches.places import canvas
    from fuse.report.attention import attention_shares
    from fuse.report.overlay import overlay

    check_attention(answerer.folder, images, picture)
    inputs = inputs_of(answerer, question, images).to(answerer.model.device)
    heard = hear(answerer, inputs, max_tokens=max_tokens, say=say)
    tokens = {branch["name"]: branch["token_id"] for branch in answerer.model.config.branches}
    shares = attention_shares(heard.paid, heard.ids, tokens)
    answer = answerer.tokenizer.decode(heard.words, skip_special_tokens=True).strip()
    pictures = [open_image(file) for file in images]
    looks = fused_looks(answerer, heard, pictures)
    files = _files(picture, len(images))
    for i, (file, image) in enumerate(zip(files, pictures, strict=True)):
        mine = {name: some[i] for name, some in looks.items()}
        maps = {
            name: canvas(look.paid, look.boxes, image.size)
            for name, look in mine.items() if look.paid is not None and look.boxes is not None
        }  # fmt: skip
        notes = {name: counted(look.tokens, "token") for name, look in mine.items()}
        overlay(image, maps, file, answer, question=question, shares=None if len(images) > 1 else shares, notes=notes)
    return answer, files
