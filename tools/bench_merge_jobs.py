"""What tools/bench_merge.py runs: the methods as both tools' recipes say them, and the command lines."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = {"a": 0.6, "b": 0.4}
TASKS = {"weights": WEIGHTS}
TRIMMED = TASKS | {"density": 0.5}
# method -> whether it has a base, and its parameters
METHODS: dict[str, tuple[bool, dict[str, Any]]] = {
    "linear": (False, TASKS),
    "slerp": (False, {"t": 0.3}),
    "task_arithmetic": (True, TASKS),
    "ties": (True, TRIMMED),
    "dare_ties": (True, TRIMMED),
    "della": (True, TRIMMED | {"epsilon": 0.1}),
    "model_stock": (True, {}),
    "breadcrumbs": (True, TRIMMED | {"gamma": 0.05}),
}
# the fastest of mergekit's options here; inputs are safetensors, so that its lazy unpickler has nothing to do
PEER_OPTIONS = "--lazy-unpickle --async-write --out-shard-size 250M --no-copy-tokenizer --no-write-model-card --quiet"
PEER = (
    "from fuse import torchvision_shim; torchvision_shim.install(); "
    "from mergekit.scripts.run_yaml import main; main()"
)  # torchvision's wheel beside a CPU torch, which mergekit imports, needs the shim
TOOLS = ("fuse", "mergekit", "copy")
PINNED = """
import sys, time, torch
host = torch.empty(1 << 28, dtype=torch.uint8).pin_memory()
device = torch.empty_like(host, device="cuda")
found = []
for _ in range(10):
    torch.cuda.synchronize()
    began = time.perf_counter()
    device.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    found.append(host.nbytes / (time.perf_counter() - began) / 1e9)
open(sys.argv[1], "w").write(str(max(found)))
"""  # GB/s from pinned memory to the GPU: the most of ten copies of 256 MiB


@dataclass(frozen=True)
class Job:
    """One program that is run again and again.

    kind: "fuse", "fuse bare" (no hashes), "mergekit", "mergekit float32", "copy" or "import".
    reads: the member folders. command: its last word is the output folder where it writes one.
    """

    kind: str
    method: str
    reads: tuple[str, ...]
    command: tuple[str, ...]
    writes: bool = True

    @property
    def name(self) -> str:
        return f"{self.method} {self.kind}".strip()


def inputs(method: str, members: Sequence[str]) -> tuple[str, ...]:
    return tuple(members) if METHODS[method][0] else tuple(name for name in members if name != "base")


def jobs(
    folder: Path, out: Path, members: Sequence[str], methods: Sequence[str], only: Sequence[str], *, device: str,
    threads: int | None, peer_options: str, accuracy: bool,
) -> list[Job]:  # fmt: skip
    """Everything to run, in order; the recipes are written into `folder`."""
    found = []
    if "copy" in only:
        found.append(Job("import", "torch", (), (sys.executable, "-c", "import torch"), writes=False))
        for reads in sorted({inputs(method, members) for method in methods}, key=len):
            found.append(Job("copy", f"{len(reads)} inputs", reads, copy_command(folder, reads, out)))
    for method in methods:
        reads = inputs(method, members)
        if "fuse" in only:
            ours = fuse_command(folder, method, reads, device, threads)
            found.append(Job("fuse", method, reads, (*ours, str(out))))
            found.append(Job("fuse bare", method, reads, (*ours, "--no-hash", str(out))))
        if "mergekit" in only:
            options = [*shlex.split(peer_options), *(["-j", str(threads)] if threads else [])]
            options += ["--cuda"] if device == "cuda" else []
            for kind in ("mergekit", *(("mergekit float32",) if accuracy else ())):
                theirs = peer_recipe(folder, method, reads, kind)
                found.append(Job(kind, method, reads, (sys.executable, "-c", PEER, *options, theirs, str(out))))
    return found


def copy_command(folder: Path, reads: Sequence[str], out: Path) -> tuple[str, ...]:
    """Read every input, and write one of them anew: no merge is quicker than that."""
    files = [str(file) for name in reads for file in sorted((folder / name).glob("*.safetensors"))]
    script = 'out=$1; one=$2; shift 2; cat "$@" > /dev/null && mkdir "$out" && cp --reflink=never "$one"/* "$out"'
    return ("sh", "-c", script, "copy", str(out), str(folder / reads[-1]), *files)


def fuse_command(folder: Path, method: str, reads: Sequence[str], device: str, threads: int | None) -> tuple[str, ...]:
    """`fuse merge` without its output folder; the recipe is JSON, which is YAML too."""
    recipe: dict[str, Any] = {"base": "base"} if "base" in reads else {}
    names = [name for name in reads if name != "base"]
    values = METHODS[method][1]
    if "weights" in values:
        values = values | {"weights": {name: WEIGHTS[name] for name in names}}
    recipe |= {"members": {name: name for name in names}, "language": {"method": method, **values}}
    file = folder / f"{method}.yaml"
    file.write_text(json.dumps(recipe, indent=1) + "\n")
    more = [*(["--threads", str(threads)] if threads else []), *(["--device", device] if device != "cpu" else [])]
    return (sys.executable, "-m", "fuse", "merge", "--quiet", *more, str(file))


def peer_recipe(folder: Path, method: str, reads: Sequence[str], kind: str) -> str:
    """The same merge as mergekit's recipe; gives the file."""
    values = METHODS[method][1]
    shared = {"t": values["t"]} if "t" in values else {}
    own = {key.removesuffix("s"): value for key, value in values.items() if key != "t"}
    models = [
        {"model": str(folder / name), "parameters": own | ({"weight": WEIGHTS[name]} if "weight" in own else {})}
        for name in reads if name != "base"
    ]  # fmt: skip
    recipe: dict[str, Any] = {"merge_method": method, "models": models, "parameters": shared}
    recipe |= {"dtype": "float32", "out_dtype": "bfloat16"} if kind.endswith("float32") else {"dtype": "bfloat16"}
    if "base" in reads or method == "slerp":
        recipe["base_model"] = str(folder / reads[0])
    file = folder / f"{method} {kind}.yaml"
    file.write_text(json.dumps(recipe, indent=1) + "\n")
    return str(file)


def environment(threads: int | None) -> dict[str, str]:
    """The environment of every program: offline, and with so many threads of torch where that is said."""
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", **own}
