"""Bridges from recipe to output: what crosses says what it said at home, what fits badly or cannot cross is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fuse.ask import load
from tests import recipe_members, tiny_grafts, tiny_text
from tests.cli import Ran, fuse_here
from tests.members import save_member
from tests.rotated_hosts import WIDTH, build, turn, turned
from tests.test_bridge import IDS, TEXTS

BRIDGE = {"method": "procrustes", "texts": "texts.txt", "host": "own"}
MEMORY = {"from": "memory", "bridge": BRIDGE}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, the same in other axes, one of other weights, and donors cut from the first."""
    folder = tmp_path_factory.mktemp("bridges")
    save_member(build(), folder / "own", dtype=torch.float32)
    save_member(turned("llama", turn(WIDTH)), folder / "turned", dtype=torch.float32)
    save_member(build(seed=5), folder / "other", dtype=torch.float32)
    save_member(tiny_text.build("gpt2"), folder / "gpt2", dtype=torch.float32)
    (folder / "texts.txt").write_text("\n\n".join(TEXTS) + "\n")
    (folder / "few.txt").write_text("w1 w2\nw3\n")
    (folder / "latin.txt").write_bytes(b"w1 caf\xe9\n" * 9)
    host = json.loads((folder / "own" / "config.json").read_text())
    for name, kind in {"memory": "mks2", "adapters": "lion", "routes": "lavin", "prompts": "llama_adapter", "low": "lora"}.items():  # fmt: skip
        tiny_grafts.donor(folder / name, kind, host)
        told = json.loads((folder / name / "graft.json").read_text())
        told["host"] = record(folder / "own")
        (folder / name / "graft.json").write_text(json.dumps(told))
    return folder


def record(member: Path) -> dict[str, Any]:
    from fuse.anatomy import open_member
    from fuse.grafts.basis import host_of

    return host_of(open_member(member.name, str(member), revision=None, relative_to=Path()))


def run(folder: Path, verb: str, name: str, host: str, *grafts: dict[str, Any], **more: Any) -> Ran:
    recipe = {
        "members": {host: {"path": host}}, "language": {"method": "linear", "weights": {host: 1}},
        "grafts": list(grafts), "output": {"dtype": "float32"}, **more,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return fuse_here(verb, folder / f"{name}.yaml", *([folder / name, "--quiet"] if verb == "merge" else []))


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load(folder).model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("donor", ["memory", "adapters", "routes", "prompts"])
def test_over_a_bridge_a_graft_says_what_it_says_at_home(place: Path, donor: str) -> None:
    bridge = {**BRIDGE, "method": "procrustes"}
    made = run(place, "merge", f"{donor}_crossed", "turned", {"from": donor, "bridge": bridge})
    assert made.code == 0, made.err
    assert ", R2 1.000 to 1.000 on held-out data" in made.out
    assert run(place, "merge", f"{donor}_home", "own", {"from": donor}).code == 0
    assert run(place, "merge", f"{donor}_silent", "own", {"from": donor, "scale": 0}).code == 0
    home, silent, crossed = (logits(place / f"{donor}_{word}") for word in ("home", "silent", "crossed"))
    assert (home - silent).abs().max() > 0.05
    assert (home - crossed).abs().max() < 2e-4 * home.abs().max()


def test_the_output_tells_what_it_was_fitted_to(place: Path) -> None:
    assert run(place, "merge", "told", "turned", MEMORY).code == 0
    out = place / "told"
    (graft,) = json.loads((out / "fuse.json").read_text())["grafts"]
    assert graft["bridge"]["method"] == "procrustes"
    assert graft["bridge"]["texts"]["count"] == len(TEXTS)
    assert graft["bridge"]["r2"].keys() == {"language.0.ffn", "language.1.ffn"}
    assert graft["bridge"]["sha256"].keys() == {"model.safetensors"}
    (entry,) = json.loads((out / "config.json").read_text())["grafts"]
    assert entry["bridge"]["stacks"] == {"language": {"layers": 2, "onto": [0, 1]}}
    card = (out / "README.md").read_text()
    assert "over a bridge (procrustes) from " in card
    assert "R2 1.000 to 1.000 on held-out data" in card
    plan = run(place, "plan", "told", "turned", MEMORY)
    assert "mks2 crosses a bridge" in plan.out
    assert "fitted to both hosts" in plan.out


def test_shared_tokens_need_no_texts(place: Path) -> None:
    bridge = {"method": "embedding", "host": "own"}
    assert run(place, "merge", "embedded", "turned", {"from": "memory", "bridge": bridge}).code == 0
    assert run(place, "merge", "memory_home", "own", {"from": "memory"}).code in (0, 2)  # it may be there
    home, crossed = logits(place / "memory_home"), logits(place / "embedded")
    assert (home - crossed).abs().max() < 2e-4 * home.abs().max()


def test_a_bridge_that_fits_badly_needs_leave(place: Path) -> None:
    made = run(place, "merge", "bad", "other", MEMORY)
    assert made.code == 3
    assert made.err.startswith("fuse: bad.yaml: mks2 does not cross to other: the bridge for language.")
    assert "on held-out data" in made.err
    assert made.err.endswith(", and 0.5 is asked for (more texts, another method, or `accept_r2` on the graft)\n")
    assert not (place / "bad").exists()
    made = run(place, "merge", "leave", "other", {**MEMORY, "accept_r2": -1000})
    assert made.code == 0, made.err
    assert torch.isfinite(logits(place / "leave")).all()


@pytest.mark.parametrize(
    ("host", "graft", "code", "told"),
    [
        ("other", {"from": "memory"}, 3, "mks2: the embedding of other has another basis than that of own"),
        ("turned", {"from": "memory", "bridge": {**BRIDGE, "host": "other"}}, 3, "mks2: the embedding of mks2's host has another basis than that of own"),
        ("turned", {"from": "memory", "bridge": {**BRIDGE, "host": "none"}}, 2, "grafts.0.bridge.host: "),
        ("turned", {"from": "memory", "bridge": {**BRIDGE, "texts": "few.txt"}}, 2, "grafts.0.bridge.texts: few.txt has 2 texts, and a bridge is fitted to 5 or more (one text a line)"),
        ("turned", {"from": "memory", "bridge": {**BRIDGE, "texts": "latin.txt"}}, 2, "grafts.0.bridge.texts: latin.txt is not UTF-8 at byte 6"),
        ("turned", {"from": "memory", "bridge": {**BRIDGE, "texts": "no.txt"}}, 2, "grafts.0.bridge.texts: no.txt cannot be read: no such file or directory"),
        ("turned", {"from": "memory", "fold": True, "bridge": BRIDGE}, 2, "mks2 cannot be folded into turned: it comes from another basis, and its bridge stays: what it reads stands behind a norm"),
        ("turned", {"from": "low", "bridge": BRIDGE}, 2, "grafts.0.bridge: lora cannot cross to turned: it changes single projections or norms of its host, which no bridge maps"),
        ("turned", {"from": "memory", "bridge": BRIDGE, "router": "arrow"}, 2, "grafts.0.bridge: mks2 cannot cross to another basis: layers.0.rows.weight and others are made from the host that it is put into"),
    ],
)  # fmt: skip
def test_what_cannot_cross_is_refused(place: Path, host: str, graft: dict[str, Any], code: int, told: str) -> None:
    made = run(place, "plan", "refused", host, graft)
    assert made.code == code
    assert told in made.err


def test_into_a_vlm(place: Path) -> None:
    """Its language model reads the texts by itself, and the eyes stay."""
    recipe_members.save("llava", place / "vlm", 0)
    made = run(place, "merge", "seeing", "vlm", {**MEMORY, "accept_r2": -1000}, vision=["vlm"])
    assert made.code == 0, made.err
    assert "bridge of mks2: 2 maps, R2 " in made.out


def test_another_width_and_depth(place: Path) -> None:
    """A memory of a llama in a gpt2 with LayerNorms: it runs, and the plan says which blocks stand for which."""
    made = run(place, "merge", "across", "gpt2", {**MEMORY, "accept_r2": -1000})
    assert made.code == 0, made.err
    assert torch.isfinite(logits(place / "across")).all()


def test_a_projector_of_another_basis_is_refused(place: Path) -> None:
    recipe_members.save_encoder(place / "clip")
    (place / "projector").mkdir()
    recipe_members._projector(place / "projector" / "projector.safetensors", 12)
    told = {"format": 1, "kind": "linear", "config": {}, "host": record(place / "own")}
    (place / "projector" / "projector.json").write_text(json.dumps(told))
    vision = [{"name": "clip", "encoder": "clip", "projector": "projector"}]
    made = run(place, "plan", "eyes", "own", vision=vision)
    assert made.code == 0, made.err
    made = run(place, "plan", "eyes", "other", vision=vision)
    assert made.code == 3
    assert "the projector of clip: the embedding of other has another basis than that of own: " in made.err
    assert made.err.endswith(
        "(a projector belongs to the language model that it was trained for; a `bridge` brings it over)\n"
    )
