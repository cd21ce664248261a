"""Tiny random language models of every family in `fuse.families.text`, for tests; each a second or less to build."""

from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig

SEED = 7

COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# model_type -> config class, class of the model, and what COMMON does not say
CLASSES: dict[str, tuple[type, type[PreTrainedModel], dict[str, Any]]] = {
    "llama": (tf.LlamaConfig, tf.LlamaForCausalLM, {}),
    "mistral": (tf.MistralConfig, tf.MistralForCausalLM, {}),
    "qwen2": (tf.Qwen2Config, tf.Qwen2ForCausalLM, {}),
    "qwen3": (tf.Qwen3Config, tf.Qwen3ForCausalLM, {"head_dim": 16}),
    "gemma": (tf.GemmaConfig, tf.GemmaForCausalLM, {"head_dim": 16}),
    "gemma2": (tf.Gemma2Config, tf.Gemma2ForCausalLM, {"head_dim": 16}),
    "gemma3_text": (tf.Gemma3TextConfig, tf.Gemma3ForCausalLM, {"head_dim": 16}),
    "phi3": (tf.Phi3Config, tf.Phi3ForCausalLM, {}),
    "smollm3": (tf.SmolLM3Config, tf.SmolLM3ForCausalLM, {}),
    "cohere": (tf.CohereConfig, tf.CohereForCausalLM, {}),
    "cohere2": (tf.Cohere2Config, tf.Cohere2ForCausalLM, {}),
    "mllama_text_model": (
        MllamaTextConfig,
        tf.MllamaForCausalLM,
        {"cross_attention_layers": [1], "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ),
    "gpt2": (
        tf.GPT2Config,
        tf.GPT2LMHeadModel,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 64},
    ),
    "t5": (
        tf.T5Config,
        tf.T5ForConditionalGeneration,
        {"d_model": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 16, "d_ff": 48,
         "vocab_size": 64, "decoder_start_token_id": 0},
    ),
    "opt": (tf.OPTConfig, tf.OPTForCausalLM, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}  # fmt: skip

# The language models inside Qwen's multimodal classes; transformers has no class that saves them alone.
INNER_CONFIGS: dict[str, type] = {
    "qwen2_vl_text": Qwen2VLTextConfig,
    "qwen2_5_vl_text": Qwen2_5_VLTextConfig,
    "qwen2_vl": Qwen2VLTextConfig,
    "qwen2_5_vl": Qwen2_5_VLTextConfig,
    "qwen3_vl_text": Qwen3VLTextConfig,
}

TEXT_TYPES = list(CLASSES)
OWN_NAMES = {"gpt2", "t5"}


def build(model_type: str, **settings: Any) -> PreTrainedModel:
    """A model in float32 with random weights, the same for each call; `settings` go to its config."""
    config_class, model_class, extra = CLASSES[model_type]
    common = {} if model_type in OWN_NAMES else COMMON
    config = config_class(**{**common, **extra, **settings})
    torch.manual_seed(SEED)
    return model_class(config).float().eval()


def default_config(model_type: str) -> Any:
    """The config class's own defaults."""
    return (CLASSES[model_type][0] if model_type in CLASSES else INNER_CONFIGS[model_type])()
