"""What trust costs: a merge without checks, with them, with hashes, and with waiting for the disk, in turn in one call.

    python tools/bench_merge.py build/bench --params 1B --only copy --repeats 1   # makes the members
    python tools/bench_checks.py build/bench/llama-1000000000

Waiting for the disk goes past the page cache, not waiting through it, so the last row may be slower. The checks are
those of every number read and written, of inputs that stay as they were, and of the folder at the end;
what reading headers, index and config strictly costs is measured apart, against Python's own JSON.
"""

import json
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import click

UNCHECKED = """
import sys
import fuse.engine.finite, fuse.merge
fuse.engine.finite.is_finite = lambda tensor: True
fuse.merge.check_unchanged = fuse.merge.check_written = lambda *_: None
from fuse.cli import run
run()
"""
RUNS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "without checks": (("-c", UNCHECKED), ("--no-hash",)),
    "with checks": (("-m", "fuse"), ("--no-hash",)),
    "and sha256": (("-m", "fuse"), ()),
    "with checks, not waiting for the disk": (("-m", "fuse"), ("--no-hash", "--no-sync")),
}


@click.command()
@click.argument("members", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--method", default="linear", show_default=True)
@click.option("--repeats", default=5, show_default=True)
def main(members: Path, method: str, repeats: int) -> None:
    recipe = members / "checks.yaml"
    base = "base: base\n" if method not in {"linear", "slerp"} else ""
    recipe.write_text(f"{base}members: {{a: a, b: b}}\nlanguage: {{method: {method}, weights: 0.5}}\n")
    clock: dict[str, list[float]] = {name: [] for name in RUNS}
    used: dict[str, list[float]] = {name: [] for name in RUNS}
    for turn in range(repeats + 1):
        for name, (program, options) in RUNS.items():
            for file in members.glob("*/*.safetensors"):
                subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True)
            seconds, cpu = _run([sys.executable, *program, "merge", "--quiet", *options, recipe, members / "checked"])
            subprocess.run(["rm", "-rf", members / "checked"], check=True)
            subprocess.run(["sync"], check=True)
            if turn:  # the first run of each compiles kernels and finds memory
                clock[name].append(seconds)
                used[name].append(cpu)
    click.echo(f"| {method} | clock s | CPU s |\n|---|---|---|")
    for name in RUNS:
        click.echo(f"| {name} | {_told(clock[name])} | {_told(used[name])} |")
    share = 100 * (median(used["with checks"]) / median(used["without checks"]) - 1)
    click.echo(f"checks: {share:.1f}% of the seconds of processors")
    strict, plain = _headers(members)
    click.echo(f"headers, index and config of 3 members: {strict:.3f} s strictly, {plain:.3f} s as JSON alone")


def _run(command: Sequence[str | Path]) -> tuple[float, float]:
    """Seconds on the clock and of processors."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _headers(members: Path) -> tuple[float, float]:
    from fuse.checkpoint import open_checkpoint

    def strictly() -> None:
        for name in ("base", "a", "b"):
            open_checkpoint(name, name, revision=None, relative_to=members)

    def plainly() -> None:
        for folder in (members / name for name in ("base", "a", "b")):
            for path in folder.glob("*.json"):
                if "token" not in path.name:
                    json.loads(path.read_bytes())
            for path in folder.glob("*.safetensors"):
                with path.open("rb") as file:
                    json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))

    return _least(strictly), _least(plainly)


def _least(work: Callable[[], None]) -> float:
    found = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def _told(found: Sequence[float]) -> str:
    return f"{median(found):.2f} ({min(found):.2f}-{max(found):.2f})"


if __name__ == "__main__":
    main()
