"""How a fused model generates: images first, then ordinary text generation from embeddings."""

# transformers' mixins are typed against a protocol that none of its own classes meets.
# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false, reportCallIssue=false

from typing import Any

import torch
from transformers import GenerationMixin

from fuse.errors import RecipeError
from fuse.model import seq2seq
from fuse.model.config import FusedConfig
from fuse.model.continuing import next_positions, remember, whole_mask
from fuse.model.masks import prompt_masks
from fuse.model.positions import largest
from fuse.model.visual import split_inputs


class FusedGenerationMixin(GenerationMixin):
    """transformers' generation over prompts whose images are encoded once, before the first token."""

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """As transformers' `generate`; images are encoded once, before the first token, whatever the beams.

        With the cache of an earlier turn (`past_key_values`), input_ids are the whole conversation, as everywhere in
        transformers; its new part holds words only. grafts: by graft, what is asked of it. Raises RecipeError for
        images there, and for prefill_chunk_size.
        """
        kwargs["generation_config"] = generation_config
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None or kwargs.get("inputs_embeds") is not None:
            return super().generate(inputs=inputs, input_ids=input_ids, **kwargs)
        if kwargs.get("prefill_chunk_size", getattr(generation_config, "prefill_chunk_size", None)) is not None:
            raise RecipeError("prefill_chunk_size does not work here: a prompt and its images are read as one")
        given, cache = split_inputs(kwargs), kwargs.get("past_key_values")
        asked = kwargs.get(
            "suppress_tokens", getattr(generation_config or self.generation_config, "suppress_tokens", None)
        )
        silent = {*self.config.placeholder_ids, *self.config.slot_ids}
        kwargs["suppress_tokens"] = sorted({*(asked or ()), *silent}) or None
        if self.config.is_encoder_decoder:
            prompt = self._read(input_ids, kwargs.pop("attention_mask", None), given, kwargs.pop("grafts", None))
            return seq2seq.say(self, prompt, kwargs)
        if not is_empty(cache, input_ids.shape[1]):
            return super().generate(input_ids=input_ids, **self._behind(cache, input_ids, kwargs))
        prompt = self._read(input_ids, kwargs.pop("attention_mask", None), given, kwargs.pop("grafts", None))
        kwargs["graft_states"] = prompt.states
        kwargs.setdefault("position_ids", self._positions(prompt))
        if (block := self._blocks(prompt)) is not None:
            kwargs.setdefault("token_type_ids", block)
        found = super().generate(
            input_ids=input_ids, inputs_embeds=prompt.embeds, attention_mask=prompt.attention_mask, **kwargs
        )
        # A step with a static cache has a mask that no longer says how many tokens there were.
        cache = getattr(found, "past_key_values", None) if cache is None else cache
        remember(cache, self.config.host_type, kwargs["position_ids"], prompt.attention_mask, prompt.states)
        return found

    def _behind(self, cache: Any, input_ids: torch.Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a `generate` that goes on from a cache."""
        new = input_ids[:, int(cache.get_seq_length()) :]
        for branch in self.config.branches:
            if (new == branch["token_id"]).any():
                raise RecipeError(
                    f"the new part of the conversation holds an image (branch {branch['name']!r}), and a cache goes on "
                    "with words only", hint="leave past_key_values out, so that the whole conversation is read",
                )  # fmt: skip
        mask = kwargs.get("attention_mask")
        mask = whole_mask(cache, torch.ones_like(input_ids) if mask is None else mask)
        at = next_positions(cache, self.config.host_type, *new.shape, mask, input_ids.device)
        return {**kwargs, "attention_mask": mask, "position_ids": kwargs.get("position_ids", at)}

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
        """New words belong to no block, and stand behind the largest position so far.

        transformers goes on from the last position, which is not the largest where a prompt ends with an image on an
        M-RoPE host, or with a branch that shares another's positions.
        """
        block, before = model_kwargs.pop("token_type_ids", None), model_kwargs.get("position_ids")
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kw)
        if before is not None:
            model_kwargs["position_ids"] = _go_on(before, model_kwargs["position_ids"].shape[-1])
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
            attention_mask=attention_mask, past_key_values=past_key_values, position_ids=text_positions(position_ids),
        )  # fmt: skip


def is_empty(cache: Any, new: int) -> bool:
    """Whether a call of `new` tokens begins a prompt.

    A cache that was reset is told by its length, but not in a step of one token, which must not depend on a number in a
    tensor.
    """
    return cache is None or not cache.is_initialized or (new > 1 and int(cache.get_seq_length()) == 0)


def _go_on(position_ids: torch.Tensor, length: int) -> torch.Tensor:
    """Positions [..., L] with those of new words behind the largest of their row: [..., length]."""
    steps = torch.arange(1, length - position_ids.shape[-1] + 1, device=position_ids.device)
    new = largest(position_ids) + steps
    if position_ids.ndim == 3:
        new = torch.cat([position_ids[:-3, :, -1:] + steps, new.expand(3, -1, -1)])
    return torch.cat([position_ids, new], -1)


def text_positions(position_ids: torch.Tensor | None) -> torch.Tensor | None:
    """Positions as masks know them: M-RoPE hosts keep theirs in the first of four."""
    return position_ids[0] if position_ids is not None and position_ids.ndim == 3 else position_ids
