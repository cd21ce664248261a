"""Bridges that are folded: what the module says is what it says over the bridge at run time, and no bridge is left."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import fuse  # noqa: F401 - makes the Auto classes know the folder
from fuse import fused_grafts
from fuse.branches import projector_kinds
from fuse.fused import Turned
from fuse.grafts.bridge_files import shapes
from fuse.grafts.bridge_fold import turn, ways
from fuse.grafts.bridge_fold_files import projector_over
from tests import recipe_members, tiny_grafts, tiny_lmeye
from tests.cli import Ran, fuse_here
from tests.members import TEMPLATE, save_member
from tests.original_branches import picture
from tests.rotated_hosts import WIDTH, build, turned
from tests.rotated_hosts import turn as orthogonal
from tests.test_bridge import IDS, TEXTS
from tests.test_fused_bridges import record

BRIDGE = {"method": "procrustes", "texts": "texts.txt", "host": "own"}
PICTURE = picture(60, 40)
HOSTS: dict[str, dict[str, Any]] = {
    "wide": {"hidden_size": 48, "num_hidden_layers": 3}, "narrow": {"hidden_size": 16, "head_dim": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, the same in other axes, others of other sizes, and donors cut from the first."""
    folder = tmp_path_factory.mktemp("folds")
    save_member(build(), folder / "own", template=TEMPLATE)
    save_member(turned("llama", orthogonal(WIDTH)), folder / "turned", template=TEMPLATE)
    save_member(build(seed=5), folder / "other", template=TEMPLATE)
    for name, sizes in HOSTS.items():
        save_member(build(seed=7, **sizes), folder / name, template=TEMPLATE)
    (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    host = json.loads((folder / "own" / "config.json").read_text())
    tiny_grafts.donor(folder / "single", "lion", host, adapters=1)
    tiny_grafts.donor(folder / "number", "lion", host, adapters=1, adapter_scale=0.7, hint=False)
    tiny_grafts.donor(folder / "routed", "lion", host)
    tiny_grafts.donor(folder / "normed", "lion", host, adapters=1, adapter_norm="in")
    tiny_grafts.donor(folder / "prompts", "llama_adapter", host)
    tiny_grafts.donor(folder / "memory", "mks2", host)
    tiny_lmeye.write_donor(folder / "eyes", host)
    recipe_members.save_encoder(folder / "clip")
    linear(folder / "linear", (24, 12), (WIDTH, 24))
    linear(folder / "bare", (WIDTH, 12), bias=False)
    for name in ("single", "number", "routed", "normed", "prompts", "memory", "eyes"):
        _owned(folder / name / "graft.json", folder / "own")
    _owned(folder / "eyes" / "projector.json", folder / "own")
    return folder


def linear(folder: Path, *sizes: tuple[int, int], bias: bool = True) -> None:
    """A projector folder of linear layers [out, in], which says nothing of its host."""
    folder.mkdir()
    tensors = {f"{2 * i}.weight": torch.randn(size, generator=_seeded(i)) * 0.2 for i, size in enumerate(sizes)}
    if bias:
        tensors |= {f"{2 * i}.bias": torch.randn(size[0], generator=_seeded(9)) for i, size in enumerate(sizes)}
    save_file(tensors, folder / "projector.safetensors")
    (folder / "projector.json").write_text(json.dumps({"format": 1, "kind": "linear", "config": {}, "host": {}}))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _owned(file: Path, host: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "host": record(host)}))


def run(folder: Path, verb: str, name: str, host: str, **more: Any) -> Ran:
    recipe = {
        "members": {host: host}, "language": {"method": "linear", "weights": {host: 1}},
        "output": {"dtype": "float32"}, **more,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    return fuse_here(verb, folder / f"{name}.yaml", *([folder / name, "--quiet"] if verb == "merge" else []))


def opened(folder: Path) -> Any:
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert {k: list(v) for k, v in report.items() if v} == {}
    return model.eval()


def logits(folder: Path) -> torch.Tensor:
    """Of words alone, where the output has no eyes; else of a question about a picture."""
    model = opened(folder)
    given: Any = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if model.config.branches:
        processor = AutoProcessor.from_pretrained(folder)
        given = processor(images=[PICTURE], text=["<image> w5 w6 w7"], return_tensors="pt")
    with torch.no_grad():
        return model(**given).logits


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def bridges(folder: Path) -> list[str]:
    return [name for name in stored(folder) if ".bridge." in name]


def same(found: torch.Tensor, wanted: torch.Tensor, within: float = 1e-5) -> bool:
    return bool((found - wanted).abs().max() <= within * wanted.abs().max().clamp(min=1))


GRAFTS: dict[str, dict[str, Any]] = {
    "single": {}, "number": {}, "prompts": {}, "routed": {"task": "region", "fold": True},
}  # fmt: skip


@pytest.mark.parametrize("method", ["procrustes", "ridge", "embedding"])
@pytest.mark.parametrize("host", ["other", "wide", "narrow"])
@pytest.mark.parametrize("donor", ["single", "routed", "prompts"])
def test_a_folded_bridge_says_what_it_says_at_run_time(
    place: Path, donor: str, host: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (donor, host) == ("prompts", "wide"):
        pytest.skip("of another depth: its bridge stays")
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
    assert run(place, "merge", f"{name}_silent", host, grafts=[{"from": donor, "scale": 0, "bridge": bridge, "accept_r2": -1000}]).code == 0  # fmt: skip
    found, wanted, silent = (logits(place / f"{name}{end}") for end in ("", "_run", "_silent"))
    assert (wanted - silent).abs().max() > 1e-3
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


METHODS: dict[str, dict[str, Any]] = {
    "embedding": {"method": "embedding", "host": "own"}, "procrustes": BRIDGE, "ridge": {**BRIDGE, "method": "ridge"},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("donor", ["linear", "bare"])
def test_a_projector_crosses(place: Path, donor: str, method: str) -> None:
    """Visual tokens in other axes are those at home, turned; a bias is there although `bare` had none."""
    vision = {"name": "clip", "encoder": "clip", "projector": donor}
    made = run(place, "merge", f"{donor}_{method}", "turned", vision=[{**vision, "bridge": METHODS[method]}])
    assert made.code == 0, made.err
    assert "bridge of clip: 1 map, R2 " in made.out
    assert run(place, "merge", f"{donor}_own", "own", vision=[vision]).code in (0, 2)  # it may be there
    home, away = (seen(place / f"{donor}_{word}") for word in ("own", method))
    wanted = home.double() @ orthogonal(WIDTH).T
    assert (away - wanted).norm() < (0.4 if method == "ridge" else 1e-5) * wanted.norm()
    names = {name for name in stored(place / f"{donor}_{method}") if "projector" in name}
    last = {"linear": 2, "bare": 0}[donor]
    assert {f"branches.clip.projector.{last}.weight", f"branches.clip.projector.{last}.bias"} <= names


def seen(folder: Path) -> torch.Tensor:
    """The visual tokens of the picture."""
    model, processor = opened(folder), AutoProcessor.from_pretrained(folder)
    batch = processor(images=[PICTURE], text=["<image> w5 w6"], return_tensors="pt")
    with torch.no_grad():
        prompt = model.read(**batch)
    return prompt.embeds[batch["input_ids"] == model.config.branches[0]["token_id"]]


def test_a_projector_for_another_width(place: Path) -> None:
    """Its tokens are what the map makes of those at home."""
    vision = {"name": "clip", "encoder": "clip", "projector": "linear"}
    bridge = {"bridge": METHODS["ridge"], "accept_r2": -1000}
    made = run(place, "merge", "wider", "wide", vision=[{**vision, **bridge}])
    assert made.code == 0, made.err
    assert seen(place / "wider").shape == (16, 48)
    made = run(place, "merge", "badly", "wide", vision=[{**vision, "bridge": METHODS["ridge"]}])
    assert made.code == 3
    assert made.err.startswith("fuse: badly.yaml: the projector of clip does not cross to wide: the bridge for embedding has R2 ")  # fmt: skip
    assert made.err.endswith("(more texts, another method, or `accept_r2` on the branch)\n")


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


EYES = {"name": "clip", "encoder": "clip", "projector": "linear", "bridge": METHODS["embedding"]}


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        ({"grafts": [{"from": "memory", "fold": True, "bridge": BRIDGE}]}, 2, "mks2 cannot be folded into turned: it comes from another basis, and its bridge stays: what it reads stands behind a norm, whose correction is another for every token\n"),
        ({"grafts": [{"from": "routed", "fold": True, "bridge": BRIDGE}]}, 2, "lion cannot be folded into turned: a fold knows one task: say `task: image` or `task: region`\n"),
        ({"grafts": [{"from": "normed", "fold": True, "bridge": BRIDGE}]}, 2, "lion cannot be folded into turned: LION's donor has one adapter in each layer, and there is nothing to fold\n"),
        ({"vision": [{**EYES, "accept_r2": 0.1, "bridge": None}]}, 2, "vision.0.accept_r2: accept_r2 needs a bridge beside it\n"),
        ({"vision": [{**EYES, "projector": "eyes", "bridge": {"method": "embedding", "host": "other"}}]}, 3, "the projector of clip: the embedding of the projector of clip's host has another basis than that of own: "),
        ({"vision": [{**EYES, "bridge": {"method": "embedding", "host": "wide"}}]}, 3, "the projector of clip gives tokens of 32 numbers, and the projector of clip's host reads 48 (`host` of a bridge is what projector.safetensors was made for)\n"),
        ({"vision": [{**EYES, "bridge": {"method": "embedding", "host": "none"}}]}, 2, "vision.0.bridge.host: "),
        ({"vision": [{**EYES, "bridge": {"method": "ridge", "host": "own"}}]}, 2, "vision.0.bridge.texts: is missing, and ridge needs it\n"),
        ({"vision": [{**EYES, "bridge": {**BRIDGE, "texts": "none.txt"}}]}, 2, "vision.0.bridge.texts: none.txt cannot be read: no such file or directory\n"),
        ({"vision": [{**EYES, "projector": [{"path": "linear"}, {"path": "linear"}]}]}, 2, "vision.0.bridge: brings one projector over, and there are several to be averaged\n"),
    ],
)  # fmt: skip
def test_what_cannot_be_folded_is_refused(place: Path, more: Mapping[str, Any], code: int, told: str) -> None:
    made = run(place, "plan", "refused", "turned", **more)
    assert made.code == code, made
    assert told in made.err
    assert made.err.count("\n") == 1


def test_weights_that_are_damaged_are_named(place: Path) -> None:
    linear(place / "damaged", (WIDTH, 12))
    tensors = load_file(place / "damaged" / "projector.safetensors")
    tensors["0.bias"][3] = torch.nan
    save_file(tensors, place / "damaged" / "projector.safetensors")
    made = run(place, "merge", "broken", "turned", vision=[{**EYES, "projector": "damaged"}])
    assert made.code == 3
    assert "tensor '0.bias' of clip.projector holds nan at element 3" in made.err
    assert not (place / "broken").exists()


def test_texts_without_common_words_fit_no_map(place: Path) -> None:
    (place / "strange.txt").write_text("\n".join(["zz yy"] * 9) + "\n")
    bridge = {**BRIDGE, "texts": "strange.txt"}
    made = run(place, "merge", "strange", "turned", vision=[{**EYES, "bridge": bridge}])
    assert made.code == 3
    assert "the two vocabularies share " in made.err
    assert " tokens in the texts, which fit no bridge" in made.err


# Tensors against the maps, in float64 ---------------------------------------------------------------------------------

CONFIGS: dict[str, dict[str, Any]] = {
    "clipcap_mlp": {"width": 7, "hidden_size": 4, "prefix_length": 3, "hidden": 6},
    "lavin": {"width": 7, "hidden_size": 4, "hidden": 6, "layers": []},
    "lion_aggregator": {"width": 8, "hidden_size": 4, "heads": 2, "intermediate": 6, "inner": 6, "layers": [-1, -2]},
    "lmeye": {"width": 7, "hidden_size": 4, "tokens": 3},
    "lmeye_blip2": {
        "hidden_size": 4, "vision": 8, "width": 6, "intermediate": 10, "heads": 2, "layers": 1, "every": 2,
        "queries": 3, "eps": 1e-12, "vision_eps": 1e-6, "activation": "gelu",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_projectors_that_end_in_a_linear_layer(kind: str) -> None:
    """up t + up_offset for every visual token t that the projector gave, and nothing else changes."""
    bridge = {"method": "ridge", "width": 4, "host_width": 6, "norm": "rms", "host_norm": "rms", "stacks": {}, "maps": ["embedding"], "normed": False}  # fmt: skip
    maps = {
        name: torch.randn(shape, generator=_seeded(3), dtype=torch.float64) for name, shape in shapes(bridge).items()
    }
    config = CONFIGS[kind]
    donor = projector_kinds.build_projector(kind, config).double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(donor.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=_seeded(number), dtype=torch.float64))
    told, changed = projector_over({"projector": {"kind": kind, "config": config}}, 6)
    given = {f"projector.{name}": tensor for name, tensor in donor.state_dict().items()}
    found = {name: turn(one, given, {"embedding": ways(bridge, maps, "embedding")}) for name, one in changed.items()}
    crossed = projector_kinds.build_projector(kind, told["projector"]["config"]).double().eval()
    crossed.load_state_dict({name.removeprefix("projector."): t for name, t in {**given, **found}.items()})
    features = torch.randn(*{"lion_aggregator": (2, 2, 5, 8), "lmeye_blip2": (2, 1, 5, 8)}.get(kind, (2, 1, 7)), generator=_seeded(1), dtype=torch.float64)  # fmt: skip
    with torch.no_grad():
        look = getattr(donor, "look", lambda x: x)
        wanted = donor(look(features)) @ maps["bridge.embedding.up"].T + maps["bridge.embedding.up_offset"]
        assert torch.allclose(crossed(look(features)), wanted, atol=1e-10)


def test_projectors_that_do_not_are_refused() -> None:
    for kind in ("clipcap_transformer", "llama_adapter"):
        with pytest.raises(ValueError, match=f"^a projector of kind {kind} does not end in a linear layer$"):
            projector_over({"projector": {"kind": kind, "config": {}}}, 6)


@pytest.mark.parametrize("gains", ["plain", "hidden"])
def test_the_last_hidden_state(gains: str) -> None:
    """W (what `final` brings in) + b, with gains of both sides; a gain of 0 hides what stands there."""
    from fuse.grafts.bridge_map import Crossing

    bridge = {"method": "procrustes", "width": 6, "host_width": 4, "norm": "rms", "norm_eps": 1e-6, "host_norm": "layer", "stacks": {}, "maps": ["final"], "normed": True}  # fmt: skip
    made = {name: torch.randn(shape, generator=_seeded(i), dtype=torch.float64) for i, (name, shape) in enumerate(shapes(bridge).items())}  # fmt: skip
    made["bridge.final.size"] = torch.tensor([1.7], dtype=torch.float64)
    made["bridge.final.down"] = 1.7 * torch.linalg.qr(torch.randn(6, 4, generator=_seeded(8), dtype=torch.float64))[0]
    if gains == "hidden":
        made["bridge.final.host_gain"][1] = 0
    crossing = Crossing(bridge, {name.rpartition(".")[2]: tuple(t.shape) for name, t in made.items()}).double()
    crossing.load_state_dict({name.rpartition(".")[2]: tensor for name, tensor in made.items()})
    weight, bias, x = (torch.randn(*s, generator=_seeded(9), dtype=torch.float64) for s in ((3, 6), (3,), (5, 4)))
    maps = {"final": ways(bridge, made, "final")}
    given = {"w": weight, "b": bias}
    folded = turn(Turned("in", ("final",), ("w",)), given, maps), turn(Turned("in_bias", ("final",), ("w", "b")), given, maps)  # fmt: skip
    with torch.no_grad():
        wanted = crossing(x, "behind_in") @ weight.T + bias
    assert torch.allclose(x @ folded[0].T + folded[1], wanted, atol=1e-10)
