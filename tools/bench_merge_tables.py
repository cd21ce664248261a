"""Medians and ratios of what tools/bench_merge.py measured, and their tables."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

# method -> how many times faster than mergekit it is meant to be, on the clock and on two cores
WANTED = {
    "linear": 4, "task_arithmetic": 4, "slerp": 5, "model_stock": 3, "ties": 10, "dare_ties": 10, "della": 10,
    "breadcrumbs": 10,
}  # fmt: skip


def summary(told: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By job: medians over its runs; bound (seconds to copy the same bytes and import torch), beyond (the clock less
    the bound), bounds (the clock over the bound); and, of `fuse`, mergekit's clock and processors over its own.

    A job that failed has only the reason. Where mergekit was stopped, the ratios are the least that they can be.
    """
    jobs = told["jobs"]
    found = {name: medians(job) for name, job in jobs.items()}
    for name, job in jobs.items():
        own, method = found[name], job["method"]
        copy, loaded = found.get(f"{len(job['reads'])} inputs copy", {}), found.get("torch import", {})
        if job["kind"] not in ("copy", "import") and "clock" in own and "clock" in copy and "clock" in loaded:
            bound = copy["clock"] + loaded["clock"]
            own |= {"bound": bound, "beyond": own["clock"] - bound, "bounds": own["clock"] / bound}
        peer = jobs.get(f"{method} mergekit", {"runs": []})
        if job["kind"].startswith("fuse") and "clock" in own and peer["runs"]:
            stopped = peer.get("failed", "").startswith("stopped")
            if stopped or "failed" not in peer:
                theirs = {key: statistics.median(run[key] for run in peer["runs"]) for key in ("clock", "cpu")}
                own["faster"] = {key: theirs[key] / own[key] for key in theirs} | {"at_least": stopped}
                own["wanted"] = WANTED[method]
    return found


def medians(job: Mapping[str, Any]) -> dict[str, Any]:
    if "failed" in job:
        return {"failed": job["failed"]}
    runs = job["runs"]
    clocks = [run["clock"] for run in runs]
    whole = {key: statistics.median(run[key] for run in runs) for key in ("clock", "cpu", "anonymous")}
    return whole | {"least": min(clocks), "most": max(clocks), "runs": len(runs)}


def show(console: Console, told: Mapping[str, Any]) -> None:
    """One size: a row for each job, and one for each output that was compared with float64."""
    title = "{layout}, {parameters:,} parameters, {tensors:,} tensors; medians (least-most)".format(**told)
    heads = ("", "runs", "clock s", "CPU s", "peak MB", "x bound", "s beyond", "faster: clock, CPU")
    table = Table(*heads, title=title)
    for name, row in told["summary"].items():
        if "failed" in row:
            table.add_row(name, "", row["failed"] if row["failed"].startswith("stopped") else "failed")
            continue
        clock = "{clock:.2f} ({least:.2f}-{most:.2f})".format(**row)
        bound = [f"{row['bounds']:.2f}", f"{row['beyond']:.2f}"] if "bound" in row else ["", ""]
        table.add_row(
            name, str(row["runs"]), clock, f"{row['cpu']:.2f}", f"{row['anonymous'] / 1e6:.0f}", *bound, faster(row)
        )
    console.print(table)
    for name, row in told["summary"].items():
        if "failed" in row:
            console.print(f"{name}: {row['failed']}")
    if "pinned_gb_per_s" in told:
        console.print(f"from pinned memory to the GPU: {told['pinned_gb_per_s']:.1f} GB/s")
    near = {name: job["accuracy"] for name, job in told["jobs"].items() if "accuracy" in job}
    if near:
        show_accuracy(console, near)


def faster(row: Mapping[str, Any]) -> str:
    """4.2, 5.0 (4 wanted); > where mergekit was stopped."""
    if "faster" not in row:
        return ""
    one = row["faster"]
    return f"{'> ' * one['at_least']}{one['clock']:.1f}, {one['cpu']:.1f} ({row['wanted']} wanted)"


def show_accuracy(console: Console, near: Mapping[str, Mapping[str, Any]]) -> None:
    heads = ("", "weights", "not the rounded result", "largest error", "rms error")
    table = Table(*heads, title="beside float64; errors in units of the spacing of bf16 numbers")
    for name, row in near.items():
        table.add_row(name, f"{row['weights']:,}", f"{row['wrong']:.4%}", f"{row['max']:.3f}", f"{row['rms']:.4f}")
    console.print(table)
    for name, row in near.items():
        method, _, kind = name.partition(" ")
        for other in ("mergekit", "mergekit float32") if kind == "fuse" else ():
            if theirs := near.get(f"{method} {other}"):
                ours, their = ((one["wrong"], one["rms"]) for one in (row, theirs))
                closer = "as close as" if ours == their else "closer than" if ours < their else "farther than"
                console.print(f"{method}: fuse is {closer} {other}")


def show_growth(console: Console, sizes: Sequence[Mapping[str, Any]]) -> None:
    """Seconds of processors, and those for each GB read and written beyond the size before: equal where cost is linear.

    The first size has none. Also the memory, which should stay.
    """
    heads = (f"{one['parameters'] / 1e9:.2f}B" for one in sizes)
    table = Table("", *heads, title="CPU s; for each further GB read and written; peak MB")
    for name in sizes[0]["summary"]:
        if name != "torch import":
            pairs = zip([None, *sizes[:-1]], sizes, strict=True)
            table.add_row(name, *(cost(name, before, one) for before, one in pairs))
    console.print(table)


def cost(name: str, before: Mapping[str, Any] | None, told: Mapping[str, Any]) -> str:
    """A cell of `show_growth`: 4.13; 1.71; 236."""
    row = told["summary"][name]
    if "failed" in row:
        return "failed"
    each = further(name, before, told) if before else None
    memory = f"{row['anonymous'] / 1e6:.0f}"
    return "; ".join([f"{row['cpu']:.2f}", *([f"{each:.2f}"] if each is not None else []), memory])


def further(name: str, before: Mapping[str, Any], told: Mapping[str, Any]) -> float | None:
    """Seconds for each GB that a size has and the size before has not; None where that failed or has as many."""
    least, most = ((one["summary"][name], one["jobs"][name]) for one in (before, told))
    if "failed" in least[0]:
        return None
    more = [job["read"] + job["written"] for _, job in (least, most)]
    return (most[0]["cpu"] - least[0]["cpu"]) / (more[1] - more[0]) * 1e9 if more[0] != more[1] else None
