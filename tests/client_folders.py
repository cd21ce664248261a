"""Fused folders for tests of other programs: the zoo's, with true answers, and one of each kind of branch and graft."""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import fuse  # noqa: F401 - makes the Auto classes know the folders
from tests import recipe_members
from tests.cli import fuse_here
from tests.original_branches import picture
from tests.test_recipes import DONORS, KINDS, ROOT
from tests.zoo_tools import TOOLS  # noqa: F401 - puts the zoo's scripts on the path

import zoo_world  # isort: skip

KINDS_OF_ALL = [
    "visionfuse_mgm_slime.yaml", "vlm_with_open_clip_encoder.yaml", "lion_with_lmeye.yaml", "lavin.yaml",
    "llama_adapter_v2.yaml", "mks2_mixture.yaml",
]  # fmt: skip


def zoo(folder: Path) -> Path:
    """The zoo's `visionfuse.yaml`, merged from its own members; the scene of `make demo` beside it, scene.png."""
    random = Random("demo")
    scene = zoo_world.new_scene(random, 4, 4)
    zoo_world.draw(scene, random).save(folder / "scene.png")
    ran = fuse_here("merge", ROOT / "zoo" / "visionfuse.yaml", folder / "fused")
    assert (ran.code, ran.err) == (0, ""), ran
    return folder / "fused"


def merged(recipe: str, folder: Path) -> Path:
    """A recipe of recipes/ on tiny members."""
    text = (ROOT / recipe).read_text()
    with pytest.MonkeyPatch.context() as patch:
        recipe_members.furnish([text], KINDS[recipe], folder, patch, DONORS.get(recipe))
        (folder / "recipe.yaml").write_text(recipe_members.stand_in(text))
        ran = fuse_here("merge", folder / "recipe.yaml", folder / "out")
    assert (ran.code, ran.err) == (0, ""), ran
    return folder / "out"


@dataclass(frozen=True)
class Asked:
    """A folder, one batch of it, and its logits."""

    folder: Path
    batch: Any
    logits: torch.Tensor

    def load(self, **how: Any) -> Any:
        return AutoModelForImageTextToText.from_pretrained(self.folder, **how).eval()

    @torch.no_grad()
    def of(self, model: Any) -> torch.Tensor:
        """The logits of another model."""
        return model(**self.batch, **_first(model)).logits

    def same(self, model: Any) -> bool:
        """Whether a model gives the same logits to the bit."""
        return torch.equal(self.of(model), self.logits)


def asked(folder: Path) -> Asked:
    """What a folder says about a picture and two words."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    sees = bool(model.config.branches)
    text = f"{processor.image_token} w5 w6" if sees else "w5 w6"
    batch = processor(images=[picture(60, 40)] if sees else None, text=[text])
    with torch.no_grad():
        return Asked(folder, batch, model(**batch, **_first(model)).logits)


def _first(model: Any) -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)} if model.config.is_encoder_decoder else {}
