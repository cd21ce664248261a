"""SliME: original LLaVA with a text-guided sampler of local patches and, mostly, a gated projector."""

from dataclasses import replace

from fuse.families.family import Part
from fuse.families.llava_original import FAMILY as LLAVA

# A gated projector is LLaVA's MLP under `projection`, a resampler under `attn`, and the gate.
_SAMPLER: dict[str, tuple[Part, str]] = {
    "model.sampler.": ("projector", "sampler."),
    "model.mm_projector.projection.0.": ("projector", "multi_modal_projector.linear_1."),
    "model.mm_projector.projection.2.": ("projector", "multi_modal_projector.linear_2."),
}

FAMILY = replace(
    LLAVA,
    prefixes={**LLAVA.prefixes, **_SAMPLER},
    # The noise of the gate in training: always 0 and 1.
    buffers=(*LLAVA.buffers, r"model\.mm_projector\.(mean|std)"),
)
