"""The benchmark of a fused model against its parents: what it writes, not how fast anything is."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from transformers import AutoConfig

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))  # the tools are scripts, which import each other as siblings

import bench_fused  # noqa: E402
import bench_members  # noqa: E402

MODELS = ["llava", "llava_next", "fused"]
TIMES = ("prepare", "vision", "prefill", "first_token", "further_token")


def bench(*options: object) -> Result:
    return CliRunner().invoke(bench_fused.main, [str(option) for option in options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def ran(folder: Path) -> tuple[Result, dict[str, Any]]:
    """A tiny run, and the JSON that it wrote."""
    result = bench("--size", "tiny", "--runs", 3, "--tokens", 4, "--folder", folder, "--json", folder / "found.json")
    assert result.exit_code == 0, result.output
    return result, json.loads((folder / "found.json").read_text())


def test_every_number_is_there(ran: tuple[Result, dict[str, Any]]) -> None:
    told = ran[1]
    assert list(told["models"]) == MODELS
    assert (told["size"], told["device"], told["dtype"], told["attention"]) == ("tiny", "cpu", "float32", "sdpa")
    assert (told["runs"], told["decoded"], told["torch"]) == (3, 4, torch.__version__)
    for one in told["models"].values():
        for key in (*TIMES, "language_prefill") if one["class"].startswith("Fused") else TIMES:
            found = one[key]
            assert len(found["all"]) == 3
            assert min(found["all"]) > 0
            assert [found[k] for k in ("median", "least", "most")] == [
                f(found["all"]) for f in (statistics.median, min, max)
            ]
        assert one["tokens_per_second"] == 1 / one["further_token"]["median"]
        assert one["peak_bytes"] > one["weight_bytes"]


def test_the_models_are_the_parents_and_their_merge(ran: tuple[Result, dict[str, Any]]) -> None:
    a, b, fused = ran[1]["models"].values()
    assert [one["class"] for one in (a, b, fused)] == [
        "LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration", "FusedForConditionalGeneration",
    ]  # fmt: skip
    assert (a["visual_tokens"], b["visual_tokens"], fused["visual_tokens"]) == (4, 14, 4 + 14)
    assert [one["prompt_tokens"] - one["visual_tokens"] for one in (a, b, fused)] == [17, 17, 17]  # <s> and 16 words
    assert fused["weight_bytes"] > max(a["weight_bytes"], b["weight_bytes"])


def test_the_ratio_is_of_the_medians(ran: tuple[Result, dict[str, Any]]) -> None:
    result, told = ran
    a, b, fused = told["models"].values()
    parts = a["vision"]["median"] + b["vision"]["median"] + fused["language_prefill"]["median"]
    ratio = fused["prefill"]["median"] / parts
    assert told["check"]["ratio"] == pytest.approx(ratio, rel=1e-12)
    assert told["check"]["passed"] == (told["check"]["ratio"] <= 1.10)
    assert f"= {ratio:.3f}, {'within' if ratio <= 1.10 else 'above'} 1.10" in result.stdout


@pytest.mark.parametrize(("prefill", "ratio", "passed"), [(2.2, 1.1, True), (2.3, 1.15, False), (1.0, 0.5, True)])
def test_what_is_too_slow(prefill: float, ratio: float, passed: bool) -> None:
    parents = {name: {"vision": {"median": vision}} for name, vision in (("a", 0.25), ("b", 0.75))}
    fused = {"prefill": {"median": prefill}, "language_prefill": {"median": 1.0}, "vision": {"median": 9.0}}
    assert bench_fused.check({**parents, "fused": fused}) == {
        "parts": [0.25, 0.75, 1.0], "ratio": pytest.approx(ratio), "allowed": 1.1, "passed": passed,
    }  # fmt: skip


def test_members_are_used_again_and_the_merge_is_new(ran: tuple[Result, dict[str, Any]], folder: Path) -> None:
    at = folder / "tiny-float32"
    marked = at / "llava" / "model-00001-of-00001.safetensors"
    before = marked.stat().st_mtime_ns, (at / "fused" / "config.json").stat().st_mtime_ns
    again = bench("--size", "tiny", "--runs", 1, "--tokens", 2, "--folder", folder)
    assert again.exit_code == 0, again.output
    assert marked.stat().st_mtime_ns == before[0]
    assert (at / "fused" / "config.json").stat().st_mtime_ns > before[1]


def test_weights_come_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_members, "SHARD", 60_000)
    bench_members.write_member(bench_members.SIZES["tiny"], "llava_next", tmp_path / "m", torch.bfloat16, "cpu")
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 2 and {f.name for f in files} == set(index["weight_map"].values())
    assert all(f.stat().st_size < 60_000 + 8_000 for f in files)  # the weights and a header
    total = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                found = opened.get_tensor(name)
                total += found.nbytes
                assert found.dtype == torch.bfloat16 and index["weight_map"][name] == file.name
                assert found.any() != name.endswith("bias"), name
    assert total == index["metadata"]["total_size"]


def test_7b_has_the_published_sizes() -> None:
    size = bench_members.SIZES["7b"]
    config = bench_members.config_of(size, "llava_next", torch.bfloat16)
    assert config.image_grid_pinpoints == [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (4096, 32)
    assert (config.vision_config.hidden_size, config.vision_config.image_size) == (1024, 336)
    assert config.image_token_id == AutoConfig.for_model("llava").image_token_id == 32000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_a_sentence() -> None:
    ran = bench("--device", "cuda")
    told = "bench_fused: device 'cuda': torch sees no GPU (--device cpu works everywhere)\n"
    assert (ran.exit_code, ran.stdout, ran.stderr) == (4, "", told)
