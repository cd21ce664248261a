"""Training of a visual memory: what each stage may change, its losses against numpy, and donors that run as they learnt."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse.ask import load
from fuse.grafts.donor import open_donor
from fuse.grafts.slots import slots_of
from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe
from tests.cli import fuse_here
from tests.test_zoo import untaught

import mvm_evidence  # isort: skip
import mvm_stages  # isort: skip
import train_mvm  # isort: skip
import zoo_files  # isort: skip
import zoo_tower  # isort: skip
from zoo_text import ANSWER, ASK, BEGIN, END, IMAGE, UNSEEN, ids_of  # isort: skip
from zoo_tower import FORM, HUE  # isort: skip
from zoo_world import Thing, caption, draw, new_scene  # isort: skip


def quiet(text: str) -> None:
    raise AssertionError(f"spoke after one step: {text}")


def pupil(place: str = "beside", inner: int = 4) -> mvm_stages.Pupil:
    torch.manual_seed(0)
    return mvm_stages.new_pupil(untaught(), zoo_tower.CLIPVisionModel(zoo_tower.tower_config(HUE)), HUE, inner=inner,
                                place=place)  # fmt: skip


def kept(*modules: Any) -> list[dict[str, torch.Tensor]]:
    return [{name: weight.clone() for name, weight in module.state_dict().items()} for module in modules]


def changed(module: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, weight in module.state_dict().items() if not torch.equal(weight, before[name])}


def test_a_new_memory_says_nothing() -> None:
    one = pupil()
    ids = torch.arange(6, 30)[None]
    before = one.language(ids).logits
    for graft in (one.graft, mvm_stages.with_mixture(one, 2).graft):
        for name, weight in graft.named_parameters():
            assert bool(weight.isfinite().all()), name
    slots = slots_of(one.language)
    one.graft.attach(slots)
    assert torch.equal(one.language(ids).logits, before)
    slots["language"].remove()
    mixed = mvm_stages.with_mixture(one, 2)
    mixed.graft.attach(slots)
    share = mixed.graft.layers["0"](torch.randn(1, 3, 128))[1]
    torch.testing.assert_close(share, torch.full((1, 3, 1), 0.1))


@pytest.mark.parametrize("place", ["beside", "instead"])
def test_stage_1_changes_memories_and_the_linear_alone(place: str) -> None:
    one = pupil(place)
    before = kept(one.language, one.tower, one.linear, one.graft)
    told = mvm_stages.store(one, 3, steps=2, say=quiet)
    assert told.keys() == {"caption", "infonce", "words", "matched"} and all(np.isfinite(list(told.values())))
    assert changed(one.language, before[0]) == changed(one.tower, before[1]) == set()
    assert changed(one.linear, before[2]) == {"weight", "bias"}
    assert changed(one.graft, before[3]) == set(before[3])
    assert one.language.config._attn_implementation == "sdpa"
    again = pupil(place)
    assert mvm_stages.store(again, 3, steps=2, say=quiet) == told
    assert not changed(again.graft, kept(one.graft)[0])
    ids = torch.arange(6, 30)[None]
    assert torch.equal(one.language(ids).logits, again.language(ids).logits)  # the slots are empty again


def test_the_control_learns_without_memories() -> None:
    one = pupil()
    before = kept(one.linear, one.graft)
    mvm_stages.store(one, 3, steps=1, alone=True, say=quiet)
    assert changed(one.linear, before[0]) == {"weight", "bias"} and changed(one.graft, before[1]) == set()


def test_stage_2_changes_routers_and_low_rank_changes_alone() -> None:
    one = pupil()
    mvm_stages.store(one, 3, steps=1, say=quiet)
    mixed = mvm_stages.with_mixture(one, 2)
    held = kept(one.graft)[0]
    assert all(torch.equal(mixed.graft.state_dict()[name], weight) for name, weight in held.items())
    before = kept(mixed.language, mixed.tower, mixed.linear, mixed.graft)
    mvm_stages.mix(mixed, 3, steps=2, say=quiet)
    assert not any(changed(m, b) for m, b in zip((mixed.language, mixed.tower, mixed.linear), before, strict=False))
    moved = changed(mixed.graft, before[3])
    assert moved == {name for name in before[3] if "_lora." in name or ".router." in name}
    assert mvm_stages.with_mixture(one, 0).graft.config["lora"] is None


def test_captions_and_their_labels() -> None:
    scene = (Thing("south", "red", "star", "X"), Thing("northwest", "blue", "bar", "A"))
    words = ids_of("northwest blue south red")
    asked = caption(scene, "color")
    assert (asked.text, ids_of(asked.answer), asked.skill) == ("what is there ?", words, "caption")
    ids, labels = mvm_stages.captioned(scene, HUE)
    assert ids == [BEGIN, ASK, *[IMAGE] * 9, *ids_of("what is there ?"), ANSWER, *words, END]
    assert labels == [UNSEEN] * 16 + [*words, END]


def test_the_contrast_is_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    texts, images = rng.normal(size=(5, 8)), rng.normal(size=(5, 8))
    cosines = np.array([[t @ i / np.linalg.norm(t) / np.linalg.norm(i) for i in images] for t in texts])
    wide = np.exp(cosines / 0.07)
    wanted = -np.mean([np.log(wide[n, n] / wide[n].sum()) for n in range(5)])
    found = mvm_stages.contrast(torch.from_numpy(texts), torch.from_numpy(images))
    np.testing.assert_allclose(found.item(), wanted, rtol=1e-12)


def test_a_caption_ends_at_its_own_end() -> None:
    """In a padded batch each is read as it is alone."""
    one = pupil()
    scenes = [new_scene(Random(seed), 3, 6) for seed in range(4)]
    found = mvm_stages.ends_of(one, scenes)
    for row, scene in zip(found, scenes, strict=True):
        ids = torch.tensor([[BEGIN, *ids_of(caption(scene, "color").answer), END]])
        torch.testing.assert_close(row, one.language.model(ids).last_hidden_state[0, -1], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo before any training, on one base as the real one's, and donors after one step of each stage."""
    out = tmp_path_factory.mktemp("mvm")
    torch.manual_seed(0)
    words = untaught().state_dict()
    for name, sight in (("base", None), ("expert", None), ("hue", HUE), ("form", FORM)):
        member = untaught(sight)
        language = member.model.language_model if sight else member.model
        language.load_state_dict({key.removeprefix("model."): w for key, w in words.items() if key != "lm_head.weight"})
        zoo_files.write(member, out / name, f"# {name}\n", sight)
    asked = [str(out / "donor"), "--host", str(out / "base"), "--eyes", str(out / "hue")]
    train_mvm.main([*asked, "--steps", "1", "--mixing", "1", "--inner", "4"], standalone_mode=False)
    shutil.copytree(out / "donor", out / "alone")
    (out / "alone").rename(out / "donor" / "alone")  # as if it had been trained in the MLP's place
    asked[0] = str(out / "donor" / "control")
    train_mvm.main([*asked, "--steps", "1", "--control"], standalone_mode=False)
    return out


def test_donors(trained: Path) -> None:
    memory, mixture = (open_donor(name, trained / "donor") for name in ("memory", "mixture"))
    assert (memory.config["router"], memory.config["place"]) == ("additive", "beside")
    assert mixture.config["router"] == "softmax" and mixture.config["lora"]["mlp_size"] == 256
    for donor in (memory, mixture):
        assert (donor.host["model"], donor.host["hidden_size"], donor.host["layers"]) == ("base", 128, 4)
        assert donor.host["norm"] == "rms" and donor.host["embedding"]
    same = [load_file(donor.folder / "graft.safetensors") for donor in (memory, mixture)]
    assert all(torch.equal(same[1][name], weight) for name, weight in same[0].items())
    assert all(weight.dtype == torch.bfloat16 for weight in same[1].values())
    told = json.loads((trained / "donor" / "memory.json").read_text())
    assert told["command"].startswith("tools/train_mvm.py --host base --eyes hue --sight hue --seed 0 --inner 4 ")
    assert told.keys() == {"command", "stage 1", "stage 2"}
    assert {path.name for path in (trained / "donor" / "control").iterdir()} == {
        "eyes", "linear.safetensors", "memory.json",
    }  # fmt: skip


def test_a_graft_is_heard_as_it_was_trained(trained: Path, tmp_path: Path) -> None:
    """The fused model of eyes, linear and mixture gives the logits of the pupil with the same weights."""
    shutil.copytree(trained / "donor", tmp_path / "donor")
    file = tmp_path / "donor" / "mixture" / "graft.safetensors"
    learnt = {name: torch.randn_like(weight.float()) * 0.1 for name, weight in load_file(file).items()}
    learnt = {name: weight.bfloat16() for name, weight in learnt.items()}
    save_file(learnt, file)
    text = mvm_evidence.recipe(mvm_evidence.HOSTS["own"], tmp_path / "donor", "mixture")
    (tmp_path / "recipe.yaml").write_text(text.replace("ZOO", str(trained)))
    ran = fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out")
    assert (ran.code, ran.err) == (0, ""), ran
    made = load(tmp_path / "out")
    assert made.processor is not None
    text = "<s><q><image> what color is at north ?<a>"
    picture = draw(new_scene(Random(1)), Random(1))
    inputs = made.processor(images=[picture], text=[text], return_tensors="pt", add_special_tokens=False)
    got = made.model.float()(**inputs).logits
    one = train_mvm.load_pupil(trained / "base", trained / "hue", "hue", 0, inner=4, place="beside")
    one = mvm_stages.with_mixture(one, 4)
    one.graft.load_state_dict({name: weight.float() for name, weight in learnt.items()})
    linear = load_file(trained / "donor" / "linear.safetensors")
    one.linear.load_state_dict({name: weight.float() for name, weight in linear.items()})
    features = one.tower(pixel_values=torch.stack(inputs["branches.lent.pixel_values"])).last_hidden_state[:, 1:]
    ids = torch.tensor([[BEGIN, ASK, *[IMAGE] * 9, *ids_of("what color is at north ?"), ANSWER]])
    embeds = one.embedded(ids, features)
    slots = slots_of(one.language)
    one.graft.attach(slots)
    wanted = one.language(inputs_embeds=embeds).logits
    torch.testing.assert_close(got[..., : wanted.shape[-1]], wanted, rtol=0, atol=1e-4)
    slots["language"].remove()
    assert (one.language(inputs_embeds=embeds).logits - wanted).abs().max() > 0.1


def test_every_row_of_the_tables_can_be_made(trained: Path, tmp_path: Path) -> None:
    for host in mvm_evidence.HOSTS.values():
        labels = []
        for row in mvm_evidence.rows(host, trained / "donor", tmp_path):
            labels.append(row.label)
            if not row.recipe:
                assert row.parent == str(tmp_path)
                continue
            file = tmp_path / "row.yaml"
            file.write_text(row.recipe.replace("ZOO", str(trained)))
            plan = make_plan(load_recipe(file))
            if row.label == "plain":
                assert (plan.fused is None) == (len(host.own) == 1)
                continue
            assert plan.fused is not None and len(plan.fused.branches) == 1 + len(host.own), row.label
            assert len(plan.fused.grafts) == (row.label != "control"), row.label
        assert labels[0] == "no memory" and len(set(labels)) == len(labels) == 13 + bool(host.own)
        assert {"control", "alone, none", "alone, softmax"} <= set(labels)
