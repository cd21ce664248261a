"""Tiny random multimodal models, one per model_type that transformers has a class for."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedModel

VOCAB = 96
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**TEXT, "num_key_value_heads": 2}
TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
CLIP = {"model_type": "clip_vision_model", **TOWER, "projection_dim": 16}
SIGLIP = {"model_type": "siglip_vision_model", **TOWER}
LLAMA = {"model_type": "llama", **GROUPED}
QWEN2 = {"model_type": "qwen2", **GROUPED}
GEMMA = {**GROUPED, "head_dim": 8}
IMAGE = {"image_token_index": 90}
IMAGE_ID = {"image_token_id": 90}
PINPOINTS = [[28, 28], [28, 56], [56, 28]]
QWEN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}}
QWEN_IDS = {**IMAGE_ID, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
QWEN_TOWER = {
    "depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
QFORMER = {
    "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "encoder_hidden_size": 16, "max_position_embeddings": 64,
}  # fmt: skip
OPT = {
    "model_type": "opt", "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "num_decoder_layers": 2, "pad_token_id": 0, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "llava": {"text_config": LLAMA, "vision_config": CLIP, "image_seq_length": 4, **IMAGE},
    "llava_next": {
        "text_config": LLAMA, "vision_config": CLIP, "image_seq_length": 4, "image_grid_pinpoints": PINPOINTS, **IMAGE,
    },
    "llava_onevision": {
        "text_config": QWEN2, "vision_config": SIGLIP, "image_grid_pinpoints": PINPOINTS, "video_token_index": 91,
        **IMAGE,
    },
    "vipllava": {
        "text_config": LLAMA, "vision_config": CLIP, "image_seq_length": 4, "vision_feature_layers": [-1, -2, 0],
        **IMAGE,
    },
    "internvl": {
        "text_config": QWEN2,
        "vision_config": {"model_type": "internvl_vision", **TOWER, "image_size": [28, 28], "patch_size": [14, 14]},
        "image_seq_length": 1, "tie_word_embeddings": False, **IMAGE_ID,
    },
    "idefics2": {
        "text_config": {"model_type": "mistral", **GROUPED}, "vision_config": TOWER,
        "perceiver_config": {
            "hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
            "resampler_head_dim": 8, "num_key_value_heads": 1,
        }, **IMAGE_ID,
    },
    "idefics3": {"text_config": LLAMA, "vision_config": TOWER, "scale_factor": 2, **IMAGE_ID},
    "smolvlm": {"text_config": LLAMA, "vision_config": TOWER, "scale_factor": 2, **IMAGE_ID},
    "paligemma": {
        "text_config": {"model_type": "gemma", **GEMMA}, "vision_config": SIGLIP, "projection_dim": 32,
        "hidden_size": 32, "vocab_size": VOCAB, **IMAGE,
    },
    "qwen2_vl": {
        "text_config": {**GROUPED, **QWEN_ROPE}, **QWEN_IDS,
        "vision_config": {**QWEN_TOWER, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
    },
    "qwen2_5_vl": {
        "text_config": {**GROUPED, **QWEN_ROPE}, **QWEN_IDS,
        "vision_config": {
            **QWEN_TOWER, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "window_size": 56,
            "fullatt_block_indexes": [1],
        },
    },
    "qwen3_vl": {
        "text_config": {**GROUPED, **QWEN_ROPE, "head_dim": 8}, **QWEN_IDS,
        "vision_config": {
            **QWEN_TOWER, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "patch_size": 16,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", **GROUPED, "head_dim": 8},
        "vision_config": {"model_type": "pixtral", **TOWER, "head_dim": 8, "image_size": 56}, "tie_word_embeddings": False, **IMAGE,
    },
    "gemma3": {
        "text_config": {**GEMMA, "sliding_window": 64, "query_pre_attn_scalar": 8}, "vision_config": SIGLIP,
        "mm_tokens_per_image": 4, "boi_token_index": 91, "eoi_token_index": 92, **IMAGE,
    },
    "aya_vision": {"text_config": {"model_type": "cohere2", **GROUPED}, "vision_config": SIGLIP, **IMAGE},
    "blip-2": {
        "text_config": OPT, "vision_config": TOWER, "qformer_config": QFORMER, "num_query_tokens": 4, **IMAGE,
    },
    "instructblip": {
        "text_config": LLAMA, "vision_config": TOWER, "qformer_config": QFORMER, "num_query_tokens": 4, **IMAGE,
    },
    "mllama": {
        "text_config": {**GROUPED, "num_hidden_layers": 3, "cross_attention_layers": [1]},
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_global_layers": 1,
            "attention_heads": 2, "image_size": 28, "patch_size": 14, "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]], "intermediate_layers_indices": [0],
            "vision_output_dim": 32,
        }, **IMAGE,
    },
}  # fmt: skip
VLM_TYPES = list(CONFIGS)

# Other language models inside the same classes.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "blip-2 with T5": ("blip-2", {"text_config": T5}),
    "instructblip with T5": ("instructblip", {"text_config": T5}),
    "llava_next with Mistral": ("llava_next", {"text_config": {"model_type": "mistral", **GROUPED}}),
    "paligemma with Gemma 2": ("paligemma", {"text_config": {"model_type": "gemma2", **GEMMA, "sliding_window": 16}}),
    "qwen2_vl, tied": ("qwen2_vl", {"tie_word_embeddings": True}),
    "internvl, tied": ("internvl", {"tie_word_embeddings": True}),
    "llava_onevision, tied": ("llava_onevision", {"tie_word_embeddings": True}),
}


def build(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random float32 model of a model_type, or of one of VARIANTS."""
    return build_from(*VARIANTS.get(model_type, (model_type, {})), seed)


def build_from(model_type: str, changes: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """The tiny model of a model_type with other values in its config."""
    config = CONFIG_MAPPING[model_type](**{**CONFIGS[model_type], **changes})
    config.dtype = torch.float32
    torch.manual_seed(seed)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config).float().eval()
    for name, tensor in model.named_parameters():  # zeros and ones of fresh models hide mistakes
        if tensor.ndim < 2 or not tensor.any() or "blip" in model_type:
            torch.nn.init.normal_(tensor, mean=float("norm" in name and name.endswith("weight")), std=0.02)
    return model
