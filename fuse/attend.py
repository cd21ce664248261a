"""Where an answer looked: the attention of its words over every branch's visual tokens, drawn over the image.

The figure that VisionFuse opens with (arXiv 2412.01289, Figure 1): members of one family look at different regions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuse.ask import Answerer, inputs_of, pad_of
from fuse.errors import RecipeError
from fuse.images import open_image


def attended_answer(
    answerer: Answerer, question: str, images: tuple[Path, ...], picture: Path, *, max_tokens: int = 128,
    say: Callable[[str], None] | None = None,
) -> tuple[str, list[Path]]:  # fmt: skip
    """The greedy answer and one PNG for each image: `picture`, or with several images picture-1.png and so on.

    Raises RecipeError for a folder that is not fused, for a question without an image, and for a picture that cannot be
    written where it is asked for.
    """
    import torch

    from fuse.report.attention import answer_attention, attention_maps, attention_shares
    from fuse.report.overlay import overlay
    from fuse.report.watch import watching

    branches = getattr(answerer.model.config, "branches", None)
    if not branches:
        raise RecipeError(
            "--attention shows branches, and this folder is not a fused one", where=answerer.folder,
            hint="`output: {model: fuse}` in a recipe makes one, of a single encoder too",
        )  # fmt: skip
    if not images:
        raise RecipeError("--attention needs an image", hint="--image FILE")
    if picture.suffix.lower() != ".png":
        raise RecipeError("the attention picture is a PNG", where=picture, hint=f"name it {picture.stem}.png")
    inputs = inputs_of(answerer, question, images).to(answerer.model.device)
    start = inputs["input_ids"].shape[1]
    with torch.no_grad():
        prompt = answerer.model.read(**inputs)
        with watching(answerer.model.get_decoder()) as attentions:
            out = answerer.model.generate(
                **inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=pad_of(answerer.tokenizer),
                streamer=answerer.streamer(say),
            )  # fmt: skip
    words = out[0, start:]
    attentions = attentions[: len(words)]
    ids = inputs["input_ids"][0].tolist()
    tokens = {branch["name"]: branch["token_id"] for branch in branches}
    looks = {
        branch["name"]: [_region(one, branch.get("prune") or "pool") for one in prompt.seen[branch["name"]]]
        for branch in branches
    }
    maps = attention_maps(attentions, ids, tokens, looks)
    shares = attention_shares(answer_attention(attentions, len(ids)), ids, tokens)
    answer = answerer.tokenizer.decode(words, skip_special_tokens=True).strip()
    several = len(images) > 1
    files = [picture.with_stem(f"{picture.stem}-{i}") if several else picture for i in range(1, len(images) + 1)]
    for file, image, found in zip(files, images, maps, strict=True):
        overlay(open_image(image), found, file, answer, question=question, shares=None if several else shares)
    return answer, files


def _region(seen: Any, prune: str) -> Any:
    """Which cells of a branch's grid its kept tokens of one image speak for; unused placeholders speak for none."""
    from fuse.branches.cells import kept_cells
    from fuse.report.attention import Region

    cells = kept_cells(prune, seen.runs, seen.shares, seen.index.tolist(), seen.grid)
    unused = [()] * (seen.places - len(cells))
    grid = seen.grid[1:] if seen.grid is not None and seen.grid[0] == 1 else None
    return Region([*cells, *unused], grid)
