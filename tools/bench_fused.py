"""A fused model against each of its parents: the same image, the same question, one run.

    python tools/bench_fused.py                                       # small: a CPU, under a minute
    python tools/bench_fused.py --size 7b --device cuda --folder bench --json 7b.json

The parents, a LLaVA-1.5 and a LLaVA-NeXT with random weights, are written on the spot; the fused model is made of
their folders by `fuse merge`. 7b has the sizes of the published checkpoints: its three folders take 43 GB of disk, and
one model at a time is in memory. The check: the fused prefill takes no longer than its parents' vision parts and one
prefill of its language model at the same length, and a tenth. Exit codes: 1 when that fails on a GPU, else `fuse`'s.
"""

import contextlib
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing comes from elsewhere

import click
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from fuse import torchvision_shim
from fuse.errors import FuseError, MachineError

torchvision_shim.install()
ALLOWED, WARM_UPS = 1.10, 2
QUESTION = " ".join(f"w{i}" for i in range(10, 26))


class Clock:
    """Stands where `generate` puts its streamer: the time at which each token was on the CPU."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def times(found: list[float]) -> dict[str, Any]:
    """Seconds: median, least, most and all, without the warm-up."""
    kept = found[WARM_UPS:]
    return {"median": statistics.median(kept), "least": min(kept), "most": max(kept), "all": kept}


@dataclass(frozen=True)
class Bench:
    """How everything is measured."""

    device: str
    dtype: torch.dtype
    attention: str
    runs: int
    tokens: int

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, run: Callable[[], Any]) -> dict[str, Any]:
        found = []
        for _ in range(WARM_UPS + self.runs):
            began = self.now()
            run()
            found.append(self.now() - began)
        return times(found)

    def generated(self, model: Any, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Seconds to the first token of greedy generation, and of each further one."""
        first, further = [], []
        count = {"max_new_tokens": self.tokens, "min_new_tokens": self.tokens}
        for _ in range(WARM_UPS + self.runs):
            clock, began = Clock(), self.now()
            model.generate(**batch, **count, do_sample=False, streamer=clock)
            ticks = clock.times[-self.tokens :]  # the prompt comes first
            first.append(ticks[0] - began)
            further.append((ticks[-1] - ticks[0]) / (self.tokens - 1))
        return times(first), times(further)

    def measure(self, folder: Path, image: Image.Image) -> dict[str, Any]:
        """A folder as a user opens it, on the image and the question. In seconds: prepare (its processor), vision
        (encoder and projector), prefill (one pass over the whole prompt, vision included), first_token and further
        ones in `generate`, and of a fused model language_prefill (its language model alone, at the same length)."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.forget_peak()
        opened: Any = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=self.attention)
        self.forget_peak()
        model, own = opened.eval().requires_grad_(False).to(self.device), AutoProcessor.from_pretrained(folder)
        asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        prompt = own.apply_chat_template(asked, tokenize=False)
        batch = own(images=[image], text=[prompt], return_tensors="pt").to(self.device)
        ids, fused = batch["input_ids"], model.config.model_type == "fuse"
        visual = model.config.placeholder_ids if fused else [model.config.image_token_id]
        seen = {k: v for k, v in batch.items() if fused or k not in ("input_ids", "attention_mask")}
        once = {"use_cache": True, "logits_to_keep": 1}
        told = {
            "class": type(model).__name__, "visual_tokens": int(torch.isin(ids.cpu(), torch.tensor(visual)).sum()),
            "prompt_tokens": ids.shape[1], "weight_bytes": sum(w.nbytes for w in model.parameters()),
            "prepare": self.timed(lambda: own(images=[image], text=[prompt], return_tensors="pt")),
            "vision": self.timed(lambda: model.get_image_features(**seen)),
            "prefill": self.timed(lambda: model(**batch, **once)),
        }  # fmt: skip
        told["first_token"], told["further_token"] = self.generated(model, batch)
        told["tokens_per_second"], told["peak_bytes"] = 1 / told["further_token"]["median"], self.peak()
        if fused:
            width = model.config.text_config.hidden_size
            embeds = torch.randn(1, ids.shape[1], width, device=self.device).mul(0.02).to(self.dtype)
            told["language_prefill"] = self.timed(lambda: model.language_model(inputs_embeds=embeds, **once))
        return told

    def forget_peak(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):  # man 5 proc: "5" resets the most that was resident
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes: the most that torch allocated on the GPU, or that the process had resident; 0 where unknown."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status")
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.exists() else 0


def run_bench(bench: Bench, size: str, folder: Path) -> dict[str, Any]:
    """Members, `fuse merge`, and every number as the JSON has it."""
    import transformers
    from bench_members import SIZES, write_member

    from fuse.commands.merge import command as merge

    for name in ("llava", "llava_next"):
        write_member(SIZES[size], name, folder / name, bench.dtype, bench.device)
    recipe, gpu = folder / "recipe.yaml", bench.device == "cuda"
    recipe.write_text(
        "members: {llava: llava, llava_next: llava_next}\nlanguage: {method: linear, weights: 0.5}\n"
        "vision: [llava, llava_next]\n"
    )
    merge.main([str(recipe), str(folder / "fused"), "--force", "--quiet"], standalone_mode=False)
    image = Image.radial_gradient("L").resize(SIZES[size].image).convert("RGB")
    found = {name: bench.measure(folder / name, image) for name in ("llava", "llava_next", "fused")}
    return {
        "size": size, "device": torch.cuda.get_device_name() if gpu else "cpu", "threads": torch.get_num_threads(),
        "dtype": str(bench.dtype).removeprefix("torch."), "attention": bench.attention, "runs": bench.runs,
        "decoded": bench.tokens, "image": SIZES[size].image, "torch": torch.__version__,
        "transformers": transformers.__version__, "models": found, "check": check(found),
    }  # fmt: skip


def check(models: dict[str, Any]) -> dict[str, Any]:
    """The fused prefill beside the sum of its parts, in medians."""
    parts = [one["vision"]["median"] for name, one in models.items() if name != "fused"]
    parts.append(models["fused"]["language_prefill"]["median"])
    ratio = models["fused"]["prefill"]["median"] / sum(parts)
    return {"parts": parts, "ratio": ratio, "allowed": ALLOWED, "passed": ratio <= ALLOWED}


def show(console: Console, told: dict[str, Any]) -> None:
    """The table, and the check in one line."""

    def ms(key: str) -> list[str]:
        return ["{:.1f} ({:.1f}-{:.1f})".format(*(one[key][k] * 1e3 for k in ("median", "least", "most")))
                for one in told["models"].values()]  # fmt: skip

    title = "{size} on {device}: {dtype}, {attention}; ms are the median (least-most) of {runs} runs".format(**told)
    table = Table("", *told["models"], title=title)
    for key, name in (("visual_tokens", "visual tokens"), ("prompt_tokens", "prompt tokens")):
        table.add_row(name, *(str(one[key]) for one in told["models"].values()))
    for key, name in (
        ("prepare", "processor, ms"), ("vision", "vision part alone, ms"), ("prefill", "prefill with vision, ms"),
        ("first_token", "first token of generate, ms"), ("further_token", "each further token, ms"),
    ):  # fmt: skip
        table.add_row(name, *ms(key))
    table.add_row("tokens/s while decoding", *(f"{m['tokens_per_second']:.1f}" for m in told["models"].values()))
    for key, name in (("weight_bytes", "weights, GB"), ("peak_bytes", "peak memory, GB")):
        table.add_row(name, *(f"{one[key] / 1e9:.2f}" for one in told["models"].values()))
    console.print(table)
    found, prefill = told["check"], told["models"]["fused"]["prefill"]["median"]
    sums = " + ".join(f"{part * 1e3:.1f}" for part in found["parts"])
    console.print(
        f"fused prefill {prefill * 1e3:.1f} ms / ({sums} ms: parents' vision parts, language model alone) "
        f"= {found['ratio']:.3f}, {'within' if found['passed'] else 'above'} {found['allowed']:.2f}"
    )


@click.command()
@click.option("--size", type=click.Choice(["tiny", "small", "7b"]), default="small", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Else bfloat16 on cuda and at 7b.")
@click.option("--attn", type=click.Choice(["sdpa", "eager", "flash_attention_2"]), default="sdpa", show_default=True)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=32, show_default=True, help="To generate.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep the folders here (7b: 43 GB).")
@click.option("--json", "target", type=click.Path(dir_okay=False, path_type=Path), help="Write every number here.")
def main(
    size: str, device: str, dtype: str | None, attn: str, runs: int, tokens: int, folder: Path | None,
    target: Path | None,
) -> None:  # fmt: skip
    """Measure a fused model and its parents; members that --folder has are used again."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    chosen = dtype or ("bfloat16" if device == "cuda" or size == "7b" else "float32")
    bench = Bench(device, getattr(torch, chosen), attn, runs, tokens)
    try:
        if device == "cuda" and not torch.cuda.is_available():
            raise MachineError("device 'cuda': torch sees no GPU", hint="--device cpu works everywhere")
        with torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
            told = run_bench(bench, size, (folder or Path(scratch)) / f"{size}-{chosen}")
    except FuseError as error:
        click.echo(f"bench_fused: {error}", err=True)
        sys.exit(error.exit_code)
    if target:
        target.write_text(json.dumps(told, indent=1) + "\n")
    show(Console(highlight=False, width=120), told)
    sys.exit(0 if told["check"]["passed"] or device == "cpu" else 1)


if __name__ == "__main__":
    main()
