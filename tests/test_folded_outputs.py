"""What a user sees of `fold: true`: the plan, the card, the folder that loads without fuse, what is refused."""

import json
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse.live import Live
from fuse.recipe_yaml import load_recipe
from tests import folds, recipe_members, tiny_lmeye
from tests.cli import fuse_here
from tests.folds import IDS, logits, merged, run

SHIM = Path(__file__).parent.parent / "fuse" / "torchvision_shim.py"
ALL = (
    "{from: @lavin, modality: image, fold: true}, {from: @mks2, scale: 0.5, fold: true}, "
    "{from: @wide_lora, name: style, scale: 0.6, fold: true}"
)
LION = "{from: @lion, task: image, fold: true}"
ALONE = """
import runpy, sys
import torch
shim = runpy.run_path(sys.argv[4])  # lets torchvision be imported beside a CPU build of torch
shim["install"]()
sys.modules["fuse"] = None  # any import of it fails
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
model, report = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(report.values()), report
with torch.no_grad():
    logits = model.eval()(**load_file(sys.argv[2])).logits
save_file({"logits": logits}, sys.argv[3])
print(type(model).__name__)
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members and donors."""
    return folds.furnish(tmp_path_factory.mktemp("parts"))


def digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_the_folder_loads_where_fuse_is_not(parts: Path, tmp_path: Path) -> None:
    heard = merged(parts, tmp_path, ALL.replace("fold: true", "fold: false"), "heard")
    assert run("merge", parts, tmp_path, ALL).code == 0
    save_file({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, tmp_path / "given")
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path / "out", tmp_path / "given", tmp_path / "found", SHIM],
        capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert ran.stdout.split() == ["LlamaForCausalLM"], ran.stderr
    assert (load_file(tmp_path / "found")["logits"] - logits(heard)).abs().max() < 1e-5


def test_a_second_run_writes_the_same_bytes(parts: Path, tmp_path: Path) -> None:
    for name, grafts in (("all", ALL), ("lion", f"{LION}, {{from: @wide_lora, fold: true}}")):
        found = []
        for _ in range(2):
            assert run("merge", parts, tmp_path, grafts, "out").code == 0
            found.append(digests(tmp_path / "out"))
            (tmp_path / "out").rename(tmp_path / f"{name}-{len(found)}")
        assert found[0] == found[1] and "model.safetensors" in found[0]


@pytest.mark.parametrize("graft", ["lora", "mks2", "lavin, modality: text", "lion, task: region"])
def test_a_fold_that_is_not_heard_changes_no_bit(graft: str, parts: Path, tmp_path: Path) -> None:
    merged(parts, tmp_path, "", "plain")
    silent = merged(parts, tmp_path, f"{{from: @{graft}, scale: 0, fold: true}}", "silent")
    assert silent.config.model_type == "llama"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert digests(tmp_path / "silent")[name] == digests(tmp_path / "plain")[name]
    told = json.loads((tmp_path / "silent" / "fuse.json").read_text())
    assert told["folded"][0]["scale"] == 0 and told["folded"][0]["changes"] == {}


def test_a_fold_is_rounded_once(parts: Path, tmp_path: Path) -> None:
    """But for LaVIN, whose routes are those of the host as it is written."""
    grafts = ALL.split(", ", 3)[3]
    merged(parts, tmp_path, grafts, "exact")
    merged(parts, tmp_path, grafts, "small", more="dtype: bfloat16")
    exact, small = (load_file(tmp_path / name / "model.safetensors") for name in ("exact", "small"))
    assert list(exact) == list(small)
    assert all(torch.equal(tensor.bfloat16(), small[name]) for name, tensor in exact.items())


def without_sizes(plan: str) -> list[str]:
    """The plan's lines, those of the table without parameters and bytes."""
    sizes = re.compile(r"^ +(\w*) +([\d,]+) +[\d,]+ +[\d.]+ (?:bytes|.B)  ", re.MULTILINE)
    return sizes.sub(lambda found: " ".join(filter(None, found.groups())) + " ", plan).splitlines()


def test_a_plan_shows_what_is_folded(parts: Path, tmp_path: Path) -> None:
    ran = run("plan", parts, tmp_path, ALL)
    assert (ran.code, ran.err) == (0, "")
    linear = "linear of one + two [weights 0.5/0.5]"
    for line in (
        f"2 fold style, mks2 into {linear}: model.layers.{{}}.mlp.down_proj.weight",
        f"4 fold style, mks2, lavin into {linear}: model.layers.{{}}.mlp.gate_proj.weight, model.layers.{{}}.mlp.up_proj.weight",
        "14 fold lavin into a new tensor: model.layers.{}.*",
        "folded",
        "  style: lora (linear), scale 0.6, cut from llama of 2 layers; into 10 tensors of the host",
        "  mks2: mks2 (ffn, ffn_residual, linear), scale 0.5, cut from llama of 2 layers; into 6 tensors of the host, intermediate_size 56",
        "  lavin: lavin (attention_input, ffn_input), scale 1, cut from llama of 2 layers; into 24 tensors of the host, attention_bias true, mlp_bias true",
    ):  # fmt: skip
        assert line in without_sizes(ran.out), ran.out
    ran = run("plan", parts, tmp_path, LION)
    assert "graft 9 fold grafts.lion into fewer tensors: grafts.lion.*" in without_sizes(ran.out)
    told = "  lion: lion (ffn_residual), scale 1, cut from llama of 2 layers, folded for task image"
    assert told in ran.out.splitlines()


def plan_of(parts: Path, folder: Path, grafts: str) -> dict[str, Any]:
    run("plan", parts, folder, grafts, "plan")
    return json.loads(fuse_here("plan", folder / "plan.yaml", "--json").out)


def test_the_json_of_a_plan_holds_every_fold(parts: Path, tmp_path: Path) -> None:
    told = plan_of(parts, tmp_path, ALL)
    assert [(one["name"], one["changes"]) for one in told["folded"]] == [
        ("style", {}), ("mks2", {"intermediate_size": 56}), ("lavin", {"attention_bias": True, "mlp_bias": True}),
    ]  # fmt: skip
    rows = {row["name"]: row for row in told["rows"]}
    up, bias = (rows[f"model.layers.1.mlp.up_proj.{what}"] for what in ("weight", "bias"))
    assert (up["action"], up["shape"], bias["shape"]) == ("fold", [56, 32], [56])
    folded, at = [], up
    while at["fold"]:
        folded.append(at["fold"]["graft"])
        at = at["fold"]["host"][0]
    assert folded == ["lavin", "mks2", "style"] and at["action"] == "merge"
    assert plan_of(parts, tmp_path, ALL)["plan"] == told["plan"]
    for one, other in (("scale: 0.5", "scale: 0.4"), ("modality: image", "modality: text"), ("scale: 0.6", "scale: 1")):
        assert plan_of(parts, tmp_path, ALL.replace(one, other))["plan"] != told["plan"]


def test_card_and_json_name_the_folded(parts: Path, tmp_path: Path) -> None:
    ran = run("merge", parts, tmp_path, ALL)
    assert ran.out.startswith(f"{tmp_path}/out: 9 tensors merged, 0 copied, 26 folded, 0 left out; ")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\n## Folded grafts\n\n| graft | from | what it was |\n" in card and "## Grafts" not in card
    assert f"| style | {parts}/wide_lora | lora (linear), scale 0.6, " in card
    assert "9 tensors merged, 0 copied from `one`, 26 folded, " in card and "AutoModelForCausalLM" in card
    told = json.loads((tmp_path / "out" / "fuse.json").read_text())
    assert "grafts" not in told and [one["name"] for one in told["folded"]] == ["style", "mks2", "lavin"]
    for one, donor in zip(told["folded"], ("wide_lora", "mks2", "lavin"), strict=True):
        assert one["sha256"] == sha256((parts / donor / "graft.safetensors").read_bytes()).hexdigest()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["intermediate_size"]) == (["LlamaForCausalLM"], 56)
    assert config["attention_bias"] and config["mlp_bias"]


# grafts, more of the recipe -> the graft and what is said behind its name
REFUSED = {
    "{from: @lion, fold: true}": "grafts.0.fold: lion cannot be folded into one: a fold knows one task: say `task: image` or `task: region`",
    "{from: @normed_lion, task: image, fold: true}": "grafts.0.fold: lion cannot be folded into one: two adapters with a norm behind each do not fold into one",
    "{from: @lavin, fold: true}": "grafts.0.fold: lavin cannot be folded into one: a fold knows one route: say `modality: image` or `modality: text`",
    "{from: @llama_adapter, fold: true}": "grafts.0.fold: llama_adapter cannot be folded into one: each token weighs its prompts by a softmax of its own",
    "{from: @mks2, router: token_type, fold: true}": "grafts.0.fold: mks2 cannot be folded into one: it has router token_type, whose shares differ from token to token",
    "{from: @mks2, router: token_type, scale: 0, fold: true}": "grafts.0.fold: mks2 cannot be folded into one: it has router token_type, whose shares differ from token to token",
    "{from: @mks2, fold: true, bridge: {method: embedding, host: @one}}": "grafts.0.fold: mks2 cannot be folded into one: it comes from another basis, and its bridge stays: what it reads stands behind a norm, whose correction is another for every token",
    "{from: @lavin, modality: image, fold: true}, {from: @lion}": "grafts.0.fold: lavin cannot be folded into one: its routes are those of a host without lion",
    "{from: @lavin, name: a, modality: image, fold: true}, {from: @lavin, name: b, modality: text, fold: true}": "grafts.1.fold: b cannot be folded into one: its routes are those of a host without a",
    "{from: @wide_lora, fold: true}, {from: @llama_adapter}": "grafts.0.fold: lora cannot be folded into one: the prompts of llama_adapter go through the host's keys and values without it",
    "{from: @lion}, {from: @instead, fold: true}": "grafts.1.fold: mks2 cannot be folded into one: lion comes before it, and one of them takes from what the other left",
    "{from: @instead, name: a}, {from: @mks2, name: b, fold: true}": "grafts.1.fold: b cannot be folded into one: a comes before it, and one of them takes from what the other left",
}  # fmt: skip


@pytest.mark.parametrize("grafts", REFUSED)
def test_what_is_refused(grafts: str, parts: Path, tmp_path: Path) -> None:
    for verb in ("plan", "merge"):
        ran = run(verb, parts, tmp_path, grafts)
        assert ran.code == 2 and ran.err.strip().endswith(f": {REFUSED[grafts]}"), ran
    assert not (tmp_path / "out").exists()


def test_what_is_refused_of_outputs(parts: Path, tmp_path: Path) -> None:
    ran = run("plan", parts, tmp_path, ALL, more="model: fuse")
    assert ran.code == 2 and ran.err.strip().endswith("output.model: fuse needs a branch in vision, or a graft")
    ran = run("plan", parts, tmp_path, LION, more="model: native")
    assert ran.code == 2 and "output.model: native has no place for a graft" in ran.err


def test_a_second_pass_is_refused(parts: Path, tmp_path: Path) -> None:
    recipe_members.save_encoder(tmp_path / "clip")
    tiny_lmeye.write_donor(tmp_path / "lmeye", json.loads((parts / "one" / "config.json").read_text()))
    vision = "vision: [{name: clip, encoder: clip, projector: lmeye}]\n"
    ran = run("plan", parts, tmp_path, "{from: lmeye, fold: true}", head=folds.HEAD + vision)
    told = "lmeye cannot be folded into one: it reads a prompt twice, and what it writes there hangs on the image"
    assert ran.code == 2 and ran.err.strip().endswith(f": grafts.0.fold: {told}"), ran


def test_numbers_that_no_fold_can_take(parts: Path, tmp_path: Path) -> None:
    """A donor with a number that is not finite gives no output."""
    tensors = load_file(parts / "wide_lora" / "graft.safetensors")
    name = next(iter(tensors))
    tensors[name][0, 0] = float("nan")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "graft.json").write_text((parts / "wide_lora" / "graft.json").read_text())
    save_file(tensors, tmp_path / "broken" / "graft.safetensors")
    ran = run("merge", parts, tmp_path, f"{{from: {tmp_path}/broken, fold: true}}")
    assert ran.code == 3 and name in ran.err and "nan" in ran.err.lower(), ran
    assert not (tmp_path / "out").exists()


def test_a_model_remixed_in_place(parts: Path, tmp_path: Path) -> None:
    """Other numbers of a fold are written over the old ones; another size, and routes of a host, need a new model."""

    def recipe(number: float, grafts: str) -> Any:
        run("plan", parts, tmp_path, grafts.replace("N", str(number)), f"live{number}")
        return load_recipe(tmp_path / f"live{number}.yaml")

    lora = "{from: @wide_lora, scale: N, fold: true}"
    live = Live(recipe(0.6, lora))
    assert not live.remix(recipe(0.2, lora))
    wanted = merged(parts, tmp_path, lora.replace("N", "0.2"), "wanted")
    assert torch.equal(logits(live.answerer.model), logits(wanted))
    assert live.remix(recipe(0.5, f"{lora}, {{from: @mks2, scale: N, fold: true}}"))
    assert live.remix(recipe(0.4, "{from: @lavin, modality: image, scale: N, fold: true}"))
    wanted = merged(parts, tmp_path, "{from: @lavin, modality: image, scale: 0.4, fold: true}", "routed")
    assert torch.equal(logits(live.answerer.model), logits(wanted))
