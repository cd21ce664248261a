"""LLaVA-1.5 as transformers writes it, in the layouts of its Hub files."""

from fuse.families.family import Family, Part

# On disk: one module name per outer prefix. The tower of older files has CLIP's inner `vision_model.`.
SAVED: dict[str, tuple[Part, str]] = {
    "language_model.": ("language", ""),
    "vision_tower.": ("encoder", "vision_tower."),
    "vision_tower.vision_model.": ("encoder", "vision_tower."),
    "multi_modal_projector.": ("projector", "multi_modal_projector."),
}

# The names in memory, which releases 4.52 to 4.57 also wrote.
IN_MEMORY: dict[str, tuple[Part, str]] = {
    "model.language_model.": ("language", "model."),
    "lm_head.": ("language", "lm_head."),
    "model.vision_tower.": ("encoder", "vision_tower."),
    "model.vision_tower.vision_model.": ("encoder", "vision_tower."),
    "model.multi_modal_projector.": ("projector", "multi_modal_projector."),
}

# CLIP's and SigLIP's position_ids are a plain range; releases before transformers 4.31 stored them.
TOWER_BUFFERS = (r".*\.embeddings\.position_ids",)

FAMILY = Family(
    model_type="llava",
    prefixes={**SAVED, **IN_MEMORY},
    text="text_config",
    ties="either",
    buffers=TOWER_BUFFERS,
)
