"""Qwen2-VL, from old files with a flat config to today's."""

from fuse.families.family import Family

FAMILY = Family(
    model_type="qwen2_vl",
    prefixes={
        "model.": ("language", "model."),
        "model.language_model.": ("language", "model."),
        "lm_head.": ("language", "lm_head."),
        "visual.": ("encoder", "visual."),
        "model.visual.": ("encoder", "visual."),
        "visual.merger.": ("projector", "visual.merger."),
        "model.visual.merger.": ("projector", "visual.merger."),
    },
    text="text_config",
    text_type="qwen2_vl_text",
    ties="either",
    buffers=(r"(model\.)?visual\.rotary_pos_emb\.inv_freq",),
)
