"""Plans of fused folders: who is the host, which rows there are, and what is refused, word for word."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse.branches.llava_original import LlavaBranch
from fuse.branches.mgm import MgmBranch
from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe
from tests import fused_members, layouts, tiny_vlm
from tests.cli import fuse_here
from tests.fused_members import CORE
from tests.members import save_member, words
from tests.test_branch_mgm import mgm
from tests.test_branch_towers import clip_folder, convnext_folder, original, outside


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("family")
    fused_members.save("llava", root / "a")
    fused_members.save("llava_next", root / "b", seed=2)
    fused_members.save("idefics3", root / "tiles", seed=3)
    fused_members.save("internvl", root / "qwen", seed=4)
    fused_members.save_llm(root / "llm")
    fused_members.save_llm(root / "chat", special=["<|turn|>"], template="<|turn|>{{ messages[0].content }}")
    for kind in ("mllama", "qwen3_vl", "blip-2", "instructblip"):
        save_member(
            tiny_vlm.build(kind), root / kind, words(tiny_vlm.build(kind).get_input_embeddings().weight.shape[0])
        )
    t5 = tiny_vlm.build("instructblip with T5")
    save_member(t5, root / "t5", words(t5.get_input_embeddings().weight.shape[0]))
    layouts.build_original("internvl", root / "chat_layout")
    fused_members.tokenizer([]).save_pretrained(root / "chat_layout")
    return root


def recipe(family: Path, names: str, rest: str) -> str:
    members = ", ".join(f"{name.replace('-', '_')}: {family}/{name}" for name in names.split())
    return f"members: {{{members}}}\n{rest}"


def plan_of(family: Path, tmp_path: Path, names: str, rest: str):
    (tmp_path / "r.yaml").write_text(recipe(family, names, rest))
    return make_plan(load_recipe(tmp_path / "r.yaml"))


HALF = "language: {method: linear, weights: 0.5}\n"
HOSTS = {
    "vision: [b, a]\n": ("b", "llava_next"),
    "vision: [b, a]\noutput: {host: llm}\n": ("llm", "llama"),
    "vision: [a, b]\noutput: {host: b}\n": ("b", "llava_next"),
    "vision: [{from: b, max_tokens: 3}]\noutput: {host: a}\n": ("a", "llava"),
    "vision: [a]\noutput: {model: fuse}\n": ("a", "llava"),
}


@pytest.mark.parametrize("rest", HOSTS)
def test_host(family: Path, tmp_path: Path, rest: str) -> None:
    plan = plan_of(family, tmp_path, "a b llm", HALF + rest)
    assert plan.fused is not None
    assert (plan.host.name, plan.fused.host_type) == HOSTS[rest]


def test_every_tensor_is_accounted_for(family: Path, tmp_path: Path) -> None:
    """Rows and drops together are the members' tensors, each in one of the two; names follow the contract."""
    plan = plan_of(family, tmp_path, "llm a tiles", "language: {method: linear, weights: {llm: 1}}\nvision: [a, tiles]\n"
                   "output: {host: llm}\n")  # fmt: skip
    read = {(s.member, s.tensor.name) for row in plan.rows for s in row.reads}
    dropped = {(d.source.member, d.source.tensor.name) for d in plan.drops}
    assert read | dropped == {(m.name, key) for m in plan.members for key in m.checkpoint.tensors}
    assert not read & dropped
    assert {d.reason for d in plan.drops} == {"language gives a no weight", "language gives tiles no weight"}
    llm = [row.name for row in plan.rows if row.part == "language"]
    assert llm == [f"language_model.{key}" for key in plan.host.checkpoint.tensors]
    others = {row.name.split(".")[1] for row in plan.rows if row.part != "language"}
    assert others == {"a", "tiles"}
    assert all(row.name.startswith("branches.") for row in plan.rows if row.part != "language")


def test_rows_of_tokens(family: Path, tmp_path: Path) -> None:
    """Guests' tokens and placeholders take the host's free rows, lowest first; donors take no part in the merge."""
    plan = plan_of(family, tmp_path, "a tiles", "language: {method: linear, weights: {a: 1}}\nvision: [a, tiles]\n")
    assert plan.fused is not None
    markers = fused_members.SPECIAL["idefics3"][1:]  # a has <image> too
    rows = {token.token: token.row for token in plan.new_tokens}
    assert rows == {t: CORE + 1 + i for i, t in enumerate([*markers, "<|fuse:a|>", "<|fuse:tiles|>"])}
    assert plan.fused.image_token_id == CORE and plan.fused.silent == (CORE + 8, CORE + 9)
    table = next(row for row in plan.rows if row.name.endswith("embed_tokens.weight"))
    assert [s.member for s in table.sources] == ["a"] and [s.member for s in table.donors] == ["tiles"]
    assert [(a.row, a.source, a.source_row) for a in table.added] == [(CORE + 1 + i, 1, CORE + 1 + i) for i in range(7)]
    assert table.note == "rows of 7 new tokens; lent by tiles, whose encoder needs them in the prompt"


def test_what_plan_says_of_one_and_of_several(family: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(recipe(family, "a chat tiles", "language: {method: linear, weights: {a: 1, chat: 1}}"
                                            "\nvision: [a, tiles]\n"))  # fmt: skip
    said = fuse_here("plan", tmp_path / "r.yaml").out.splitlines()
    assert (
        "  ! tokens: chat has 1 token more than a, 1 fewer, 0 at other ids; tiles has 7 tokens more than a, 0 fewer, "
        "0 at other ids"
    ) in said
    assert any(re.match(r"  projector +5 +[\d,]+ +14.6 kB$", line) for line in said)
    assert "  tiles: idefics3_vision, 5 visual tokens, 13 markers" in said
    (tmp_path / "r.yaml").write_text(recipe(family, "tiles", HALF + "vision: [tiles]\n"))
    alone = r"^  projector +1 +[\d,]+ +8.2 kB  copy from tiles: "
    assert re.search(alone, fuse_here("plan", tmp_path / "r.yaml").out, re.MULTILINE)


def test_whose_encoder_where_one_of_three_cannot_be_fused(family: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(recipe(family, "a blip-2 tiles", HALF))
    assert fuse_here("plan", tmp_path / "r.yaml").err == (
        "fuse: r.yaml: a and blip_2 and tiles can see: say whose encoder and projector the output keeps "
        "(vision: [a, tiles], vision: [a], or vision: [] and a text-only output.host)\n"
    )


def test_a_marker_without_a_stored_row_stays_out(family: Path, tmp_path: Path) -> None:
    """A tokenizer may know tokens that its model has no row for; a branch cannot need them."""
    shutil.copytree(family / "b", tmp_path / "b")
    fused_members.tokenizer(["<image>", *(f"<x{i}>" for i in range(20))]).save_pretrained(tmp_path / "b")
    (tmp_path / "r.yaml").write_text(
        f"members: {{a: {family}/a, b: b}}\nlanguage: {{method: linear, weights: {{a: 1}}}}\nvision: [a, b]\n"
    )
    plan = make_plan(load_recipe(tmp_path / "r.yaml"))
    tokens = [token.token for token in plan.new_tokens]
    assert tokens == [*(f"<x{i}>" for i in range(15)), "<|fuse:a|>", "<|fuse:b|>"]


LLM = "language: {method: linear, weights: {llm: 1}}\noutput: {host: llm}\n"
REFUSED = {
    ("a b", HALF + "vision: [a, b]\noutput: {model: native}\n"):
        "r.yaml:4:10: output.model: native has no place for 2 branches (leave it out, or write fuse)",
    ("a", HALF + "vision: [{from: a, max_tokens: 3}]\noutput: {model: native}\n"):
        "r.yaml:4:10: output.model: native has no place for max_tokens (leave it out, or write fuse)",
    ("llm mllama", LLM + "vision: [mllama]\n".replace("]", ", mllama]")):
        "r.yaml:4:18: vision.1: mllama is in vision twice",
    ("llm mllama", LLM.replace("llm}", "llm, model: fuse}") + "vision: [mllama]\n"):
        "r.yaml:4:10: vision.0: mllama (mllama) cannot be fused: it reads images through cross-attention, so there are "
        "no visual tokens to concatenate",
    ("a mllama", HALF + "vision: [a]\noutput: {host: mllama, model: fuse}\n"):
        "r.yaml:4:10: output.host: mllama (mllama) cannot be fused: it reads images through cross-attention, so there "
        "are no visual tokens to concatenate",
    ("a qwen3_vl", HALF + "vision: [a, qwen3_vl]\n"):
        "r.yaml:3:13: vision.1: qwen3_vl (qwen3_vl) cannot be fused: its DeepStack adds image features inside the "
        "language model, not only in the sequence",
    ("a blip-2", HALF + "vision: [a, blip_2]\n"):
        "r.yaml:3:13: vision.1: blip_2 (blip-2) cannot be fused: its visual tokens come out of a Q-Former, which this "
        "version does not carry",
    ("a instructblip", HALF + "vision: [a, instructblip]\n"):
        "r.yaml:3:13: vision.1: instructblip (instructblip) cannot be fused: its Q-Former reads the question with "
        "weights of its own, which this version does not carry",
    ("a chat_layout", HALF + "vision: [a, chat_layout]\n"):
        "r.yaml:3:13: vision.1: chat_layout (internvl_chat) cannot be fused: it has the layout of its authors' code; "
        "convert it to transformers' internvl first",
    ("a t5", HALF + "vision: [a]\noutput: {host: t5, model: fuse}\n"):
        "r.yaml:4:10: output.host: t5 (instructblip) cannot be fused: its Q-Former reads the question with weights of "
        "its own, which this version does not carry",
    ("a qwen", "language: {method: linear, weights: {a: 1}}\nvision: [a, qwen]\n"):
        "FAMILY/qwen/config.json: a and qwen are not of one base: family is llama in a and qwen2 in qwen (members of one "
        "base agree in this)",
    ("a llm", HALF + "vision: [a, llm]\n"): "r.yaml:3:13: vision.1: llm has no encoder",
    ("a b chat", HALF + "vision: [a, b]\nprompt: {template: chat}\n"):
        "r.yaml:4:10: prompt.template: chat's template writes '<|turn|>', which a has no token for "
        "(`embeddings: union` under language adds it)",
    ("a b chat", "language: {method: linear, weights: {a: 1}, embeddings: union}\nvision: [a, b]\n"
                 "prompt: {template: chat}\n"):
        "r.yaml:4:10: prompt.template: chat's template writes '<|turn|>', which a has no token for "
        "(`embeddings: union` under language adds it)",
    ("a", HALF + "vision: [a, {name: c, encoder: nowhere, projector: p.safetensors}]\n"): "r.yaml:3:13: vision.1: ",
    ("a llm", HALF.replace("0.5", "{llm: 1}") + "vision: [{from: a, max_tokens: 2}]\noutput: {host: nobody}\n"):
        "r.yaml:4:10: output.host: 'nobody' is not a member (known: a, llm)",
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(family: Path, tmp_path: Path, case: tuple[str, str]) -> None:
    (tmp_path / "r.yaml").write_text(recipe(family, *case))
    ran = fuse_here("merge", tmp_path / "r.yaml", tmp_path / "out")
    said = ran.err.removeprefix("fuse: ").strip().replace(str(family), "FAMILY")
    assert ran.code in {2, 3} and ran.err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert said.startswith(REFUSED[case]) if REFUSED[case].endswith(": ") else said == REFUSED[case]
    assert fuse_here("plan", tmp_path / "r.yaml").err == ran.err


def test_template_for_plain_text(family: Path, tmp_path: Path) -> None:
    plan = plan_of(family, tmp_path, "a b chat", HALF.replace("0.5", "0.5, embeddings: union") + "vision: [a, b]\n"
                   "prompt: {template: chat}\n")  # fmt: skip
    said = "chat's, as the recipe says; it has no place for images, which go before the words"
    assert plan.verdicts[-1].text == said and not plan.verdicts[-1].agrees
    assert plan.template_text == "<|turn|>{{ messages[0].content }}"
    assert "<|turn|>" in {token.token for token in plan.new_tokens}


def test_budget_of_less_than_a_token_a_tile(family: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(recipe(family, "a tiles", HALF + "vision: [a, {from: tiles, max_tokens: 3}]\n"))
    problem = (
        "max_tokens 3 is too few: this branch writes one image in 5 runs of visual tokens, and each keeps at least one"
    )
    ran = fuse_here("plan", tmp_path / "r.yaml")
    assert ran.code == 0 and f"  tiles: idefics3_vision, 5 visual tokens; {problem}" in ran.out.splitlines()
    ran = fuse_here("plan", tmp_path / "r.yaml", "--image-size", "60x40")
    assert (ran.code, ran.err) == (2, f"fuse: vision.tiles: {problem} (max_tokens 5 is the smallest that works here)\n")


def broken(family: Path, tmp_path: Path, rest: str = "vision: [a, b]\n") -> str:
    """What is said of a recipe over copies of a and b that the caller has changed."""
    (tmp_path / "r.yaml").write_text(f"members: {{a: a, b: b}}\n{HALF}{rest}")
    ran = fuse_here("plan", tmp_path / "r.yaml")
    assert ran.code in {2, 3} and ran.err.count("\n") == 1, ran
    return ran.err.removeprefix("fuse: ").strip().replace(str(tmp_path), "HERE")


@pytest.fixture
def copies(family: Path, tmp_path: Path) -> Path:
    for name in "ab":
        shutil.copytree(family / name, tmp_path / name)
    return tmp_path


def test_member_without_a_processor(family: Path, copies: Path) -> None:
    (copies / "b" / "processor_config.json").unlink()
    assert broken(family, copies) == (
        "HERE/b: b has no preprocessor_config.json, so its branch could not prepare images (copy it from the member's "
        "own repository)"
    )


def test_tokenizer_that_cannot_be_extended(family: Path, copies: Path) -> None:
    for name in "ab":
        vocabulary = json.loads((copies / name / "tokenizer.json").read_text())["model"]["vocab"]
        (copies / name / "tokenizer.json").unlink()
        (copies / name / "vocab.json").write_text(json.dumps(vocabulary))
    assert broken(family, copies) == (
        "HERE/a: tokens can only be added to a tokenizer.json (save it with transformers' fast tokenizer, whose "
        "tokenizer.json can be extended)"
    )


def test_towers_of_members_that_have_none(family: Path, copies: Path) -> None:
    for rest, said in (
        ("vision: [a, b]\n", "r.yaml:1:24: members.a.towers: a holds its own encoder (leave `towers` out)"),
        ("vision: [a]\n", "r.yaml:1:24: members.a.towers: a holds its own encoder (leave `towers` out)"),
    ):
        (copies / "r.yaml").write_text(f"members: {{a: {{path: a, towers: {{vision_tower: x}}}}, b: b}}\n{HALF}{rest}")
        assert fuse_here("plan", copies / "r.yaml").err == f"fuse: {said}\n"
    shutil.copytree(family / "llm", copies / "llm")
    (copies / "r.yaml").write_text(f"members: {{a: {{path: llm, towers: {{vision_tower: x}}}}}}\n{HALF}")
    told = "r.yaml:1:26: members.a.towers: a cannot see (leave `towers` out)"
    assert fuse_here("plan", copies / "r.yaml").err == f"fuse: {told}\n"


def test_projector_of_another_language_model(family: Path, copies: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    ).save_pretrained(copies / "dino")
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        copies / "dino"
    )
    save_file({"weight": torch.zeros(48, 16), "bias": torch.zeros(48)}, copies / "p.safetensors")
    rest = "vision: [a, {name: dino, encoder: dino, projector: p.safetensors}]\n"
    assert broken(family, copies, rest) == (
        "HERE/p.safetensors: the projector of dino gives tokens of 48 numbers, and a reads 32 (a projector belongs to the "
        "language model that it was trained for; a `bridge` brings it over)"
    )
    save_file({"weight": torch.ones(32, 16), "bias": torch.zeros(32)}, copies / "p.safetensors")
    (copies / "r.yaml").write_text(f"members: {{a: a, b: b}}\n{HALF}{rest}")
    ran = fuse_here("merge", copies / "r.yaml", copies / "out")
    assert ran.code == 0, ran.err
    stored = load_file(copies / "out" / "model.safetensors")
    assert torch.equal(stored["branches.dino.projector.0.weight"], torch.ones(32, 16))
    provenance = json.loads((copies / "out" / "fuse.json").read_text())
    assert [f["name"] for f in provenance["branches"][1]["files"]] == ["dino.encoder", "dino.projector"]
    assert {d["reason"] for d in provenance["dropped"] if d["member"] == "dino.encoder"} == {
        "only used to train the encoder"
    }
    assert (copies / "out" / "branches" / "dino" / "preprocessor_config.json").exists()
    shutil.copy(copies / "p.safetensors", copies / "out")
    (copies / "r.yaml").write_text(f"members: {{a: a, b: b}}\n{HALF}{rest.replace('p.safe', 'out/p.safe')}")
    ran = fuse_here("merge", copies / "r.yaml", copies / "out", "--force")
    assert (ran.code, ran.err) == (
        2,
        f"fuse: {copies}/out: the output would replace p.safetensors, which it is made of\n",
    )


def test_projector_that_does_not_fit_its_own_language_model(tmp_path: Path) -> None:
    clip_folder(tmp_path / "clip")
    original(tmp_path / "mgm", MgmBranch(mgm(hidden_size=16)), mgm(), outside)
    fused_members.tokenizer([]).save_pretrained(tmp_path / "mgm")
    convnext_folder(tmp_path / "convnext")
    (tmp_path / "r.yaml").write_text(
        "members: {m: {path: mgm, towers: {vision_tower: clip, vision_tower_aux: convnext}}}\n"
        "language: {method: linear, weights: 1}\nvision: [m]\noutput: {model: fuse}\n"
    )
    ran = fuse_here("plan", tmp_path / "r.yaml")
    assert (ran.code, ran.err.replace(str(tmp_path), "HERE")) == (
        3, "fuse: HERE/mgm/model.safetensors: tensor 'model.mm_projector.2.weight' gives tokens of 16 numbers, and the "
           "language model reads 32\n"
    )  # fmt: skip


def test_towers(tmp_path: Path) -> None:
    """A tower that is not there, and one that the member's kind has no place for, point into the recipe."""
    clip_folder(tmp_path / "clip")
    settings = mgm(hidden_size=32, model_type="llava_llama")
    original(
        tmp_path / "llava", LlavaBranch(settings), settings, outside, mm_vision_tower="clip", model_type="llava_llama"
    )
    fused_members.tokenizer([]).save_pretrained(tmp_path / "llava")
    for towers, said in (
        ("vision_tower: nowhere/at/all", "members.l.towers.vision_tower: 'nowhere/at/all' does not exist"),
        ("vision_tower_aux: clip", "members.l.towers.vision_tower_aux: l (llava_llama) has no such tower"),
    ):
        (tmp_path / "r.yaml").write_text(
            f"members: {{l: {{path: llava, towers: {{{towers}}}}}}}\nlanguage: {{method: linear, weights: 1}}\n"
            "vision: [l]\noutput: {model: fuse}\n"
        )
        ran = fuse_here("plan", tmp_path / "r.yaml")
        assert ran.code == 2 and ran.err.startswith(f"fuse: r.yaml:1:37: {said}") and ran.err.count("\n") == 1
    (tmp_path / "r.yaml").write_text(
        "members: {l: llava}\nlanguage: {method: linear, weights: 1}\nvision: [l]\noutput: {model: fuse}\n"
    )
    ran = fuse_here("merge", tmp_path / "r.yaml", tmp_path / "out")
    assert ran.code == 0, ran.err
    provenance = json.loads((tmp_path / "out" / "fuse.json").read_text())
    (lent,) = provenance["branches"][0]["files"]
    assert (lent["name"], lent["origin"], list(lent["sha256"])) == ("l.vision_tower", "clip", ["model.safetensors"])


def test_the_base_may_be_the_host(family: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"base: {family}/llm\nmembers: {{a: {family}/a, b: {family}/b}}\n"
        "language: {method: task_arithmetic, weights: {a: 0.5, b: 0.25}}\nvision: [b]\n"
        "output: {host: base, model: fuse}\n"
    )
    ran = fuse_here("merge", tmp_path / "r.yaml", tmp_path / "out")
    assert ran.code == 0, ran.err
    stored, base, a, b = (
        load_file(f / "model.safetensors") for f in (tmp_path / "out", family / "llm", family / "a", family / "b")
    )
    name = "model.layers.0.mlp.up_proj.weight"
    inner = f"language_model.{name}"
    want = base[name] + 0.5 * (a[inner] - base[name]) + 0.25 * (b[inner] - base[name])
    torch.testing.assert_close(stored[inner], want)
