"""The tool that asks what eyes see over a bridge: a member of the zoo taken apart, and a recipe for every row."""

from pathlib import Path

import torch
from transformers import AutoProcessor, LlamaForCausalLM, LlavaForConditionalGeneration

from fuse.recipe_yaml import parse_recipe
from tests import zoo_tools  # noqa: F401 - the path of the tools
from tests.bridge_places import opened
from tests.cli import fuse_here
from tests.original_branches import picture

import projector_evidence  # isort: skip

HUE = Path(__file__).parent.parent / "recipes" / "zoo" / "hue"


def test_the_parts_of_a_member_are_the_member(tmp_path: Path) -> None:
    own = projector_evidence.language_of(HUE, tmp_path / "own")
    clip, projector = projector_evidence.eyes_of(HUE, tmp_path)
    whole = LlavaForConditionalGeneration.from_pretrained(HUE, dtype=torch.float32).eval()
    ids = torch.arange(6, 26)[None]
    with torch.no_grad():
        alone = LlamaForCausalLM.from_pretrained(own, dtype=torch.float32)(input_ids=ids).logits
        assert (alone - whole(input_ids=ids).logits).abs().max() < 1e-4
    eyes = f"{{name: hue, encoder: {clip}, projector: {projector}}}"
    (tmp_path / "r.yaml").write_text(
        f"members: {{llm: {own}}}\nlanguage: {{method: linear, weights: 1}}\nvision: [{eyes}]\noutput: {{dtype: float32}}\n"
    )
    ran = fuse_here("merge", tmp_path / "r.yaml", tmp_path / "out")
    assert ran.code == 0, ran.err
    model, processor = opened(tmp_path / "out"), AutoProcessor.from_pretrained(tmp_path / "out")
    batch = processor(images=[picture(24, 24)], text=["<image>"], return_tensors="pt")
    pixels = AutoProcessor.from_pretrained(HUE).image_processor(picture(24, 24), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = model.read(**batch).embeds[batch["input_ids"] == model.config.branches[0]["token_id"]]
        wanted = whole.model.get_image_features(pixels).pooler_output
    assert (found - torch.cat(list(wanted))).abs().max() < 1e-3


def test_every_row_is_a_recipe() -> None:
    rows = projector_evidence.rows(Path("own"), Path("base"), {"apart": Path("apart")})
    assert [label for label, (_, bridge) in rows.items() if not bridge] == ["own", "base", "apart, no bridge"]
    for model, bridge in rows.values():
        eyes = f"{{name: hue, encoder: clip, projector: p.safetensors{bridge}}}"
        text = f"members: {{llm: {model}}}\nlanguage: {{method: linear, weights: {{llm: 1}}}}\nvision: [{eyes}]\n"
        (branch,) = parse_recipe(Path("row.yaml"), text).recipe.vision or []
        assert (branch.bridge is None) == (not bridge)
