"""Donor folders and outputs that somebody has broken, and what a graft is not asked: one sentence each, no output."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests import recipe_members, tiny_grafts, tiny_processors, tiny_vlm
from tests.cli import Ran, fuse_here
from tests.original_branches import picture

HEAD = "members: {vlm: vlm}\nlanguage: {method: linear, weights: {vlm: 1}}\nvision: [vlm]\noutput: {dtype: float32}\n"
VISUAL = {"features": 4, "width": 4, "depth": 1, "heads": 2, "inner": 4}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA and a donor of every kind that fits it."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_processors.save(tiny_vlm.build("llava"), folder / "vlm")
    text = json.loads((folder / "vlm" / "config.json").read_text())["text_config"]
    for kind in tiny_grafts.CONFIGS:
        tiny_grafts.donor(folder / kind, kind, text)
    return folder


def run(parts: Path, grafts: str, *command: object) -> Ran:
    (parts / "recipe.yaml").write_text(HEAD + f"grafts: {grafts}\n")
    return fuse_here(*(command or ("plan", parts / "recipe.yaml")))


def merged(parts: Path, grafts: str, out: Path) -> Path:
    ran = run(parts, grafts, "merge", parts / "recipe.yaml", out)
    assert (ran.code, ran.err) == (0, ""), ran
    return out


BROKEN: list[tuple[str, tuple[str, ...], Any, str]] = [
    ("mks2", ("kind",), ["mks2"], "has kind ['mks2'] (did you mean: mks2)"),
    ("mks2", ("kind",), {}, "has kind {} (known: lavin, lion, llama_adapter, lmeye, lmeye_blip2, lora, mks2)"),
    ("mks2", ("config", "norm_eps"), 10**400, "config: int too large to convert to float"),
    ("mks2", ("host", "model"), {"a": 1}, "host: model is \"{'a': 1}\", which it cannot be"),
    ("mks2", ("host", "layers"), "two", "host: layers is 'two', which it cannot be"),
    ("mks2", ("host", "embedding"), ["x"], "host: embedding is \"['x']\", which it cannot be"),
    ("lavin", ("config", "layers"), 1 << 23, "config: layers is 8388608, and more than 10,000 cannot be"),
    ("llama_adapter", ("config", "depth"), 1 << 30, "config: depth is 1073741824, and more than 10,000 cannot be"),
    (
        "llama_adapter", ("config", "visual"), {**VISUAL, "depth": 1 << 30},
        "config: depth is 1073741824, and more than 10,000 cannot be",
    ),
    ("lmeye", ("config", "clip", "layers"), 40_000, "config: clip: layers is 40000, not a size"),
    (
        "lmeye", ("config", "clip", "activation"), "swish2",
        "config: clip: activation is 'swish2', not one of quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, "
        "relu, silu",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "path", "value", "told"), BROKEN, ids=[f"{kind} {'.'.join(path)}" for kind, path, *_ in BROKEN]
)
def test_a_donor_whose_json_cannot_be(
    parts: Path, tmp_path: Path, kind: str, path: tuple[str, ...], value: Any, told: str
) -> None:
    stated = json.loads((parts / kind / "graft.json").read_text())
    inner = stated
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "graft.json").write_text(json.dumps(stated))
    save_file(load_file(parts / kind / "graft.safetensors"), tmp_path / "graft.safetensors")
    ran = run(parts, f"[{tmp_path}]")
    assert (ran.code, ran.err) == (3, f"fuse: {tmp_path}/graft.json: {told}\n")


def test_a_sample_whose_tokens_are_no_texts(parts: Path, tmp_path: Path) -> None:
    stated = json.loads((parts / "mks2" / "graft.json").read_text())
    stated["host"]["embedding"] = {"rows": [1], "tokens": [[]], "values": "AACAPw=="}
    (tmp_path / "graft.json").write_text(json.dumps(stated))
    save_file(load_file(parts / "mks2" / "graft.safetensors"), tmp_path / "graft.safetensors")
    ran = run(parts, f"[{tmp_path}]")
    assert (ran.code, ran.err) == (3, "fuse: graft.json: host: embedding is no sample of an embedding\n")


def test_a_host_without_a_name(parts: Path, tmp_path: Path) -> None:
    stated = json.loads((parts / "mks2" / "graft.json").read_text()) | {"host": {}}
    (tmp_path / "graft.json").write_text(json.dumps(stated))
    save_file(load_file(parts / "mks2" / "graft.safetensors"), tmp_path / "graft.safetensors")
    assert ", scale 1, cut from a host that it does not name\n" in run(parts, f"[{tmp_path}]").out


def test_a_hosts_name_that_would_write_more_than_itself(parts: Path, tmp_path: Path) -> None:
    stated = json.loads((parts / "mks2" / "graft.json").read_text())
    stated["host"]["model"] = "\x1b[31mred\n  lion: lion"
    (tmp_path / "graft.json").write_text(json.dumps(stated))
    save_file(load_file(parts / "mks2" / "graft.safetensors"), tmp_path / "graft.safetensors")
    assert "cut from \\x1b[31mred lion: lion of 2 layers\n" in run(parts, f"[{tmp_path}]").out


TAMPERED: list[tuple[dict[str, Any], str]] = [
    ({"kind": ["lion"]}, "graft 'lion' has kind ['lion']"),
    ({"scale": 10**400}, f"graft 'lion' has scale {10**400}"),
    ({"config": {}}, "config of graft 'lion': stacks is missing"),
    ({"config": {"stacks": {"language": 10**9}, "width": 8, "bottleneck": 4}},
     "config of graft 'lion': layers of language is 1000000000, not a whole number from 1 to 10,000"),
]  # fmt: skip


def test_an_output_that_somebody_has_changed(parts: Path, tmp_path: Path) -> None:
    out = merged(parts, "[lion]", tmp_path / "out")
    whole = json.loads((out / "config.json").read_text())
    for change, told in TAMPERED:
        (out / "config.json").write_text(json.dumps({**whole, "grafts": [{**whole["grafts"][0], **change}]}))
        ran = fuse_here("ask", out, "w5", "--max-tokens", "1")
        assert (ran.code, ran.err) == (3, f"fuse: config.json: {told}\n")
    whole["grafts"][0]["config"]["bottleneck"] += 1
    (out / "config.json").write_text(json.dumps(whole))
    ran = fuse_here("ask", out, "w5", "--max-tokens", "1")
    assert ran.code == 3 and ran.err.startswith(f"fuse: {out}: mismatched keys: "), ran
    assert ran.err.endswith(", the first is grafts.lion.language.0.adapters.0.down_proj.bias\n"), ran


@pytest.mark.parametrize("kind", ["mks2", "lion", "lavin", "lora", "llama_adapter"])
def test_a_graft_that_looks_at_no_image_names_no_branch(parts: Path, kind: str) -> None:
    ran = run(parts, f"[{{from: {kind}, image: vlm}}]")
    told = f"grafts.0.image: {kind} looks at no image, so no branch can be named (leave it out)\n"
    assert ran.code == 2 and ran.err.startswith("fuse: recipe.yaml:5:") and ran.err.endswith(f": {told}"), ran


NO_EFFECT = {
    "{from: lion, activation: gelu}": "`activation: gelu` is for the feed-forward layers of a T5, and the host is none "
    "(leave it out)",
    "{from: mks2, router: token_type}": "mks2 works on images, and vision has no branch",
}


@pytest.mark.parametrize("graft", NO_EFFECT)
def test_what_would_do_nothing_is_refused(parts: Path, graft: str) -> None:
    recipe_members.save("llama", parts / "llm", 0)
    (parts / "text.yaml").write_text(
        f"members: {{llm: llm}}\nlanguage: {{method: linear, weights: {{llm: 1}}}}\ngrafts: [{graft}]\n"
    )
    ran = fuse_here("plan", parts / "text.yaml")
    assert (
        ran.code == 2
        and ran.err.startswith("fuse: text.yaml:3:")
        and ran.err.endswith(f": grafts.0: {NO_EFFECT[graft]}\n")
    ), ran


def test_an_ensemble_of_a_recipe_with_grafts(parts: Path) -> None:
    ran = run(parts, "[mks2]", "ask", parts / "recipe.yaml", "w5", "--ensemble")
    told = (
        "grafts: an ensemble asks the members as they are, and this recipe has grafts "
        "(merge it first and ask the folder, or leave the grafts out)\n"
    )
    assert ran.code == 2 and ran.err.startswith("fuse: recipe.yaml:5:") and ran.err.endswith(f": {told}"), ran


def test_attention_is_that_of_the_answer_and_not_of_a_grafts_own_passes(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LaVIN asks for a pass of one token before the answer begins."""
    from fuse.report import attention

    out = merged(parts, "[lavin]", tmp_path / "out")
    seen: list[tuple[list[int], int]] = []
    real = attention.answer_attention

    def spy(steps: Any, length: int) -> Any:
        seen.append(([step[0].shape[-1] for step in steps], length))
        return real(steps, length)

    monkeypatch.setattr(attention, "answer_attention", spy)
    picture(60, 40).save(tmp_path / "photo.png")
    ran = fuse_here(
        "ask", out, "w5", "--image", tmp_path / "photo.png", "--max-tokens", 3, "--attention", tmp_path / "seen.png"
    )
    assert ran.code == 0 and (tmp_path / "seen.png").stat().st_size > 1000, ran
    keys, length = seen[0]
    assert keys == list(range(length, length + len(keys)))
