"""Projectors over a bridge: their visual tokens in another basis, out of their own last layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fuse  # noqa: F401 - makes the Auto classes know the folder
from fuse.branches import projector_kinds
from fuse.grafts.bridge_files import shapes
from fuse.grafts.bridge_fold import turn, ways
from fuse.grafts.bridge_fold_files import projector_over
from tests.bridge_places import BRIDGE, METHODS, furnish, linear, run, seeded, seen, stored
from tests.rotated_hosts import WIDTH
from tests.rotated_hosts import turn as orthogonal


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("folds"))


EYES = {"name": "clip", "encoder": "clip", "projector": "linear", "bridge": METHODS["embedding"]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("donor", ["linear", "bare"])
def test_a_projector_crosses(place: Path, donor: str, method: str) -> None:
    """Visual tokens in other axes are those at home, turned; a bias is there although `bare` had none."""
    vision = {"name": "clip", "encoder": "clip", "projector": donor}
    made = run(place, "merge", f"{donor}_{method}", "turned", vision=[{**vision, "bridge": METHODS[method]}])
    assert made.code == 0, made.err
    assert "bridge of clip: 1 map, folded, R2 " in made.out
    assert run(place, "merge", f"{donor}_own", "own", vision=[vision]).code in (0, 2)  # it may be there
    home, away = (seen(place / f"{donor}_{word}") for word in ("own", method))
    wanted = home.double() @ orthogonal(WIDTH).T
    assert (away - wanted).norm() < (0.4 if method == "ridge" else 1e-5) * wanted.norm()
    names = {name for name in stored(place / f"{donor}_{method}") if "projector" in name}
    last = {"linear": 2, "bare": 0}[donor]
    assert {f"branches.clip.projector.{last}.weight", f"branches.clip.projector.{last}.bias"} <= names


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


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        ({"vision": [{**EYES, "accept_r2": 0.1, "bridge": None}]}, 2, "vision.0.accept_r2: accept_r2 needs a bridge beside it\n"),
        ({"vision": [{**EYES, "projector": "eyes", "bridge": {"method": "embedding", "host": "other"}}]}, 3, "the projector of clip: the embedding of the projector of clip's host has another basis than that of own: "),
        ({"vision": [{**EYES, "bridge": {"method": "embedding", "host": "wide"}}]}, 3, "the projector of clip gives tokens of 32 numbers, and the projector of clip's host reads 48 (`host` of a bridge is what projector.safetensors was made for)\n"),
        ({"vision": [{**EYES, "bridge": {"method": "embedding", "host": "none"}}]}, 2, "vision.0.bridge.host: "),
        ({"vision": [{**EYES, "bridge": {"method": "ridge", "host": "own"}}]}, 2, "vision.0.bridge.texts: is missing, and ridge needs it\n"),
        ({"vision": [{**EYES, "bridge": {**BRIDGE, "texts": "none.txt"}}]}, 2, "vision.0.bridge.texts: none.txt cannot be read: no such file or directory\n"),
        ({"vision": [{**EYES, "projector": [{"path": "linear"}, {"path": "linear"}]}]}, 2, "vision.0.bridge: brings one projector over, and there are several to be averaged\n"),
    ],
)  # fmt: skip
def test_what_cannot_cross_is_refused(place: Path, more: Mapping[str, Any], code: int, told: str) -> None:
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
        name: torch.randn(shape, generator=seeded(3), dtype=torch.float64) for name, shape in shapes(bridge).items()
    }
    config = CONFIGS[kind]
    donor = projector_kinds.build_projector(kind, config).double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(donor.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(number), dtype=torch.float64))
    told, changed = projector_over({"projector": {"kind": kind, "config": config}}, 6)
    given = {f"projector.{name}": tensor for name, tensor in donor.state_dict().items()}
    found = {name: turn(one, given, {"embedding": ways(bridge, maps, "embedding")}) for name, one in changed.items()}
    crossed = projector_kinds.build_projector(kind, told["projector"]["config"]).double().eval()
    crossed.load_state_dict({name.removeprefix("projector."): t for name, t in {**given, **found}.items()})
    features = torch.randn(*{"lion_aggregator": (2, 2, 5, 8), "lmeye_blip2": (2, 1, 5, 8)}.get(kind, (2, 1, 7)), generator=seeded(1), dtype=torch.float64)  # fmt: skip
    with torch.no_grad():
        look = getattr(donor, "look", lambda x: x)
        wanted = donor(look(features)) @ maps["bridge.embedding.up"].T + maps["bridge.embedding.up_offset"]
        assert torch.allclose(crossed(look(features)), wanted, atol=1e-10)


def test_projectors_that_do_not_are_refused() -> None:
    for kind in ("clipcap_transformer", "llama_adapter"):
        with pytest.raises(ValueError, match=f"^a projector of kind {kind} does not end in a linear layer$"):
            projector_over({"projector": {"kind": kind, "config": {}}}, 6)
