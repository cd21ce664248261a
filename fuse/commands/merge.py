"""`fuse merge`: a recipe in, a folder out."""

import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from fuse.checkpoint import INDEX, SINGLE
from fuse.errors import one_line
from fuse.sizes import counted, size_text
from fuse.stores.address import is_store

if TYPE_CHECKING:
    from fuse.merge import Merged
    from fuse.plan import Plan


@click.command("merge")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", callback=lambda _ctx, _param, value: value if is_store(value) else Path(value))
@click.option("--force", is_flag=True, help="Replace OUT if it exists (only after the new folder is complete).")
@click.option("--restart", is_flag=True, help="Throw away what an unfinished run left beside OUT.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Tensors worked on at once. [default: cores + 1]")
@click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda (all GPUs) or cuda:N.")
@click.option("--no-hash", is_flag=True, help="No sha256 of inputs and output in fuse.json.")
@click.option("--no-sync", is_flag=True, help="Do not wait until the disk has the output.")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="Who works: threads here, or a Ray cluster that sees OUT's disk (RAY_ADDRESS).",
)  # fmt: skip
@click.option("--worker", help="Write one share of several, such as 0/4 or auto (torchrun, Slurm); then fuse commit.")
@click.option(
    "--staging", type=click.Path(path_type=Path), help="Where to make an OUT of a store. [default: by RECIPE]"
)
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document about the result on stdout.")
def command(
    recipe: Path, out: Path | str, force: bool, restart: bool, threads: int | None, device: str, no_hash: bool,
    no_sync: bool, quiet: bool, as_json: bool, engine: Literal["local", "ray"], worker: str | None,
    staging: Path | None,
) -> None:  # fmt: skip
    """Run RECIPE into the folder OUT, or the folder s3://BUCKET/OUT of an object store.

    OUT appears whole, or not at all with one sentence that says why. A run that was interrupted or killed is gone on
    with by the same command.
    """
    from fuse.merge import merge, ready
    from fuse.planner import make_plan
    from fuse.progress import byte_progress
    from fuse.recipe_yaml import load_recipe
    from fuse.workers import share_bytes, work, worker_of

    which = worker_of(worker) if worker else None
    if which and restart:
        raise click.UsageError("--restart is for a merge without --worker")
    if which and engine == "ray":
        raise click.UsageError("--worker is for machines without Ray")
    if which and isinstance(out, str):
        raise click.UsageError("--worker writes into a folder that all workers see, not into a store")
    if staging and isinstance(out, Path):
        raise click.UsageError("--staging is for an OUT in a store")
    plan = make_plan(load_recipe(recipe))
    if which is None and isinstance(out, Path):
        ready(plan, out, force=force)
    began = time.monotonic()
    options = {"threads": threads, "device": device, "hashed": not no_hash, "sync": not no_sync}
    if isinstance(out, str):
        from fuse.stores.output import merge_to_store

        merged = merge_to_store(
            plan, out, staging=staging, shown=not quiet, force=force, restart=restart, engine=engine, **options
        )  # fmt: skip
        tell(plan, out, merged, began, as_json=as_json)
        return
    total = plan.bytes_written if which is None else share_bytes(plan, which)
    with byte_progress(total, shown=not quiet, name="merge") as progress:
        if which is not None:
            files = work(plan, out, which, force=force, progress=progress, **options)
            told = f"worker {which.number}/{which.count}: {counted(files, 'file')} of {one_line(str(out))} written"
            click.echo(json.dumps({"worker": which.number, "of": which.count, "files": files}) if as_json else told)
            return
        merged = merge(plan, out, force=force, progress=progress, restart=restart, engine=engine, **options)
    tell(plan, out, merged, began, as_json=as_json)


def tell(plan: "Plan", out: Path | str, merged: "Merged", began: float, *, as_json: bool) -> None:
    """What was done, on stdout. began: as time.monotonic says it."""
    from fuse.card import OTHERS
    from fuse.card_tables import r2_text

    seconds = time.monotonic() - began
    file, digest = _digest(out)
    count = Counter(row.action for row in plan.rows)
    if as_json:
        click.echo(json.dumps({
            "folder": str(out), "merged": count["merge"], "copied": count["copy"], "folded": count["fold"],
            "made": count["make"], "dropped": len(plan.drops), "bytes": plan.bytes_written,
            "seconds": round(seconds, 3), "plan": plan.digest(), "resumed": merged.resumed,
            **({"sha256": {file: digest}} if digest else {}),
            "bridges": {name: {fit.name: fit.r2 for fit in own} for name, own in merged.fits.items()},
        }, indent=1))  # fmt: skip
        return
    others = "".join(f"{count[key]} {word}, " for key, word in OTHERS.items() if count[key])
    earlier = f" ({merged.resumed} of {len(plan.shards)} files from an earlier run)" if merged.resumed else ""
    moved = int((plan.bytes_read + plan.bytes_written) / max(seconds, 0.001))
    rate = "" if merged.resumed else f", {size_text(moved)}/s read and written"
    click.echo(
        f"{one_line(str(out))}: {counted(count['merge'], 'tensor')} merged, {count['copy']} copied, {others}"
        f"{len(plan.drops)} left out; {size_text(plan.bytes_written)} in {seconds:.1f} s{rate}{earlier}"
    )
    if digest:
        click.echo(f"{file}: sha256 {digest}")
    crossed = (*plan.fused.branches, *plan.fused.grafts) if plan.fused else ()
    folded = {one.name for one in crossed if one.bridge and one.bridge.folded}
    for name, own in merged.fits.items():
        click.echo(f"bridge of {name}: {counted(len(own), 'map')}{', folded' * (name in folded)}, {r2_text(own)}")


def _digest(out: Path | str) -> tuple[str, str]:
    """The index of the weights, or their one file, and its sha256; "" where it was not computed or is in a store."""
    if isinstance(out, str):
        return "", ""
    if (out / INDEX).is_file():
        return INDEX, hashlib.sha256((out / INDEX).read_bytes()).hexdigest()
    return SINGLE, json.loads((out / "fuse.json").read_text(encoding="utf-8"))["sha256"].get(SINGLE, "")
