"""How many visual tokens an image of a given size becomes in each branch, from configs alone, and what they cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fuse import families
from fuse.branches import native_table
from fuse.branches.anyres import Size
from fuse.branches.budget import share
from fuse.branches.original_tokens import original_tokens
from fuse.errors import RecipeError
from fuse.families.family import Basis
from fuse.fused import FusedBranch
from fuse.image_files import Sizes, Written
from fuse.native_tokens import NATIVE
from fuse.plan import Plan
from fuse.safetensors_header import DTYPE_BYTES, FLOAT_BYTES

DEFAULT_SIZE: Size = (1024, 768)  # a photograph of middling size: our choice
# config classes' defaults of max_position_embeddings, for configs that leave it out
CONTEXT = {
    "llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen2_vl_text": 32768, "qwen2_5_vl_text": 32768, "qwen3": 32768,
    "gemma": 8192, "gemma2": 8192, "gemma3_text": 131072, "phi3": 4096, "smollm3": 32768, "cohere": 8192,
    "cohere2": 8192, "gpt2": 1024, "opt": 2048,
}  # fmt: skip


def written(branch: FusedBranch, size: Size) -> Written | None:
    """An image of (width, height) as the branch writes it without a budget; None where only the built encoder knows.

    Of SliME, which chooses by the question, the most. Raises RecipeError for an image that the member's class refuses.
    """
    if branch.kind == "native" and branch.member is not None:
        return NATIVE[branch.member.family.model_type](Sizes(branch.config, branch.member.folder), size)
    if branch.kind == "encoder":
        if isinstance(branch.config["projector"], Mapping):
            tokens = branch.config.get("tokens")
            return None if tokens is None else Written((tokens,)) if tokens else Written((), 1)  # a place that is empty
        return None if branch.grid is None else Written((math.prod(branch.grid),))
    tokens = original_tokens(branch.kind, branch.config, size)
    return Written((tokens,), 2 * bool(branch.config.get("mm_use_im_start_end")))


@dataclass(frozen=True)
class Seeing:
    """What one image costs one branch.

    full: tokens without a budget. kept: with it. None where it is not known. problem: why the image or the budget does
    not work. separator: tokens before the branch's own. positions, norm: as the recipe says them.
    """

    name: str
    kind: str
    encoder: str
    full: int | None
    kept: int | None
    markers: int
    prune: str
    problem: str = ""
    hint: str = ""
    separator: int = 0
    positions: str = "continued"
    norm: str = "none"


@dataclass(frozen=True)
class Cost:
    """What images cost the fused model.

    context: the host's length. cache: bytes of keys and values of one token. weights: bytes of the loaded model.
    """

    size: Size
    branches: tuple[Seeing, ...]
    context: int
    cache: int
    weights: int

    @property
    def visual(self) -> int:
        return sum(branch.kept or 0 for branch in self.branches)

    @property
    def left(self) -> int:
        """Tokens of the context that one image leaves."""
        return self.context - self.visual - sum(branch.markers + branch.separator for branch in self.branches)


def cost_of(plan: Plan, size: Size) -> Cost | None:
    """Visual tokens, context and memory at inference of a fused plan; None for a native output."""
    if plan.fused is None:
        return None
    mine, shared = _around(plan.fused.host_type), False
    seen: list[Seeing] = []
    for branch in plan.fused.branches:
        between = len(plan.fused.separators.get(branch.name, ()))
        one = replace(_seeing(branch, size), separator=between, positions=branch.positions, norm=branch.norm)
        if mine and branch.kind == "native" and _around(branch.config.get("model_type")) == mine:
            # The host's template writes these once, around all branches.
            one = replace(one, markers=max(0, one.markers - len(mine) * shared))
            shared = True
        seen.append(one)
    return Cost(size, tuple(seen), context_of(plan), cache_bytes(plan.host.basis, _dtype(plan)), loaded_bytes(plan))


def _around(kind: object) -> tuple[str, ...]:
    """The markers that a class's chat template writes around an image."""
    row = native_table.NATIVE.get(str(kind))
    return tuple(token for side in row.around for token in side) if row else ()


def loaded_bytes(plan: Plan) -> int:
    """The weights in memory: all floats in one dtype, the output's or else that of the host's embedding."""
    size = FLOAT_BYTES[_dtype(plan)]
    return sum(math.prod(r.shape) * size if r.dtype in FLOAT_BYTES else r.nbytes for r in plan.rows)


def _seeing(branch: FusedBranch, size: Size) -> Seeing:
    try:
        found = written(branch, size)
    except RecipeError as error:
        return Seeing(branch.name, branch.kind, encoder_name(branch), 0, 0, 0, "", error.problem, error.hint)
    full = found.tokens if found else None
    kept, problem, hint = branch.max_tokens, "", ""
    if found is not None:
        try:
            kept = sum(share(found.runs, branch.max_tokens))
        except RecipeError as error:
            problem, hint = error.problem, error.hint
    return Seeing(
        branch.name, branch.kind, encoder_name(branch), full, kept, found.markers if found else 0,
        branch.prune if branch.max_tokens is not None else "", problem, hint,
    )  # fmt: skip


def encoder_name(branch: FusedBranch) -> str:
    """What the branch sees with, in a few words."""
    config = branch.config
    if branch.kind == "encoder":
        return f"{config.get('library')} {config.get('architecture')}"
    if branch.kind == "native" and branch.member is not None:
        vision = config.get(branch.member.family.vision)
        kind = vision.get("model_type") if isinstance(vision, Mapping) else None
        return str(kind or branch.member.family.model_type)
    towers = config.get("towers", {})
    return " + ".join(str(tower.get("model_type")) for tower in towers.values())


def context_of(plan: Plan) -> int:
    """The longest prompt that the host's positions hold."""
    host, where = plan.host, str(plan.host.folder)
    text = families.text_config(host.checkpoint.config, host.family, where)
    found = text.get("max_position_embeddings", text.get("n_positions"))
    if type(found) is int and found > 0:
        return found
    kind = families.text_type_of(host.checkpoint.config, host.family, where)
    return CONTEXT.get(f"{kind}_text", CONTEXT.get(kind, 2048))


def cache_bytes(basis: Basis, dtype: str) -> int:
    """Keys and values of one token in every layer."""
    return 2 * basis.layers * basis.kv_heads * basis.head_dim * DTYPE_BYTES[dtype]


def _dtype(plan: Plan) -> str:
    return next(row.dtype for row in plan.rows if row.canonical == plan.host.text.embedding)


def check_cost(cost: Cost) -> None:
    """RecipeError where a budget does not work for this image, or the image leaves no room for words."""
    for branch in cost.branches:
        if branch.problem:
            raise RecipeError(branch.problem, where=f"vision.{branch.name}", hint=branch.hint)
    if cost.left <= 0:
        width, height = cost.size
        raise RecipeError(
            f"one image of {width}x{height} pixels takes {cost.visual:,} visual tokens, and the context holds "
            f"{cost.context:,}", hint="`max_tokens` on a branch, a smaller image, or fewer branches",
        )  # fmt: skip
