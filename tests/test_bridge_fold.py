"""Bridges that are folded: what the module says is what it says over the bridge at run time, and no bridge is left."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import fuse  # noqa: F401 - makes the Auto classes know the folder
from fuse import fused_grafts
from fuse.fused import Turned
from fuse.grafts.bridge_files import shapes
from fuse.grafts.bridge_fold import turn, ways
from tests import tiny_grafts
from tests.bridge_places import (
    BRIDGE,
    METHODS,
    bridges,
    furnish,
    logits,
    opened,
    owned,
    run,
    same,
    seeded,
    stored,
)
from tests.cli import fuse_here
from tests.test_bridge import IDS, TEXTS
from tests.test_fused_seq2seq import save_t5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("folds"))


GRAFTS: dict[str, dict[str, Any]] = {
    "single": {}, "number": {}, "prompts": {}, "routed": {"task": "region", "fold": True},
}  # fmt: skip


@pytest.mark.parametrize(
    ("donor", "host", "method"),
    [
        ("single", "other", "ridge"), ("single", "wide", "procrustes"), ("single", "narrow", "embedding"),
        ("routed", "wide", "ridge"), ("routed", "narrow", "procrustes"), ("prompts", "other", "embedding"),
        ("prompts", "narrow", "ridge"), ("prompts", "other", "procrustes"),
    ],
)  # fmt: skip
def test_a_folded_bridge_says_what_it_says_at_run_time(
    place: Path, donor: str, host: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = {**BRIDGE, "method": method}
    graft = {"from": donor, "bridge": bridge, "accept_r2": -1000, **GRAFTS[donor]}
    name = f"{donor}_{host}_{method}"
    made = run(place, "merge", name, host, grafts=[graft])
    assert made.code == 0, made.err
    assert not bridges(place / name)
    monkeypatch.setattr(fused_grafts, "_crossed", lambda graft: graft)
    graft.pop("fold", None)
    made = run(place, "merge", f"{name}_run", host, grafts=[graft])
    assert made.code == 0, made.err
    assert bridges(place / f"{name}_run")
    found, wanted = logits(place / name), logits(place / f"{name}_run")
    with torch.no_grad():
        silent = AutoModelForCausalLM.from_pretrained(place / host)(input_ids=IDS).logits
    assert (wanted[..., : silent.shape[-1]] - silent).abs().max() > 1e-3
    assert same(found, wanted)
    if donor != "prompts":
        found, wanted = logits(place / name, hinted=True), logits(place / f"{name}_run", hinted=True)
        assert (wanted[..., : silent.shape[-1]] - silent)[0, 3].abs().max() > 1e-2
        assert same(found, wanted)


@pytest.mark.parametrize("donor", ["single", "number", "routed", "prompts"])
def test_in_other_axes_a_folded_graft_is_at_home(place: Path, donor: str) -> None:
    """The host is the donor's own in other axes, so that what is said does not change at all."""
    graft = {"from": donor, **GRAFTS[donor]}
    crossed = run(place, "merge", f"{donor}_crossed", "turned", grafts=[{**graft, "bridge": BRIDGE}])
    assert crossed.code == 0, crossed.err
    assert run(place, "merge", f"{donor}_home", "own", grafts=[graft]).code == 0
    found, wanted = logits(place / f"{donor}_crossed"), logits(place / f"{donor}_home")
    assert same(found, wanted, 2e-4)
    assert {k: v.shape for k, v in stored(place / f"{donor}_crossed").items()} == {
        k: v.shape for k, v in stored(place / f"{donor}_home").items()
    }


def test_adapters_go_to_the_blocks_that_stand_for_theirs(place: Path) -> None:
    graft = {"from": "single", "bridge": BRIDGE, "accept_r2": -1000}
    assert run(place, "merge", "onto", "wide", grafts=[graft]).code == 0
    config = json.loads((place / "onto" / "config.json").read_text())["grafts"][0]
    assert config["config"]["onto"] == {"language": [0, 2]}
    assert config["config"]["width"] == 48
    assert "bridge" not in config


def test_adapters_of_an_encoder_and_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_t5(tmp_path / "own", seed=0)
    save_t5(tmp_path / "t5", seed=1)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    tiny_grafts.donor(tmp_path / "lion", "lion", json.loads((tmp_path / "own" / "config.json").read_text()), adapters=1)
    owned(tmp_path / "lion" / "graft.json", tmp_path / "own")
    grafts = [{"from": "lion", "bridge": BRIDGE, "accept_r2": -1000}]
    made = run(tmp_path, "merge", "folded", "t5", grafts=grafts)
    assert made.code == 0, made.err
    assert "bridge of lion: 5 maps, folded, R2 " in made.out
    monkeypatch.setattr(fused_grafts, "_crossed", lambda graft: graft)
    made = run(tmp_path, "merge", "beside", "t5", grafts=grafts)
    assert "bridge of lion: 5 maps, R2 " in made.out
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "decoder_input_ids": IDS[:, :4]}
    with torch.no_grad():
        found, wanted = (opened(tmp_path / name)(**given).logits for name in ("folded", "beside"))
    assert same(found, wanted)


def test_a_fold_that_is_not_heard_needs_no_bridge(place: Path) -> None:
    graft = {"from": "routed", "task": "image", "fold": True, "scale": 0, "bridge": BRIDGE}
    made = run(place, "merge", "unheard", "turned", grafts=[graft])
    assert made.code == 0, made.err
    assert "bridge" not in made.out
    assert not [name for name in stored(place / "unheard") if name.startswith("grafts.")]


@pytest.mark.parametrize("host", ["turned", "narrow"])
def test_lmeye_crosses_with_its_projector(place: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of its linear layers and both offsets; the host is the donor's in other axes, or narrower."""
    leave = {"bridge": BRIDGE, "accept_r2": -1000}
    vision = [{"name": "clip", "encoder": "clip", "projector": "eyes", **leave}]
    grafts = [{"from": "eyes", "place": "image", **leave}]
    made = run(place, "merge", f"eyes_{host}", host, vision=vision, grafts=grafts)
    assert made.code == 0, made.err
    assert not bridges(place / f"eyes_{host}")
    monkeypatch.setattr(fused_grafts, "_crossed", lambda graft: graft)
    assert run(place, "merge", f"eyes_{host}_run", host, vision=vision, grafts=grafts).code == 0
    assert bridges(place / f"eyes_{host}_run")
    found, wanted = logits(place / f"eyes_{host}"), logits(place / f"eyes_{host}_run")
    assert same(found, wanted)
    assert run(place, "merge", f"eyes_{host}_soft", host, vision=vision, grafts=[{**grafts[0], "scale": 0.1}]).code == 0
    assert (logits(place / f"eyes_{host}_soft") - wanted).abs().max() > 1e-3


def test_lmeye_in_other_axes_is_at_home(place: Path) -> None:
    vision, grafts = {"name": "clip", "encoder": "clip", "projector": "eyes"}, {"from": "eyes", "place": "image"}
    crossed = [{**vision, "bridge": BRIDGE}], [{**grafts, "bridge": BRIDGE}]
    assert run(place, "merge", "eyes_away", "turned", vision=crossed[0], grafts=crossed[1]).code == 0
    assert run(place, "merge", "eyes_home", "own", vision=[vision], grafts=[grafts]).code == 0
    assert same(logits(place / "eyes_away"), logits(place / "eyes_home"), 2e-4)


def test_the_plan_and_the_folder_say_so(place: Path) -> None:
    vision = [{"name": "clip", "encoder": "clip", "projector": "linear", "bridge": METHODS["embedding"]}]
    grafts = [{"from": "single", "bridge": BRIDGE}, {"from": "memory", "bridge": BRIDGE}]
    plan = run(place, "plan", "told", "turned", vision=vision, grafts=grafts)
    assert plan.code == 0, plan.err
    for told in (
        "16 visual tokens, over a bridge (embedding) from own, folded\n",
        "cut from own of 2 layers, over a bridge (procrustes) from own, folded\n",
        "over a bridge (procrustes) from own that stays (what it reads stands behind a norm, whose correction is "
        "another for every token)\n",
        "with the bridge in it",
    ):
        assert told in plan.out, plan.out
    asked = json.loads(fuse_here("plan", place / "told.yaml", "--json").out)
    assert [row["action"] for row in asked["rows"] if "projector.2." in row["name"]] == ["make", "make"]
    bridges_told = asked["fused"]["bridges"]
    assert [(name, one["folded"], bool(one["why"])) for name, one in bridges_told.items()] == [
        ("clip", True, False), ("lion", True, False), ("mks2", False, True),
    ]  # fmt: skip
    made = run(place, "merge", "told", "turned", vision=vision, grafts=grafts)
    assert made.code == 0, made.err
    assert {name.split(".")[1] for name in bridges(place / "told")} == {"mks2"}
    told = json.loads((place / "told" / "fuse.json").read_text())
    assert [graft["bridge"]["folded"] for graft in told["grafts"]] == [True, False]
    (branch,) = told["branches"]
    assert branch["bridge"]["method"] == "embedding"
    assert branch["bridge"]["folded"]
    assert branch["bridge"]["r2"].keys() == {"embedding"}
    assert branch["bridge"]["sha256"].keys() == {"model.safetensors"}
    card = (place / "told" / "README.md").read_text()
    assert card.count("folded, R2 1.000 to 1.000 on held-out data") == 2
    again = run(place, "merge", "told_again", "turned", vision=vision, grafts=grafts)
    assert again.code == 0
    assert all(torch.equal(v, stored(place / "told_again")[k]) for k, v in stored(place / "told").items())


STAYS = {
    "routed": "its router weighs the channels of the host that it was cut from, until `fold: true` and a `task` end it",
    "normed": "its adapters have norms of their own",
    "memory": "what it reads stands behind a norm, whose correction is another for every token",
}


@pytest.mark.parametrize("donor", STAYS)
def test_what_stays_says_why(place: Path, donor: str) -> None:
    plan = run(place, "plan", "stays", "turned", grafts=[{"from": donor, "bridge": BRIDGE}])
    assert f"over a bridge (procrustes) from own that stays ({STAYS[donor]})\n" in plan.out


def test_prompts_of_another_depth_and_a_request_by_ridge_stay(place: Path) -> None:
    plan = run(place, "plan", "stays", "wide", grafts=[{"from": "prompts", "bridge": BRIDGE}])
    assert " that stays (the two hosts have other numbers of blocks)\n" in plan.out
    vision = [{"name": "clip", "encoder": "clip", "projector": "eyes", "bridge": BRIDGE}]
    for host, method in (("turned", "ridge"), ("wide", "procrustes")):
        graft = {"from": "eyes", "bridge": {**BRIDGE, "method": method}}
        plan = run(place, "plan", "stays", host, vision=vision, grafts=[graft])
        assert " that stays (the last norm's correction is another for every token, as this map there does not keep lengths)\n" in plan.out  # fmt: skip


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        ({"grafts": [{"from": "memory", "fold": True, "bridge": BRIDGE}]}, 2, "mks2 cannot be folded into turned: it comes from another basis, and its bridge stays: what it reads stands behind a norm, whose correction is another for every token\n"),
        ({"grafts": [{"from": "routed", "fold": True, "bridge": BRIDGE}]}, 2, "lion cannot be folded into turned: a fold knows one task: say `task: image` or `task: region`\n"),
        ({"grafts": [{"from": "normed", "fold": True, "bridge": BRIDGE}]}, 2, "lion cannot be folded into turned: LION's donor has one adapter in each layer, and there is nothing to fold\n"),
    ],
)  # fmt: skip
def test_what_cannot_be_folded_is_refused(place: Path, more: Mapping[str, Any], code: int, told: str) -> None:
    made = run(place, "plan", "refused", "turned", **more)
    assert made.code == code, made
    assert told in made.err
    assert made.err.count("\n") == 1


@pytest.mark.parametrize("gains", ["plain", "hidden"])
def test_the_last_hidden_state(gains: str) -> None:
    """W (what `final` brings in) + b, with gains of both sides; a gain of 0 hides what stands there."""
    from fuse.grafts.bridge_map import Crossing

    bridge = {"method": "procrustes", "width": 6, "host_width": 4, "norm": "rms", "norm_eps": 1e-6, "host_norm": "layer", "stacks": {}, "maps": ["final"], "normed": True}  # fmt: skip
    made = {name: torch.randn(shape, generator=seeded(i), dtype=torch.float64) for i, (name, shape) in enumerate(shapes(bridge).items())}  # fmt: skip
    made["bridge.final.size"] = torch.tensor([1.7], dtype=torch.float64)
    made["bridge.final.down"] = 1.7 * torch.linalg.qr(torch.randn(6, 4, generator=seeded(8), dtype=torch.float64))[0]
    if gains == "hidden":
        made["bridge.final.host_gain"][1] = 0
    crossing = Crossing(bridge, {name.rpartition(".")[2]: tuple(t.shape) for name, t in made.items()}).double()
    crossing.load_state_dict({name.rpartition(".")[2]: tensor for name, tensor in made.items()})
    weight, bias, x = (torch.randn(*s, generator=seeded(9), dtype=torch.float64) for s in ((3, 6), (3,), (5, 4)))
    maps = {"final": ways(bridge, made, "final")}
    given = {"w": weight, "b": bias}
    folded = turn(Turned("in", ("final",), ("w",)), given, maps), turn(Turned("in_bias", ("final",), ("w", "b")), given, maps)  # fmt: skip
    with torch.no_grad():
        wanted = crossing(x, "behind_in") @ weight.T + bias
    assert torch.allclose(x @ folded[0].T + folded[1], wanted, atol=1e-10)
