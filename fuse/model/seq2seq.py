"""Encoder-decoder hosts (T5): the encoder reads the prompt with its images, the decoder says the answer.

The encoder gets what a decoder-only host would get; grafts read a prompt while it runs. What follows is the host's own
generation, from embeddings.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedModel

from fuse.errors import RecipeError
from fuse.model.continuing import remember, states_behind, whole_mask
from fuse.model.grafting import States, remembering
from fuse.model.visual import Prompt, split_inputs

HEAD = "lm_head.weight"


def build_seq2seq(config: PretrainedConfig, tied: bool, how: Mapping[str, Any]) -> PreTrainedModel:
    """The host's own class. tied: whether its output matrix is the embedding, which T5's config class always says."""
    model: Any = AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=False, **how)
    if not tied:
        model._tied_weights_keys = {k: v for k, v in model._tied_weights_keys.items() if k != HEAD}
        model.all_tied_weights_keys.pop(HEAD, None)
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def read_whole(model: Any, embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One pass of the encoder over a prompt: its last hidden state [B, L, D]."""
    return model.language_model.get_encoder()(inputs_embeds=embeds, attention_mask=mask).last_hidden_state


def run(
    model: Any, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor | None,
    labels: torch.Tensor | None, asked: Mapping[str, Mapping[str, Any]] | None, states: States | None,
    kept: int | torch.Tensor, given: dict[str, Any],
) -> Any:  # fmt: skip
    """One pass of a fused model whose host is an encoder-decoder: `forward` of `fuse.model.fused`, which see.

    given: further arguments of the host's own forward: decoder_input_ids [B, T] or labels [B, T], -100 where there is
    no loss, say what the decoder reads; with encoder_outputs there is no prompt to read, and the mask is that of
    `read`, or the cache knows it. Raises RecipeError for images there, and for positions, which a T5 does not have.
    """
    images, cache = split_inputs(given), given.get("past_key_values")
    items, as_dict = given.pop("num_items_in_batch", None), given.pop("return_dict", None)
    if given.pop("position_ids", None) is not None:
        raise RecipeError(f"{model.config.host_type} has no positions that can be given", hint="leave position_ids out")
    encoded = given.get("encoder_outputs") is not None
    if encoded and images:
        raise RecipeError("images belong to a prompt; this call goes on from encoder_outputs")
    if not encoded and inputs_embeds is None:
        if input_ids is None:
            raise ValueError("give input_ids, inputs_embeds or encoder_outputs")
        prompt = model._read(input_ids, attention_mask, images, asked)
        inputs_embeds, attention_mask, states = prompt.embeds, prompt.attention_mask, prompt.states
    if states is None:
        states = states_behind(cache)
        model.check_states(states)
    attention_mask = whole_mask(cache, attention_mask)
    with listening(model, states):
        out = model.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, labels=labels, return_dict=True, **given
        )
    remember(out.past_key_values, model.config.host_type, None, attention_mask, states)
    if labels is not None and items is not None:
        out.loss = out.loss * (labels != -100).sum() / items
    if not isinstance(kept, int) or kept:
        out.logits = out.logits[:, slice(-kept, None) if isinstance(kept, int) else kept]
    return out if as_dict is not False else out.to_tuple()


def say(model: Any, prompt: Prompt, given: dict[str, Any]) -> Any:
    """The host's own `generate` behind a prompt. given: its arguments."""
    model.language_model.generation_config = model.generation_config
    if given.get("generation_config") is None:
        given.pop("generation_config", None)
    with listening(model, prompt.states):
        found = model.language_model.generate(
            inputs_embeds=prompt.embeds, attention_mask=prompt.attention_mask, **given
        )
    cache = getattr(found, "past_key_values", None)
    remember(cache, model.config.host_type, None, prompt.attention_mask, prompt.states)
    return found


@contextmanager
def listening(model: Any, states: States) -> Iterator[None]:
    """The grafts know their prompts, and whether the encoder reads them (`Graft.begins`) or the decoder answers."""
    model.attach()
    grafts = dict(model.grafts.items())

    def turn(begins: bool) -> Any:
        def tell(*_: Any) -> None:
            for graft in grafts.values():
                graft.begins = begins

        return tell

    with remembering(grafts, states):
        language = model.language_model
        hooks = [language.get_encoder().register_forward_pre_hook(turn(True))] if grafts else []
        hooks += [language.get_decoder().register_forward_pre_hook(turn(False))] if grafts else []
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
