"""InternVL as its authors publish it (remote code): fused q, k, v in the tower, a numbered projector."""

from fuse.families.family import Family

FAMILY = Family(
    model_type="internvl_chat",
    prefixes={
        "language_model.": ("language", ""),
        "vision_model.": ("encoder", "vision_tower.original."),
        "mlp1.": ("projector", "multi_modal_projector.original."),
        "mlp1.0.": ("projector", "multi_modal_projector.layer_norm."),
        "mlp1.1.": ("projector", "multi_modal_projector.linear_1."),
        "mlp1.3.": ("projector", "multi_modal_projector.linear_2."),
    },
    text="llm_config",
    text_type="qwen2",
    ties="text",
    native=False,
)
