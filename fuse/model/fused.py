"""The fused model: a language model that reads the tokens of several vision encoders (VisionFuse, arXiv 2412.01289).

The visual tokens of all branches stand one after another in the prompt, in the order of the recipe. Everything about
images happens before the language model runs, so generation is ordinary text generation from embeddings.
"""

# transformers' mixins are typed against a protocol that none of its own classes meets.
# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from fuse.branches.kinds import build_branch
from fuse.errors import RecipeError
from fuse.model.config import FusedConfig
from fuse.model.language import build_language_model
from fuse.model.masks import BLOCK_HOSTS, PREFIX_HOSTS, blocks, prompt_masks
from fuse.model.positions import MROPE_HOSTS, positions
from fuse.model.visual import Prompt, read_prompt, split_inputs


class FusedForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """One language model, many vision encoders.

    Inputs are those of `FusedProcessor`: input_ids and attention_mask [B, L], and for every branch `branches.NAME.*`,
    lists with one tensor per image, images in the order of the prompts. Gradients are off until asked for.
    """

    config_class = FusedConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012 - transformers reads it from the class
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    supports_gradient_checkpointing = True

    def __init__(self, config: FusedConfig) -> None:
        attention = config._attn_implementation
        if attention and "flash" in attention and config.host_type in PREFIX_HOSTS | BLOCK_HOSTS:
            raise RecipeError(
                f"{attention} has no masks for {config.host_type}, whose images attend in both directions",
                hint="attn_implementation sdpa or eager",
            )
        super().__init__(config)
        attention = config._attn_implementation
        self.language_model = build_language_model(config.text_config, config.host_type, attention)
        self.branches = nn.ModuleDict({b["name"]: build_branch(b, attention) for b in config.branches})
        config.text_config = self.get_decoder().config  # masks made from outside must suit its attention
        self._no_split_modules = sorted(
            {
                name
                for part in self.modules()
                if part is not self
                for name in getattr(part, "_no_split_modules", None) or ()
            }
        )
        self._past: torch.Tensor | None = None  # how far an M-RoPE host's positions run ahead of its tokens, [B, 1]
        self.post_init()
        self.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers', with gradients off."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).requires_grad_(False)
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> Any:
        return self.language_model.get_decoder()

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **inputs: Any) -> Prompt:
        """The prompt as the language model will read it: embeddings with every branch's tokens in place.

        Raises RecipeError when images and placeholders do not agree.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        given = split_inputs(inputs)
        modules = dict(self.branches.items())
        return read_prompt(input_ids, mask, given, self.config.branches, modules, self.get_input_embeddings())

    def get_image_features(self, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """The visual tokens [n, D] of all images, in the order of the prompt: what the language model sees of them."""
        prompt = self.read(input_ids, **inputs)
        return prompt.embeds[prompt.visual]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """One pass of the language model, over a whole prompt with its images or over the tokens that follow it.

        token_type_ids: [B, L], the block of each token where the host attends in both directions inside a block, -1
        elsewhere; computed when a prompt is given as input_ids. labels: [B, L], -100 where there is no loss.
        """
        images, as_dict = split_inputs(kwargs), kwargs.pop("return_dict", None)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, not both")
        # Nothing here may depend on the numbers in a tensor while a prompt is continued: that step can be compiled.
        begins = bool(images) or past_key_values is None or not past_key_values.is_initialized
        if images and past_key_values is not None and int(past_key_values.get_seq_length()) > 0:
            raise RecipeError("images belong to a prompt; this call continues one")
        if inputs_embeds is None and begins:
            assert input_ids is not None
            named = {f"branches.{b}.{k}": v for b, given in images.items() for k, v in given.items()}
            prompt = self.read(input_ids, attention_mask if _is_2d(attention_mask) else None, **named)
            inputs_embeds = prompt.embeds
            if _is_2d(attention_mask) or attention_mask is None:
                attention_mask = prompt.attention_mask
                position_ids = self._positions(prompt) if position_ids is None else position_ids
                token_type_ids = blocks(self.config.host_type, prompt.attention_mask, prompt.visual)
        elif inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        assert inputs_embeds is not None
        if position_ids is None and past_key_values is not None and not begins:
            position_ids = self._next_positions(inputs_embeds, attention_mask, past_key_values.get_seq_length())
        whole = token_type_ids is not None and 1 < token_type_ids.shape[1] == inputs_embeds.shape[1]
        if whole and (attention_mask is None or _is_2d(attention_mask)):
            attention_mask = prompt_masks(
                self.config.host_type, self.get_decoder().config, token_type_ids, inputs_embeds=inputs_embeds,
                attention_mask=attention_mask, past_key_values=past_key_values,
                position_ids=_text_positions(position_ids),
            )  # fmt: skip
        out = self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep, return_dict=True,
            **kwargs,
        )  # fmt: skip
        if labels is not None:
            loss = self.loss_function(out.logits, labels, vocab_size=self.config.text_config.vocab_size)
            out = type(out)(**{**out, "loss": loss})
        return out if as_dict is not False else out.to_tuple()

    def _positions(self, prompt: Prompt) -> torch.Tensor:
        """Positions of a prompt; remembers how far they run ahead, for calls that continue it without positions."""
        found = positions(self.config.host_type, prompt.attention_mask, prompt.patches)
        if self.config.host_type in MROPE_HOSTS:
            self._past = found[1:].amax((0, 2))[:, None] + 1 - prompt.attention_mask.sum(-1, keepdim=True)
        return found

    def _next_positions(self, embeds: torch.Tensor, attention_mask: Any, past: Any) -> torch.Tensor | None:
        """Positions of tokens that continue a prompt, where the caller gave none."""
        if _is_2d(attention_mask):
            counted = attention_mask.long().cumsum(-1)[:, -embeds.shape[1] :] - 1
        elif attention_mask is None:
            counted = (torch.arange(embeds.shape[1], device=embeds.device) + past).expand(len(embeds), -1)
        else:
            return None
        if self.config.host_type in MROPE_HOSTS and self._past is not None:
            ahead = self._past.to(counted.device)
            ahead = ahead.repeat_interleave(len(counted) // len(ahead), 0)
            return torch.cat([counted[None], (counted + ahead).expand(3, -1, -1)])
        return counted + 1 if self.config.host_type == "paligemma" else counted

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """As transformers' `generate`; images are encoded once, before the first token, whatever the beams."""
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None or kwargs.get("inputs_embeds") is not None or kwargs.get("past_key_values") is not None:
            return super().generate(inputs=inputs, input_ids=input_ids, **kwargs)
        asked = kwargs.get("prefill_chunk_size", getattr(kwargs.get("generation_config"), "prefill_chunk_size", None))
        if asked is not None:
            raise RecipeError("prefill_chunk_size does not work here: a prompt and its images are read as one")
        images = {f"branches.{b}.{k}": v for b, given in split_inputs(kwargs).items() for k, v in given.items()}
        prompt = self.read(input_ids, kwargs.pop("attention_mask", None), **images)
        kwargs.setdefault("position_ids", self._positions(prompt))
        block = blocks(self.config.host_type, prompt.attention_mask, prompt.visual)
        if block is not None:
            kwargs["token_type_ids"] = block
        return super().generate(
            input_ids=input_ids, inputs_embeds=prompt.embeds, attention_mask=prompt.attention_mask, **kwargs
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Without a cache every step reads the whole prompt again: its visual tokens stay, new words are added."""
        if inputs_embeds is not None and kwargs.get("past_key_values") is None:
            words = self.get_input_embeddings()(input_ids[:, inputs_embeds.shape[1] :])
            inputs_embeds = torch.cat([inputs_embeds, words.to(inputs_embeds)], 1)
            kwargs["is_first_iteration"] = True
        block = kwargs.get("token_type_ids")
        if block is not None and block.shape[1] < input_ids.shape[1]:
            pad = input_ids.shape[1] - block.shape[1]
            kwargs["token_type_ids"] = torch.nn.functional.pad(block, (0, pad), value=-1)
        return super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kw: Any
    ) -> Any:
        """New words belong to no block."""
        block = model_kwargs.pop("token_type_ids", None)
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kw)
        if block is not None:
            model_kwargs["token_type_ids"] = torch.nn.functional.pad(block, (0, 1), value=-1)
        return model_kwargs

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """As transformers', with the positions of M-RoPE hosts, whose batch is their second dimension."""
        given = kwargs.pop("position_ids", None)
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        if given is not None:
            kwargs["position_ids"] = given.repeat_interleave(expand_size, given.ndim - 2)
        return input_ids, kwargs

    @staticmethod
    def create_masks_for_generate(
        config: FusedConfig, inputs_embeds: torch.Tensor, attention_mask: Any, past_key_values: Any,
        position_ids: torch.Tensor | None = None, token_type_ids: torch.Tensor | None = None, **_: Any,
    ) -> Any:  # fmt: skip
        """The masks of a step with a static cache, which transformers makes before it calls `forward`."""
        whole = token_type_ids is not None and 1 < token_type_ids.shape[1] == inputs_embeds.shape[1]
        return prompt_masks(
            config.host_type, config.text_config, token_type_ids if whole else None, inputs_embeds=inputs_embeds,
            attention_mask=attention_mask, past_key_values=past_key_values, position_ids=_text_positions(position_ids),
        )  # fmt: skip


def _is_2d(mask: Any) -> bool:
    return isinstance(mask, torch.Tensor) and mask.ndim == 2


def _text_positions(position_ids: torch.Tensor | None) -> torch.Tensor | None:
    """Positions as masks know them: M-RoPE hosts keep theirs in the first of four."""
    return position_ids[0] if position_ids is not None and position_ids.ndim == 3 else position_ids
