"""`fuse merge` beside mergekit and beside a plain copy of the same bytes: made-up Llamas, each run in turn.

    python tools/bench_merge.py build/bench                                   # 1B, every method, an hour
    python tools/bench_merge.py build/bench --params 50M --method linear --repeats 1
    python tools/bench_merge.py build/bench --params 0.25B --params 0.5B --params 1B --params 2B --only fuse --only copy
    python tools/bench_merge.py build/bench --layout many --method linear     # 18,003 tensors

Members (a base and two fine-tunes in bf16) are written into the folder and used again. What is measured and how is
told in docs/benchmarks.md. Exit codes: 1 when a run of `fuse` failed, else `fuse`'s.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import click
from bench_child import Ran, run_child
from bench_merge_files import MEMBERS, Count, layout, write_members
from bench_merge_jobs import METHODS, PEER_OPTIONS, PINNED, TOOLS, Job, environment, jobs
from bench_merge_tables import show, show_growth, summary
from rich.console import Console

from fuse.errors import FuseError, MachineError
from fuse.safetensors_header import read_header

OUTPUT = "bench_merge_output"  # the folder that is written and deleted again and again
PACKAGES = ("fuse-mllm", "mergekit", "torch", "transformers", "safetensors", "numpy")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(), "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "load": os.getloadavg()[0],
        "system": platform.platform(), "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }  # fmt: skip


def tensors(folder: Path) -> int:
    return sum(len(read_header(file)) for file in folder.glob("*.safetensors"))


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*"))


def run_in_turn(
    todo: Sequence[Job], folder: Path, out: Path, env: dict[str, str], *, repeats: int, timeout: float, long: float,
    count: int, compare: Callable[[Job], dict[str, Any] | None], tell: Callable[[str], None],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Every job once, then every job again. One that failed, or that took longer than `long` seconds, is not repeated.

    Before each the inputs are read, so that they are in the page cache where it has room; after each what is in memory
    goes to the disk and the output away. The first copy is run once more, before all and uncounted: the first output
    takes memory for the page cache that later ones are given again.
    """
    for job in [job for job in todo if job.kind == "copy"][:1]:
        run_child(job.command, env, timeout)
    found: dict[str, dict[str, Any]] = {job.name: {"runs": []} for job in todo}
    for repeat in range(repeats):
        for job in todo:
            told = found[job.name]
            if told.get("failed") or (repeat and told["runs"][0]["clock"] > long):
                continue
            shutil.rmtree(out, ignore_errors=True)
            for name in job.reads:
                subprocess.run(["sh", "-c", f'cat "$1"/*.safetensors > {os.devnull}', "cat", folder / name], check=True)
            ran = run_child(job.command, env, timeout)
            os.sync()
            told |= look(job, out, ran, count, told)
            if not repeat and not told.get("failed") and (near := compare(job)):
                told["accuracy"] = near
            figures = f"{ran.clock:.2f} s, {ran.cpu:.2f} s of processors, {ran.anonymous / 1e6:.0f} MB"
            tell(f"{repeat + 1}/{repeats} {job.name}: {told.get('failed') or figures}")
            shutil.rmtree(out, ignore_errors=True)
    return found


def look(job: Job, out: Path, ran: Ran, count: int, told: dict[str, Any]) -> dict[str, Any]:
    """The record with a further run: it failed too if its output has not every tensor."""
    failed = ran.failed
    if job.writes and not failed and (written := tensors(out)) != count:
        failed = f"wrote {written:,} of {count:,} tensors"
    more: dict[str, Any] = {"runs": [*told["runs"], ran.as_json()]}
    if job.writes and out.exists():
        more["written"] = size(out)
    return more | ({"failed": failed} if failed else {})


def measure(folder: Path, out: Path, parameters: int, chosen: dict[str, Any], tell: Callable[[str], None]) -> Any:
    """All of one size, as the JSON has it."""
    from bench_merge_oracle import ORACLES, accuracy

    members, many = MEMBERS[: chosen["members"] + 1], chosen["layout"] == "many"
    folder = folder / ("many" if many else f"llama-{parameters}")
    config, shapes = layout(parameters, many)
    write_members(folder, config, shapes, members)
    env = environment(chosen["threads"])

    def compare(job: Job) -> dict[str, Any] | None:
        if not chosen["accuracy"] or job.method not in ORACLES:
            return None
        values = METHODS[job.method][1]
        if "weights" in values:
            values = values | {"weights": {name: w for name, w in values["weights"].items() if name in job.reads}}
        return accuracy(job.method, values, folder, job.reads, out, config["num_hidden_layers"])

    how = {key: chosen[key] for key in ("device", "threads", "peer_options", "accuracy")}
    todo = jobs(folder, out, members, chosen["methods"], chosen["only"], **how)
    limits = {key: chosen[key] for key in ("repeats", "timeout", "long")}
    found = run_in_turn(todo, folder, out, env, **limits, count=len(shapes), compare=compare, tell=tell)
    for job in todo:
        found[job.name] |= {"kind": job.kind, "method": job.method, "reads": job.reads}
        found[job.name]["read"] = sum(size(folder / name) for name in job.reads)
    total = sum(map(prod, shapes.values()))
    told = {"layout": chosen["layout"], "parameters": total, "tensors": len(shapes), "jobs": found}
    if chosen["device"] == "cuda":
        told["pinned_gb_per_s"] = pinned(env)
    return told | {"summary": summary(told)}


def pinned(env: dict[str, str]) -> float:
    """GB/s from pinned memory to the GPU: the bound of a merge there."""
    with tempfile.NamedTemporaryFile("r", suffix=".txt") as file:
        ran = run_child([sys.executable, "-c", PINNED, file.name], env, 120)
        if ran.failed:
            raise MachineError(f"a copy to the GPU failed: {ran.failed}", hint="--device cpu works everywhere")
        return float(Path(file.name).read_text())


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--params", "sizes", type=Count(), multiple=True, default=["1B"], show_default=True, help="Of a member.")
@click.option("--layout", type=click.Choice(["llama", "many"]), default="llama", show_default=True,
              help="many: 18,003 tiny tensors, whatever --params says.")  # fmt: skip
@click.option("--members", type=click.IntRange(1, 2), default=2, show_default=True, help="Besides the base.")
@click.option("--method", "methods", multiple=True, type=click.Choice([*METHODS]), help="Else all.")
@click.option("--only", multiple=True, type=click.Choice(TOOLS), help="Else all of them.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--timeout", type=click.FloatRange(1), default=1800, show_default=True, help="Seconds of a run.")
@click.option("--long", type=float, default=120, show_default=True, help="What takes longer (seconds) runs once.")
@click.option("--accuracy", is_flag=True, help="Compare with float64, also mergekit in float32.")
@click.option("--threads", type=click.IntRange(1), help="Of both tools; else their own choice.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--peer-options", default=PEER_OPTIONS, show_default=True, help="Of mergekit.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="For outputs; else FOLDER.")
@click.option("--json", "target", type=click.Path(dir_okay=False, path_type=Path), help="Write every number here.")
def main(folder: Path, sizes: tuple[int, ...], out: Path | None, target: Path | None, **chosen: Any) -> None:
    """Measure merges of made-up checkpoints in FOLDER."""
    chosen |= {"methods": chosen["methods"] or (*METHODS,), "only": chosen["only"] or TOOLS}
    if chosen["members"] == 1 and {"slerp", "model_stock"} & set(chosen["methods"]):
        raise click.UsageError("slerp and model_stock take two members")
    if chosen["layout"] == "many" and len(sizes) > 1:
        raise click.UsageError("--layout many has one size")
    console, told = Console(highlight=False, width=130), {"machine": machine(), "options": chosen, "sizes": []}
    failed = False
    if out:
        out.mkdir(parents=True, exist_ok=True)
    try:
        for parameters in sizes:
            one = measure(folder.resolve(), (out or folder).resolve() / OUTPUT, parameters, chosen,
                          lambda text: click.echo(text, err=True))  # fmt: skip
            told["sizes"].append(one)
            failed |= any("failed" in job for job in one["jobs"].values() if job["kind"].startswith("fuse"))
            if target:
                target.write_text(json.dumps(told, indent=1) + "\n")
            show(console, one)
    except FuseError as error:
        click.echo(f"bench_merge: {error}", err=True)
        sys.exit(error.exit_code)
    if len(sizes) > 1:
        show_growth(console, told["sizes"])
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
