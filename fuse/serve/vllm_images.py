"""Images of a prompt in vLLM: each becomes the block of tokens that the fused processor writes for it.

vLLM hands the fields of an item through its caches and batches by name; `BLOCK` is the one that we add, the token ids
of the image's block.
"""

# vLLM's base classes are typed more narrowly than their own subclasses use them.
# pyright: reportIncompatibleMethodOverride=false, reportMissingImports=false

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import tensor
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from fuse.errors import CheckpointError
from fuse.model.config import FusedConfig
from fuse.model.looks import EDGES, GRID, RUNS
from fuse.model.processor import FusedProcessor
from fuse.serve.vllm_limits import check_served

BLOCK = "block"
SIZES = ((224, 224), (672, 672), (1344, 1344), (1344, 336), (336, 1344))  # among which the longest block is looked for


class FusedInfo(BaseProcessingInfo):
    """What vLLM may ask of a fused folder's images. Raises RecipeError for a folder that it cannot run."""

    def __init__(self, ctx: Any) -> None:
        super().__init__(ctx)
        check_served(self.get_hf_config(), self.model_id)

    def get_hf_config(self) -> FusedConfig:
        return self.ctx.get_hf_config(FusedConfig)

    def get_hf_processor(self, **kwargs: object) -> FusedProcessor:
        return self.ctx.get_hf_processor(FusedProcessor, **kwargs)

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return {}

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def largest(self) -> tuple[int, int]:
        """The size (width, height) of those tried whose block is longest."""
        processor = self.get_hf_processor()
        return max(SIZES, key=lambda size: len(processor.block(Image.new("RGB", size))[0]))


class FusedDummies(BaseDummyInputsBuilder[FusedInfo]):
    """Blank pictures, for vLLM to measure its memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return self.info.get_hf_processor().image_token * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> Any:
        width, height = self.info.largest()
        count = mm_counts.get("image", 0)
        told = mm_options.get("image") if mm_options else None
        return {"image": self._get_dummy_images(width=width, height=height, num_images=count, overrides=told)}


class FusedImages(BaseMultiModalProcessor[FusedInfo]):
    """From pictures to fields and blocks."""

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """One list entry for each image, of the block and of every input of every branch."""
        processor = self.info.get_hf_processor()
        images: Any = hf_data.get("images") or ()
        fields: dict[str, list[Any]] = {}
        for image in images:
            block, inputs = processor.block(image)
            fields.setdefault(BLOCK, []).append(tensor(block))
            for name, one in inputs.items():
                fields.setdefault(name, []).append(one)
        return BatchFeature(fields)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:  # fmt: skip
        return {name: MultiModalFieldConfig.batched("image", keep_on_cpu=_is_small(name)) for name in hf_inputs}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:  # fmt: skip
        config = self.info.get_hf_config()
        token = self.info.get_hf_processor().image_token
        vocabulary = self.info.get_tokenizer().get_vocab()
        if token not in vocabulary:
            told = f"vLLM finds images by one token, and the tokenizer has none for {token!r}"
            raise CheckpointError(told, where=self.info.model_id)

        def block(number: int) -> PromptUpdateDetails:
            ids = out_mm_kwargs["image"][number][BLOCK].data.tolist()
            return PromptUpdateDetails.select_token_ids(ids, config.placeholder_ids)

        return [PromptReplacement(modality="image", target=[vocabulary[token]], replacement=block)]


def _is_small(name: str) -> bool:
    return name.rpartition(".")[2] in (BLOCK, RUNS, GRID, EDGES)
