"""A fused model in vLLM: vLLM's own language model, and the branches as they are.

What an image becomes is computed by the code that `FusedForConditionalGeneration` runs (`read_prompt`), over the
image's block alone.
"""

# pyright: reportMissingImports=false, reportIncompatibleMethodOverride=false

import tempfile
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from fuse.branches.kinds import build_branch
from fuse.errors import CheckpointError
from fuse.model.visual import PREFIX, read_prompt, split_inputs
from fuse.serve.vllm_images import BLOCK, FusedDummies, FusedImages, FusedInfo
from fuse.serve.vllm_limits import TEXTS, check_served

HOST = "language_model."


@MULTIMODAL_REGISTRY.register_processor(FusedImages, info=FusedInfo, dummy_inputs=FusedDummies)
class FusedForVLLM(nn.Module, SupportsMultiModal, SupportsPP):
    """One language model of vLLM's, many vision encoders. Raises RecipeError for a folder that vLLM cannot run."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return "<image>" if modality == "image" else None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.folder, self.revision = vllm_config.model_config.model, vllm_config.model_config.revision
        check_served(self.config, self.folder)
        text = self.config.text_config
        with self._mark_tower_model(vllm_config, "image"):
            self.branches = nn.ModuleDict({b["name"]: build_branch(b, "sdpa") for b in self.config.branches})
            if getattr(self.config, "vision_dtype", None) == "float32":
                self.branches.float()
        with self._mark_language_model(vllm_config):
            self.language_model: Any = init_vllm_registered_model(
                vllm_config=vllm_config, hf_config=text, prefix=maybe_prefix(prefix, HOST.rstrip(".")),
                architectures=[TEXTS[text.model_type]],
            )  # fmt: skip
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> list[torch.Tensor]:
        """The visual tokens [n, D] of every image, all branches' one after another, in the order of its block."""
        if kwargs.get(BLOCK) is None:
            return []
        blocks = [one.flatten().cpu() for one in kwargs[BLOCK]]
        given = split_inputs({name: list(value) for name, value in kwargs.items() if name.startswith(PREFIX)})
        device = next(self.language_model.parameters()).device
        ids = torch.cat(blocks)[None].to(device)
        modules, rows = dict(self.branches.items()), self.config.text_config.vocab_size
        embed = self.language_model.embed_input_ids
        prompt = read_prompt(ids, torch.ones_like(ids), given, self.config.branches, modules, embed, rows)
        places = torch.tensor(self.config.placeholder_ids)
        counts = [int(torch.isin(block, places).sum()) for block in blocks]
        return list(prompt.embeds[prompt.visual].split(counts))

    def forward(
        self, input_ids: torch.Tensor | None, positions: torch.Tensor, intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None, **_: Any,
    ) -> Any:  # fmt: skip
        """Hidden states [T, D] of the tokens of all prompts that vLLM runs together."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits [T, V]; a placeholder of an image is never said, as in `generate`."""
        logits = self.language_model.compute_logits(hidden_states)
        if logits is not None:
            logits[:, self.config.placeholder_ids] = float("-inf")
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """The language model from vLLM's reader, the branches from transformers', which knows their stored names."""
        loaded = AutoWeightsLoader(self).load_weights(one for one in weights if one[0].startswith(HOST))
        return loaded | self._load_branches()

    def _load_branches(self) -> set[str]:
        """Through `from_pretrained`, with everything but the branches left on the disk."""
        from fuse.model.fused import FusedForConditionalGeneration

        places = {"branches": "cpu", "language_model": "disk", **({"grafts": "disk"} if self.config.grafts else {})}
        with tempfile.TemporaryDirectory() as scratch:
            whole, report = FusedForConditionalGeneration.from_pretrained(
                self.folder, revision=self.revision, dtype="auto", output_loading_info=True, trust_remote_code=False,
                device_map=places, offload_folder=scratch, use_safetensors=True,
            )  # fmt: skip
            if lost := sorted(key for key in report["missing_keys"] if key.startswith(PREFIX)):
                raise CheckpointError(f"the folder has no tensor {lost[0]!r}", where=self.folder)
            self.branches.load_state_dict(whole.branches.state_dict(), strict=True)
        return {f"{PREFIX}{name}" for name, _ in self.branches.named_parameters()}
