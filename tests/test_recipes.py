"""Every recipe under recipes/ runs, with tiny members in place of the big ones, and its output answers."""

import json
from pathlib import Path

import pytest

from fuse.ask import load
from fuse.recipe_yaml import load_recipe
from tests import official_adapters, recipe_members, tiny_clipcap, tiny_lavin, tiny_lion, tiny_lmeye, tiny_mks2
from tests.cli import fuse_here
from tests.original_branches import picture

ROOT = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.yaml"))
# recipe -> kind of tiny model by member ("base" for the base)
KINDS = {
    "clipcap.yaml": {"gpt": "gpt2"},
    "demo/two_skills.yaml": {"base": "llama", "dates": "llama", "extract": "llama"},
    "eim_parts.yaml": {"a": "gpt2", "b": "gpt2"},
    "folded.yaml": {"vlm": "llava"},
    "lavin.yaml": {"llm": "llama"},
    "lavin_folded.yaml": {"llm": "llama"},
    "llama_adapter.yaml": {"llama": "llama"},
    "llama_adapter_v2.yaml": {"llama": "llama"},
    "lion.yaml": {"t5": "t5"},
    "lion_decoder.yaml": {"vlm": "llava"},
    "lion_with_lmeye.yaml": {"t5": "t5"},
    "llm_slerp.yaml": {"left": "mistral", "right": "mistral"},
    "llm_stacked_layers.yaml": {"zephyr": "mistral", "hermes": "mistral"},
    "llm_task_arithmetic.yaml": {"base": "mistral", "zephyr": "mistral", "hermes": "mistral"},
    "llm_ties_over_depth.yaml": {"base": "qwen2", "chat": "qwen2", "math": "qwen2"},
    "llm_with_encoder.yaml": {"llm": "llama"},
    "lmeye.yaml": {"llm": "llama"},
    "lora.yaml": {"llama": "llama"},
    "mks2.yaml": {"vlm": "llava"},
    "mks2_folded.yaml": {"vlm": "llava"},
    "mks2_mixture.yaml": {"vlm": "llava"},
    "projector_over_bridge.yaml": {"llm": "mistral"},
    "two_vlm_classes.yaml": {"qwen": "qwen2_vl", "onevision": "llava_onevision"},
    "visionfuse_concat_only.yaml": {"llava": "llava", "next": "llava_next"},
    "visionfuse_equal_budget.yaml": {"base": "llama", "llava": "llava", "next": "llava_next"},
    "visionfuse_llava_pair.yaml": {"base": "llama", "llava": "llava", "next": "llava_next"},
    "visionfuse_mgm_slime.yaml": {"base": "llama3", "mgm": "mgm3", "slime": "slime3"},
    "visionfuse_qwen2.yaml": {"qwen": "qwen2_vl", "onevision": "llava_onevision"},
    "visionfuse_separator.yaml": {"base": "llama", "llava": "llava", "next": "llava_next"},
    "visionfuse_shared_positions.yaml": {"base": "llama", "llava": "llava", "next": "llava_next"},
    "visionfuse_three.yaml": {"base": "llama", "mgm": "mgm", "slime": "slime", "llava": "llava"},
    "vlm_all_parts.yaml": {"general": "qwen2_vl", "ocr": "qwen2_vl"},
    "vlm_and_adapter.yaml": {"base": "llama", "vlm": "llava", "polite": "llama"},
    "vlm_and_math_llm.yaml": {"base": "llama", "vlm": "llava_next", "math": "llama"},
    "vlm_language_only.yaml": {"base": "llama", "llava": "llava", "sharegpt": "llava"},
    "vlm_optmerge.yaml": {"base": "llama", "llava": "llava", "sharegpt": "llava"},
    "vlm_with_open_clip_encoder.yaml": {"llava": "llava"},
    "zoo/visionfuse.yaml": {"base": "llama", "hue": "llava", "form": "llava"},
    "zoo/visionfuse_three.yaml": {"base": "llama", "hue": "llava", "form": "llava", "sign": "llava"},
    "zoo/with_memory.yaml": {"form": "llava"},
    "zoo/with_expert.yaml": {"base": "llama", "hue": "llava", "expert": "llama"},
}
# recipe -> visual tokens of each branch for an image of 60 x 40 pixels; SliME's are as many as it may choose
TOKENS = {
    "clipcap.yaml": [5],
    "eim_parts.yaml": [5],
    "lavin.yaml": [1],
    "llama_adapter_v2.yaml": [1],
    "lion.yaml": [17],
    "lion_decoder.yaml": [4, 17],
    "lion_with_lmeye.yaml": [4, 17],
    "llm_with_encoder.yaml": [16],
    "lmeye.yaml": [1],
    "mks2.yaml": [4],
    "mks2_mixture.yaml": [4],
    "projector_over_bridge.yaml": [16],
    "visionfuse_concat_only.yaml": [4, 14],
    "visionfuse_equal_budget.yaml": [3, 3],
    "visionfuse_llava_pair.yaml": [4, 14],
    "visionfuse_mgm_slime.yaml": [16, 25],
    "visionfuse_qwen2.yaml": [6, 14],
    "visionfuse_separator.yaml": [4, 14],
    "visionfuse_shared_positions.yaml": [4, 14],
    "visionfuse_three.yaml": [16, 25, 3],
    "vlm_with_open_clip_encoder.yaml": [4, 3],
    "zoo/visionfuse.yaml": [4, 4],
    "zoo/visionfuse_three.yaml": [4, 4, 4],
    "zoo/with_memory.yaml": [4, 16],
}
# recipe -> what writes each folder of a graft or a projector that it names, by the last part of its path
DONORS: dict[str, dict[str, recipe_members.Donor]] = {
    "clipcap.yaml": {"clipcap": tiny_clipcap.donor},
    "eim_parts.yaml": {"clipcap_a": tiny_clipcap.donor, "clipcap_b": tiny_clipcap.donor},
    "folded.yaml": {"style": official_adapters.peft_folder, "memory": tiny_mks2.memory},
    "lavin.yaml": {"lavin": tiny_lavin.donor},
    "lavin_folded.yaml": {"lavin": tiny_lavin.donor},
    "llama_adapter.yaml": {"llama_adapter": official_adapters.first_donor},
    "llama_adapter_v2.yaml": {"llama_adapter_v2": official_adapters.multimodal_donor},
    "lion.yaml": {"lion": tiny_lion.of_checkpoint},
    "lion_decoder.yaml": {"lion_llava": tiny_lion.of_decoder},
    "lion_with_lmeye.yaml": {"lion": tiny_lion.of_checkpoint, "lmeye": tiny_lion.with_qformer},
    "lmeye.yaml": {"lmeye": tiny_lmeye.write_donor},
    "lora.yaml": {"style": official_adapters.peft_folder, "domain": official_adapters.peft_folder},
    "mks2.yaml": {"memory": tiny_mks2.memory},
    "mks2_folded.yaml": {"memory": tiny_mks2.memory},
    "mks2_mixture.yaml": {"memory": tiny_mks2.memory, "mixture": tiny_mks2.mixture},
    "vlm_and_adapter.yaml": {"manners": official_adapters.peft_folder},
    "zoo/with_memory.yaml": {"mixture": tiny_mks2.mixture},
}


def test_every_recipe_is_here() -> None:
    assert set(KINDS) == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    text = (ROOT / recipe).read_text()
    assert text.startswith("# yaml-language-server: $schema=../")
    assert ((ROOT / recipe).parent / text.split("=", 1)[1].split("\n")[0]).exists()
    assert text.splitlines()[1].startswith("# ")
    recipe_members.furnish([text], KINDS[recipe], tmp_path, monkeypatch, DONORS.get(recipe))
    (tmp_path / "recipe.yaml").write_text(recipe_members.stand_in(text))
    ran = fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out")
    assert (ran.code, ran.err) == (0, ""), ran
    made = load(tmp_path / "out")  # with nothing missing, unexpected or of another shape
    if made.processor is None:
        return
    picture(60, 40).save(tmp_path / "photo.png")
    branches = getattr(made.model.config, "branches", [])
    blind = made.model.config.model_type == "fuse" and not branches  # a text model with grafts
    image = () if blind else ("--image", tmp_path / "photo.png")
    monkeypatch.setattr("fuse.ask.load", lambda folder, **_: made)  # once is enough
    answer = fuse_here("ask", tmp_path / "out", "w5 w6", *image, "--max-tokens", 4, "--json")
    assert (answer.code, answer.err) == (0, ""), answer
    assert json.loads(answer.out)["question"] == "w5 w6"
    assert bool(branches) == (recipe in TOKENS)
    if branches:
        loaded = load_recipe(tmp_path / "recipe.yaml").recipe
        assert [b["name"] for b in branches] == [b.title for b in loaded.vision or []]
        batch = made.processor(images=[picture(60, 40)], text=[f"{made.processor.image_token} w5"])
        assert [int((batch["input_ids"] == b["token_id"]).sum()) for b in branches] == TOKENS[recipe]
