"""The benchmark of merges: what it writes and how it measures, not how fast anything is."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))  # the tools are scripts, which import each other as siblings

import bench_child  # noqa: E402
import bench_merge  # noqa: E402
import bench_merge_files as files  # noqa: E402
import bench_merge_jobs as jobs  # noqa: E402
import bench_merge_oracle as oracle  # noqa: E402
import bench_merge_tables as tables  # noqa: E402

HERE = jobs.environment(None)
KINDS = {"torch import", "2 inputs copy", "linear fuse", "linear fuse bare", "linear mergekit"}


def bench(*options: object) -> Result:
    return CliRunner().invoke(bench_merge.main, [str(option) for option in options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def members(folder: Path) -> Path:
    """Base and fine-tunes of a million parameters, where the tool itself looks for them."""
    files.write_members(folder / "llama-1000000", *files.layout(10**6, False), files.MEMBERS)
    return folder / "llama-1000000"


@pytest.fixture(scope="module")
def ran(folder: Path, members: Path) -> tuple[Result, dict[str, Any]]:
    """A tiny run of everything, and the JSON that it wrote."""
    target = folder / "found.json"
    result = bench(folder, "--params", "1M", "--method", "linear", "--repeats", 1, "--json", target)
    assert result.exit_code == 0, result.output
    return result, json.loads(target.read_text())


def test_every_number_is_there(ran: tuple[Result, dict[str, Any]], members: Path) -> None:
    told = ran[1]
    (one,) = told["sizes"]
    assert told["machine"]["cores"] > 0 and told["machine"]["packages"]["torch"] == torch.__version__
    assert (one["parameters"], one["layout"], one["tensors"]) == (1_018_432, "llama", 183)
    assert one["jobs"].keys() == one["summary"].keys() == KINDS
    for name, job in one["jobs"].items():
        (run,) = job["runs"]
        assert run["failed"] == "" and run["clock"] > 0 and run["cpu"] > 0
        if name not in ("torch import", "2 inputs copy"):
            assert run["anonymous"] > 50e6, name  # torch alone
        if name != "torch import":
            weights = (members / "base" / "model-00001-of-00001.safetensors").stat().st_size
            assert job["reads"] == ["a", "b"] and job["read"] > 2 * weights and job["written"] > 0.99 * weights
    assert {file.name for file in members.parent.iterdir()} == {"llama-1000000", "found.json"}


def test_ratios_are_of_the_medians(ran: tuple[Result, dict[str, Any]]) -> None:
    result, (found,) = ran[0], (one["summary"] for one in ran[1]["sizes"])
    bound = found["2 inputs copy"]["clock"] + found["torch import"]["clock"]
    for name in ("linear fuse", "linear fuse bare"):
        row = found[name]
        assert row["bound"] == pytest.approx(bound) and row["bounds"] == pytest.approx(row["clock"] / bound)
        assert row["beyond"] == pytest.approx(row["clock"] - bound)
        for kind in ("clock", "cpu"):
            assert row["faster"][kind] == pytest.approx(found["linear mergekit"][kind] / row[kind])
        assert f"{row['faster']['clock']:.1f}, {row['faster']['cpu']:.1f} (4 wanted)" in result.stdout
    assert result.stderr.count("1/1 ") == len(KINDS)


def test_members_are_bf16_fine_tunes_of_the_base(members: Path) -> None:
    index = json.loads((members / "a" / "model.safetensors.index.json").read_text())
    base, a, b = (
        load_file(members / name / "model-00001-of-00001.safetensors") for name in ("base", "a", "b")
    )  # fmt: skip
    assert index["weight_map"].keys() == base.keys() == a.keys()
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in a.values())
    assert {weight.dtype for weight in b.values()} == {torch.bfloat16}
    deltas = []
    for one in (a, b):
        deltas.append(torch.cat([(one[name].float() - base[name].float()).flatten() for name in base]))
    assert all(0.8 * files.DELTA < float(delta.std()) < 1.2 * files.DELTA for delta in deltas)
    assert 0.15 < float(torch.corrcoef(torch.stack(deltas))[0, 1]) < 0.35  # a quarter of the variance is shared
    assert not torch.equal(base["model.layers.0.mlp.up_proj.weight"], base["model.layers.1.mlp.up_proj.weight"])


def test_members_are_used_again(members: Path) -> None:
    file = members / "b" / "model-00001-of-00001.safetensors"
    before = file.stat().st_mtime_ns
    files.write_members(members, *files.layout(10**6, False), files.MEMBERS)
    assert file.stat().st_mtime_ns == before


def test_weights_come_in_shards_with_the_same_numbers(
    members: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(files, "SHARD", 600_000)
    files.write_members(tmp_path, *files.layout(10**6, False), ("base",))
    index = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 4
    whole = load_file(members / "base" / "model-00001-of-00001.safetensors")
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "base" / file, "pt") as opened:
            assert torch.equal(opened.get_tensor(name), whole[name]), name


@pytest.mark.parametrize(("asked", "near"), [(50e6, 0.02), (0.25e9, 0.02), (0.5e9, 0.02), (1e9, 0.02), (7e9, 0.02)])
def test_sizes_are_near_what_was_asked_for(asked: float, near: float) -> None:
    config, shapes = files.layout(int(asked), False)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == pytest.approx(asked, rel=near)
    assert config["num_hidden_layers"] * 9 + 3 == len(shapes)


def test_many_tensors() -> None:
    assert len(files.layout(10**9, True)[1]) == 18_003


def test_a_child_and_its_children_are_measured() -> None:
    inner = "import time; x = bytearray(100_000_000); time.sleep(0.6)"
    ran = bench_child.run_child(["sh", "-c", f"{sys.executable} -c '{inner}'; true"], HERE, 60)
    assert ran.failed == "" and ran.clock > 0.6 and 100e6 < ran.anonymous < 200e6
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    assert 0.3 <= bench_child.run_child(["sh", "-c", f"{sys.executable} -c '{busy}'; true"], HERE, 60).cpu < 5


def test_what_fails_and_what_takes_too_long() -> None:
    assert bench_child.run_child(["sh", "-c", "echo one; echo two >&2; exit 3"], HERE, 60).failed == "two"
    assert bench_child.run_child(["sh", "-c", "exit 3"], HERE, 60).failed == "exit code 3"
    late = bench_child.run_child(["sh", "-c", "sleep 30; true"], HERE, 0.3)
    assert late.failed == "stopped after 0.3 s" and late.clock < 10


def job(kind: str, script: str, method: str = "linear", writes: bool = False) -> jobs.Job:
    return jobs.Job(kind, method, (), ("sh", "-c", script), writes)


def test_the_folder_for_outputs_keeps_what_is_in_it(folder: Path, members: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    ran = bench(folder, "--params", "1M", "--method", "linear", "--repeats", 1, "--only", "copy", "--out", tmp_path)
    assert ran.exit_code == 0, ran.output
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_jobs_take_turns_and_bad_or_long_ones_are_not_repeated(tmp_path: Path) -> None:
    todo = [
        job("copy", "true"), job("fuse", "echo no; exit 1"), job("mergekit", "sleep 0.3"),
        job("fuse bare", f"mkdir {tmp_path}/out", writes=True),
    ]  # fmt: skip
    said: list[str] = []
    found = bench_merge.run_in_turn(
        todo, tmp_path, tmp_path / "out", HERE, repeats=2, timeout=60, long=0.25, count=5, compare=lambda _: None,
        tell=lambda text: said.append(text.split(",")[0]),
    )  # fmt: skip
    assert {name: len(one["runs"]) for name, one in found.items()} == {
        "linear copy": 2, "linear fuse": 1, "linear mergekit": 1, "linear fuse bare": 1,
    }  # fmt: skip
    assert found["linear fuse"]["failed"] == "no" and found["linear fuse bare"]["failed"] == "wrote 0 of 5 tensors"
    assert [line.partition(":")[0] for line in said] == [
        "1/2 linear copy", "1/2 linear fuse", "1/2 linear mergekit", "1/2 linear fuse bare", "2/2 linear copy",
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()


def record(kind: str, clocks: list[float], failed: str = "", method: str = "ties") -> dict[str, Any]:
    runs = [{"clock": clock, "cpu": 2 * clock, "anonymous": 10**8} for clock in clocks]
    return {"kind": kind, "method": method, "reads": ["base", "a", "b"], "runs": runs} | (
        {"failed": failed} if failed else {}
    )


def test_summary_of_what_was_stopped_and_what_failed() -> None:
    rest = {
        "torch import": record("import", [2, 1, 9], method="torch"), "3 inputs copy": record("copy", [3]),
        "ties fuse": record("fuse", [10, 8, 6]),
    }  # fmt: skip
    found = tables.summary({"jobs": rest | {"ties mergekit": record("mergekit", [400], "stopped after 400 s")}})
    row = found["ties fuse"]
    assert (row["clock"], row["least"], row["most"], row["runs"]) == (8, 6, 10, 3)
    assert (row["bound"], row["beyond"], row["bounds"]) == (5, 3, 1.6)
    assert row["faster"] == {"clock": 50, "cpu": 50, "at_least": True}
    assert tables.faster(row) == "> 50.0, 50.0 (10 wanted)"
    assert found["ties mergekit"] == {"failed": "stopped after 400 s"}
    broken = tables.summary({"jobs": rest | {"ties mergekit": record("mergekit", [1], "no such thing")}})
    assert "faster" not in broken["ties fuse"]


def test_cost_of_each_further_gb() -> None:
    def one(cpu: float, read: float, failed: str = "") -> dict[str, Any]:
        row = {"failed": failed} if failed else {"cpu": cpu, "anonymous": 2e8}
        return {"summary": {"ties fuse": row}, "jobs": {"ties fuse": {"read": read, "written": 1e9}}}

    small, large = one(3, 2e9), one(9, 5e9)
    assert tables.cost("ties fuse", None, small) == "3.00; 200"
    assert tables.cost("ties fuse", small, large) == "9.00; 2.00; 200"
    assert tables.cost("ties fuse", one(0, 2e9, "no"), large) == tables.cost("ties fuse", large, large) == "9.00; 200"
    assert tables.cost("ties fuse", small, one(0, 5e9, "no")) == "failed"


def test_recipes_say_the_same_to_both_tools(tmp_path: Path) -> None:
    todo = jobs.jobs(
        tmp_path, tmp_path / "out", files.MEMBERS, ["slerp", "della"], jobs.TOOLS, device="cuda", threads=2,
        peer_options="--quiet", accuracy=False,
    )  # fmt: skip
    assert [one.name for one in todo] == [
        "torch import", "2 inputs copy", "3 inputs copy", "slerp fuse", "slerp fuse bare", "slerp mergekit",
        "della fuse", "della fuse bare", "della mergekit",
    ]  # fmt: skip
    assert json.loads((tmp_path / "slerp.yaml").read_text()) == {
        "members": {"a": "a", "b": "b"}, "language": {"method": "slerp", "t": 0.3},
    }  # fmt: skip
    theirs = json.loads((tmp_path / "slerp mergekit.yaml").read_text())
    assert theirs["base_model"] == str(tmp_path / "a") and theirs["parameters"] == {"t": 0.3}
    assert json.loads((tmp_path / "della.yaml").read_text()) == {
        "base": "base", "members": {"a": "a", "b": "b"},
        "language": {"method": "della", "weights": {"a": 0.6, "b": 0.4}, "density": 0.5, "epsilon": 0.1},
    }  # fmt: skip
    assert json.loads((tmp_path / "della mergekit.yaml").read_text()) == {
        "merge_method": "della", "parameters": {}, "dtype": "bfloat16", "base_model": str(tmp_path / "base"),
        "models": [
            {"model": str(tmp_path / name), "parameters": {"weight": weight, "density": 0.5, "epsilon": 0.1}}
            for name, weight in (("a", 0.6), ("b", 0.4))
        ],
    }  # fmt: skip
    ours, bare, peer = (one.command for one in todo[-3:])
    assert ours[3:-1] == ("merge", "--quiet", "--threads", "2", "--device", "cuda", str(tmp_path / "della.yaml"))
    assert bare == (*ours[:-1], "--no-hash", ours[-1])
    assert peer[3:-2] == ("--quiet", "-j", "2", "--cuda")


def test_accuracy_of_the_exact_result_and_of_another(members: Path, tmp_path: Path) -> None:
    layers = json.loads((members / "base" / "config.json").read_text())["num_hidden_layers"]
    values, reads = {"weights": {"a": 0.6, "b": 0.4}}, ("a", "b")
    a, b = (load_file(members / name / "model-00001-of-00001.safetensors") for name in reads)
    mean = {name: 0.6 * a[name].double() + 0.4 * b[name].double() for name in oracle.group(layers)}
    save_file({name: weight.bfloat16() for name, weight in mean.items()}, tmp_path / "out.safetensors")
    right = oracle.accuracy("linear", values, members, reads, tmp_path, layers)
    assert right["wrong"] == 0 and 0.2 < right["rms"] < 0.35 and right["max"] <= 0.5
    assert 0.98 < right["weights"] / sum(weight.numel() for weight in mean.values()) < 1  # the others are half way
    save_file({name: a[name] for name in mean}, tmp_path / "out.safetensors")
    other = oracle.accuracy("linear", values, members, reads, tmp_path, layers)
    assert other["wrong"] > 0.5 and other["rms"] > right["rms"]


def test_oracles() -> None:
    x = {"base": np.zeros(4), "a": np.array([3.0, 1, -4, 2]), "b": np.array([-1.0, 4, 5, 0.5])}
    equal = {"a": 0.5, "b": 0.5}
    assert oracle.task_arithmetic(x, equal).tolist() == oracle.linear(x, equal).tolist() == [1, 2.5, 0.5, 1.25]
    # a keeps 3 and -4, b keeps 4 and 5: of the third the sum is plus; 3 and 4 are thresholds
    assert oracle.ties(x, equal, 0.5).tolist() == pytest.approx([np.nan, np.nan, 5, 0], nan_ok=True)
    right = {"base": np.zeros(2), "a": np.array([1.0, 0]), "b": np.array([0.0, 1])}
    assert oracle.slerp(right, 0.5) == pytest.approx([0.5**0.5] * 2)
    assert oracle.model_stock(right).tolist() == [0, 0]
    assert oracle.spacing(np.array([1.0, 1.99, 2.0, 0.02])).tolist() == [2**-7, 2**-7, 2**-6, 2**-13]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--params", "1Q"), "'1Q' is no number of parameters such as 1B, 0.25B or 50M"),
        (("--params", "0B"), "'0B' is not above zero"),
        (("--members", 1, "--method", "slerp"), "slerp and model_stock take two members"),
        (("--layout", "many", "--params", "1B", "--params", "2B"), "--layout many has one size"),
    ],
)
def test_options_that_cannot_be(options: tuple[object, ...], told: str, tmp_path: Path) -> None:
    ran = bench(tmp_path, *options)
    assert ran.exit_code == 2 and told in ran.stderr
