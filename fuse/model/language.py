"""The language model of a fused model: the host's own class where it has a head, else its body with one."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from fuse.branches.native_table import NATIVE
from fuse.model.seq2seq import build_seq2seq


def build_language_model(
    config: PretrainedConfig, host_type: str, attention: str | None, tied: bool = True
) -> PreTrainedModel:  # fmt: skip
    """The language model that `config` describes, with the names of a text-only checkpoint.

    The multimodal classes of transformers put a plain matrix on their text model, and so does `HeadedModel`: a text
    model's own causal class may scale or cap its logits (Cohere, Gemma 2). PaliGemma caps them itself.
    tied: of an encoder-decoder, whether its output matrix is the embedding.
    """
    how: dict[str, Any] = {"attn_implementation": chosen(attention), "dtype": torch.get_default_dtype()}
    if config.is_encoder_decoder:
        return build_seq2seq(config, tied, how)
    plain = host_type in NATIVE and host_type not in CAPPED_HOSTS and config.model_type not in OTHER_NAMES
    if plain or config.model_type in HEADLESS:
        return HeadedModel(config, how)
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **how)


CAPPED_HOSTS = frozenset({"paligemma"})
OTHER_NAMES = frozenset({"gpt2", "opt"})  # text models whose tensors are not called model.* and lm_head
HEADLESS = frozenset({"qwen2_vl_text", "qwen2_5_vl_text"})  # have no causal class


def chosen(attention: str | None) -> str | None:
    """What to ask of a part: sdpa is transformers' default, which parts that lack it (Gemma 2) replace by eager."""
    return None if attention == "sdpa" else attention


class HeadedModel(PreTrainedModel):
    """A text model and a plain output matrix: `model.*` and `lm_head.weight`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - transformers reads it
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: PretrainedConfig, how: dict[str, Any]) -> None:
        super().__init__(config)
        self.model = AutoModel.from_config(config, trust_remote_code=False, **how)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_decoder(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.model

    def forward(self, *, logits_to_keep: int | torch.Tensor = 0, **kwargs: Any) -> CausalLMOutputWithPast:
        """Logits [B, kept, V] of the last `logits_to_keep` positions (all where 0), as causal classes give them."""
        out = self.model(**{**kwargs, "return_dict": True})
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            logits=self.lm_head(out.last_hidden_state[:, kept]),
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
