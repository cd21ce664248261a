"""The fused model: a language model that reads the tokens of several vision encoders (VisionFuse, arXiv 2412.01289).

The visual tokens of all branches stand one after another in the prompt, in the order of the recipe. Everything about
images happens before the language model runs, so generation is ordinary text generation from embeddings.
"""

# transformers' mixins are typed against a protocol that none of its own classes meets.
# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from fuse.branches.kinds import build_branch
from fuse.branches.options import is_shared
from fuse.errors import RecipeError
from fuse.grafts.kinds import build_graft
from fuse.model import seq2seq
from fuse.model.config import FusedConfig
from fuse.model.continuing import next_positions, remember, states_behind, whole_mask
from fuse.model.generation import FusedGenerationMixin, is_empty, text_positions
from fuse.model.grafted import GraftedMixin
from fuse.model.grafting import States, read_grafts, remembering
from fuse.model.language import build_language_model
from fuse.model.masks import BLOCK_HOSTS, PREFIX_HOSTS, blocks, prompt_masks
from fuse.model.positions import positions
from fuse.model.visual import Prompt, read_prompt, split_inputs


class FusedForConditionalGeneration(PreTrainedModel, FusedGenerationMixin, GraftedMixin):
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
        if attention and "flash" in attention and any(is_shared(branch) for branch in config.branches):
            raise RecipeError(
                f"{attention} reads positions that stand twice as several texts, and a branch has positions: shared",
                hint="attn_implementation sdpa or eager",
            )
        super().__init__(config)
        attention = config._attn_implementation
        how = (config.host_type, attention, config.tie_word_embeddings)
        self.language_model = build_language_model(config.text_config, *how)
        self.branches = nn.ModuleDict({b["name"]: build_branch(b, attention) for b in config.branches})
        self.grafts = nn.ModuleDict({g["name"]: build_graft(g) for g in config.grafts})
        if not config.is_encoder_decoder:
            config.text_config = self.get_decoder().config  # masks made from outside must suit its attention
        self._no_split_modules = sorted(
            {
                name
                for part in self.modules()
                if part is not self
                for name in getattr(part, "_no_split_modules", None) or ()
            }
        )
        if getattr(config, "vision_dtype", None) == "float32" and len(self.branches):
            self._keep_in_fp32_modules_strict = {"branches"}
        self.post_init()
        self.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers', with gradients off."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.requires_grad_(False)
        if model.config.is_encoder_decoder:
            model.language_model.generation_config = model.generation_config
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

    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
        grafts: Mapping[str, Mapping[str, Any]] | None = None, **inputs: Any,
    ) -> Prompt:  # fmt: skip
        """The prompt as the language model will read it: embeddings with every branch's tokens in place.

        grafts: by graft, what is asked of it (`{"lion": {"task": "region"}}`). Raises RecipeError when images and
        placeholders do not agree, for inputs of a branch that is not there, and for an option that a graft has not.
        """
        return self._read(input_ids, attention_mask, split_inputs(inputs), grafts)

    def _read(
        self, input_ids: torch.Tensor, mask: torch.Tensor | None, given: Mapping[str, Any],
        asked: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Prompt:  # fmt: skip
        self.attach()
        mask = torch.ones_like(input_ids) if mask is None else mask
        modules = dict(self.branches.items())
        embed = self.get_input_embeddings().__call__  # a module that is handed over, accelerate moves
        rows = self.config.text_config.vocab_size
        prompt = read_prompt(input_ids, mask, given, self.config.branches, modules, embed, rows)
        if not self.config.grafts:
            return prompt
        grafts = dict(self.grafts.items())
        return read_grafts(self.config.grafts, grafts, prompt, input_ids, asked or {}, embed, self._runner)

    def _runner(self, prompt: Prompt) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """One pass over a prompt without a cache: (embeds, mask) -> its last hidden state [B, L, D]."""

        def run(embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            if self.config.is_encoder_decoder:
                return seq2seq.read_whole(self, embeds, mask)
            at = self._positions(prompt) if embeds.shape[:2] == prompt.numbers.shape else None
            decoder, block = self.get_decoder(), self._blocks(prompt) if at is not None else None
            if block is not None:
                mask = prompt_masks(
                    self.config.host_type, decoder.config, block, inputs_embeds=embeds, attention_mask=mask,
                    past_key_values=None, position_ids=text_positions(at),
                )  # fmt: skip
            return decoder(
                inputs_embeds=embeds, attention_mask=mask, position_ids=at, use_cache=False, return_dict=True
            ).last_hidden_state

        return run

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
        grafts: Mapping[str, Mapping[str, Any]] | None = None,
        graft_states: States | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """One pass of the language model, over a whole prompt with its images or over the tokens that follow it.

        token_type_ids: [B, L], for hosts that attend in both directions inside a block (PaliGemma, Gemma 3): the number
        of each token's block, -1 where attention is causal. Where left out, a PaliGemma host's block ends before the
        first label. labels: [B, L], -100 where there is no loss. grafts: by graft, what is asked of it. graft_states:
        `Prompt.states` of the prompt whose embeddings are given. Of an encoder-decoder host, see `fuse.model.seq2seq`.
        """
        if self.config.is_encoder_decoder:
            more = {"position_ids": position_ids, "past_key_values": past_key_values, "use_cache": use_cache, **kwargs}
            how = (labels, grafts, graft_states, logits_to_keep)
            return seq2seq.run(self, input_ids, attention_mask, inputs_embeds, *how, more)
        images, as_dict = split_inputs(kwargs), kwargs.pop("return_dict", None)
        items = kwargs.pop("num_items_in_batch", None)
        given = _one_of(input_ids, inputs_embeds)
        # Nothing here may depend on the numbers in a tensor while one word follows another: that step can be compiled.
        begins = is_empty(past_key_values, given.shape[1])
        if images and not begins:
            raise RecipeError("images belong to a prompt; this call continues one")
        if inputs_embeds is None and begins:
            assert input_ids is not None
            prompt = self._read(input_ids, attention_mask if _is_2d(attention_mask) else None, images, grafts)
            inputs_embeds, graft_states = prompt.embeds, prompt.states
            if _is_2d(attention_mask) or attention_mask is None:
                attention_mask = prompt.attention_mask
                position_ids = self._positions(prompt) if position_ids is None else position_ids
                if token_type_ids is None:
                    token_type_ids = self._blocks(prompt, labels)
        elif inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        assert inputs_embeds is not None
        if graft_states is None:
            graft_states = {} if begins else states_behind(past_key_values)
            self.check_states(graft_states)
        host, plain = self.config.host_type, attention_mask is None or _is_2d(attention_mask)
        if not begins and plain:
            attention_mask = whole_mask(past_key_values, attention_mask)
            if position_ids is None:
                rows, new = inputs_embeds.shape[:2]
                position_ids = next_positions(past_key_values, host, rows, new, attention_mask, inputs_embeds.device)
        remembered = attention_mask
        whole = token_type_ids is not None and 1 < token_type_ids.shape[1] == inputs_embeds.shape[1]
        if whole and plain:
            attention_mask = prompt_masks(
                host, self.get_decoder().config, token_type_ids, inputs_embeds=inputs_embeds,
                attention_mask=attention_mask, past_key_values=past_key_values,
                position_ids=text_positions(position_ids),
            )  # fmt: skip
        self.attach(begins)
        with remembering(self.grafts, graft_states, begins):  # pyright: ignore[reportArgumentType]
            out = self.language_model(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
                past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep, return_dict=True,
                **kwargs,
            )  # fmt: skip
        if begins and plain:
            remember(out.past_key_values, host, position_ids, remembered, graft_states)
        if labels is not None:
            rows = self.config.text_config.vocab_size
            loss = self.loss_function(out.logits, labels, vocab_size=rows, num_items_in_batch=items)
            out = type(out)(**{**out, "loss": loss})
        return out if as_dict is not False else out.to_tuple()

    def _positions(self, prompt: Prompt) -> torch.Tensor:
        return positions(self.config.host_type, prompt.attention_mask, prompt.patches, prompt.shared)

    def _blocks(self, prompt: Prompt, labels: torch.Tensor | None = None) -> torch.Tensor | None:
        """Who attends in both directions; an answer that is being learnt never does."""
        found = blocks(self.config.host_type, prompt.attention_mask, prompt.numbers)
        if found is None or labels is None:
            return found
        answer = (labels != -100).cumsum(-1) > 0
        return torch.where(answer & ~prompt.visual, -1, found)


def _one_of(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
    """What a pass reads."""
    given = input_ids if inputs_embeds is None else inputs_embeds
    if given is None or (input_ids is not None and inputs_embeds is not None):
        raise ValueError("give input_ids or inputs_embeds, not both")
    return given


def _is_2d(mask: Any) -> bool:
    return isinstance(mask, torch.Tensor) and mask.ndim == 2
