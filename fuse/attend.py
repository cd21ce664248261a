"""Where an answer looked: the attention of its words over every branch's visual tokens, drawn over the image.

The figure that VisionFuse opens with (arXiv 2412.01289, Figure 1): members of one family look at different regions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuse import strict_json
from fuse.ask import Answerer, inputs_of, pad_of
from fuse.branches.cells import kept_cells
from fuse.branches.places import Boxes, canvas, grid_boxes
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
    import torch

    from fuse.report.attention import answer_attention, attention_shares
    from fuse.report.overlay import overlay
    from fuse.report.watch import watching

    check_attention(answerer.folder, images, picture)
    branches = answerer.model.config.branches
    processor: Any = answerer.processor
    inputs = inputs_of(answerer, question, images).to(answerer.model.device)
    apart = answerer.model.config.is_encoder_decoder
    start = 1 if apart else inputs["input_ids"].shape[1]
    with torch.no_grad():
        prompt, before = _read(answerer.model, inputs)
        with watching(answerer.model.get_decoder()) as attentions:
            out = answerer.model.generate(
                **inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=pad_of(answerer.tokenizer),
                streamer=answerer.streamer(say),
            )  # fmt: skip
    words = out[0, start:]
    attentions = attentions[before : before + len(words)]
    ids = inputs["input_ids"][0].tolist()
    tokens = {branch["name"]: branch["token_id"] for branch in branches}
    # a decoder beside its encoder looks at the prompt alone in every step, as another does in its first
    steps = [[step] for step in attentions] if apart else [attentions]
    paid = np.mean([answer_attention(some, len(ids)) for some in steps], axis=0)
    shares = attention_shares(paid, ids, tokens)
    pictures = [open_image(file) for file in images]
    maps: list[dict[str, Any]] = [{} for _ in pictures]
    for number, branch in enumerate(branches):
        own = paid[np.asarray(ids) == branch["token_id"]]
        for i, (image, seen) in enumerate(zip(pictures, prompt.seen[branch["name"]], strict=True)):
            prepared = processor.look(image)[number]
            cells = kept_cells(branch.get("prune") or "pool", seen.runs, seen.shares, seen.index.tolist(), seen.grid)
            boxes = prepared.places if prepared.places is not None else _boxes(prepared.grid)
            if boxes is not None and seen.chosen is not None:
                boxes = boxes[seen.chosen.cpu().numpy()]
            if boxes is not None:
                maps[i][branch["name"]] = canvas(*spread(own[: len(cells)], cells, boxes), image.size)
            own = own[seen.places :]
    answer = answerer.tokenizer.decode(words, skip_special_tokens=True).strip()
    several = len(images) > 1
    files = _files(picture, len(images))
    for i, (file, image, found) in enumerate(zip(files, pictures, maps, strict=True)):
        notes = {name: counted(len(seen[i].tokens), "token") for name, seen in prompt.seen.items()}
        overlay(image, found, file, answer, question=question, shares=None if several else shares, notes=notes)
    return answer, files


def _read(model: Any, inputs: Any) -> tuple[Any, int]:
    """The prompt with its visual tokens, and how many passes of the language model its grafts ask for meanwhile."""
    passes: list[None] = []
    hook = model.get_decoder().register_forward_pre_hook(lambda module, args: passes.append(None))
    try:
        return model.read(**inputs), len(passes)
    finally:
        hook.remove()


def _boxes(grid: tuple[int, int, int] | None) -> Boxes | None:
    """The boxes of a branch that says only that its tokens are the cells of one grid."""
    return grid_boxes(grid[1], grid[2]) if grid is not None and grid[0] == 1 else None


def spread(paid: NDArray[np.float64], cells: list[tuple[int, ...]], boxes: Boxes) -> tuple[NDArray[np.float64], Boxes]:
    """What each original token gets of what its kept token was paid, with that token's box.

    paid: [k], of the kept tokens. cells: for each, the original tokens it speaks for (`kept_cells`), which get equal
    parts. boxes: [n, 4], of all original tokens; of those that no kept token speaks for, nothing is returned.
    """
    parts = [(value / len(some), cell) for value, some in zip(paid, cells, strict=True) for cell in some]
    return np.array([value for value, _ in parts]), boxes[[cell for _, cell in parts]]
