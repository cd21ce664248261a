"""The files of a plan as tasks of a Ray cluster whose machines share the output's disk.

A task writes a file apart and renames it, so that one that is run again, or twice at once, does no harm: its bytes are
the same. Ray runs a task again when its worker is lost.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

from fuse import errors, interruption
from fuse.digests import Digest
from fuse.engine.blocks import NO_CONSTANTS, Constants
from fuse.engine.execute import Progress, Written, execute
from fuse.errors import FuseError, MachineError
from fuse.plan import Row
from fuse.unfinished import WORK

TRIES_MORE = 3
LOOKS_APART = 0.5  # seconds between two looks for a signal


def execute_on_ray(
    rows: Sequence[Row], shards: Sequence[tuple[str, Sequence[int]]], folder: Path, progress: Progress,
    constants: Constants = NO_CONSTANTS, *, threads: int | None = None, device: str = "cpu", hashed: bool = True,
    sync: bool = True, stop: Event | None = None, written: Written = lambda *_: None,
) -> dict[str, Digest]:  # fmt: skip
    """As `fuse.engine.execute.execute`, on the cluster that RAY_ADDRESS names, or on one of this machine.

    threads: of one task, which asks Ray for as many cores (1 where left out), and for one GPU where the device is one.
    Raises MachineError without Ray, where no machine of the cluster has that much, and where a task's workers are lost
    again and again.
    """
    ray, stop = _ray(), stop or Event()
    work = folder.resolve().parent / WORK
    work.mkdir(exist_ok=True)
    digests: dict[str, Digest] = {}
    with _cluster(ray), interruption.held():
        needs = {"num_cpus": threads or 1, "num_gpus": int(device != "cpu")}
        check_room(ray.nodes(), cores=needs["num_cpus"], gpus=needs["num_gpus"])
        task = ray.remote(**needs, max_retries=TRIES_MORE)(_write)
        shared = ray.put(dict(constants))
        how = (folder.resolve(), shared, threads or 1, device, hashed, sync)
        jobs = {task.remote([rows[i] for i in own], name, *how): name for name, own in shards}
        left = list(jobs)
        while left:
            interruption.check()
            if stop.is_set():
                from fuse.team import Stopped

                raise Stopped
            done, left = ray.wait(left, timeout=LOOKS_APART)
            for job in done:
                name = jobs[job]
                found = _result(ray, job, name)
                if isinstance(found, FuseError):
                    raise found
                size, digest, total = found
                digests[name] = digest
                written(name, size, digest)
                progress(total)
    return {name: digests[name] for name, _ in shards}


def check_room(nodes: Sequence[Mapping[str, Any]], *, cores: int, gpus: int) -> None:
    """MachineError where no machine can ever run a task that takes as much: Ray would wait for one.

    nodes: as `ray.nodes` tells them.
    """
    have = [node["Resources"] for node in nodes if node["Alive"]]
    able = [one for one in have if one.get("GPU", 0) >= gpus]
    most = max((int(one.get("CPU", 0)) for one in able), default=0)
    if most >= cores:
        return
    having = " and a GPU" if gpus else ""
    if most:
        raise MachineError(f"no machine of the cluster has {cores} cores{having}", hint=f"--threads {most} or fewer")
    if gpus:
        told = "no machine of the cluster has a GPU that Ray knows of"
        raise MachineError(told, hint="leave --device out, or name another cluster by RAY_ADDRESS")
    told = "no machine of the cluster has a core for tasks"
    raise MachineError(told, hint="start one with `ray start --num-cpus`, or name another cluster by RAY_ADDRESS")


def _write(
    rows: Sequence[Row], name: str, folder: Path, constants: Constants, threads: int, device: str, hashed: bool,
    sync: bool,
) -> tuple[int, dict[str, str], int] | dict[str, Any]:  # fmt: skip
    """The task: one file. Its bytes, digest and the bytes of its tensors; or, of what is wrong, which error it is."""
    apart = f"{name}.{uuid4().hex[:8]}"
    work = folder.parent / WORK
    try:
        digest = execute(
            rows, [(apart, range(len(rows)))], work, lambda _: None, constants, threads=threads, device=device,
            hashed=hashed, sync=sync,
        )[apart]  # fmt: skip
        (work / apart).replace(folder / name)
        return (folder / name).stat().st_size, asdict(digest), sum(row.nbytes for row in rows)
    except FuseError as error:
        where = error.where.replace(apart, name)
        return {"kind": type(error).__name__, "problem": error.problem, "where": where, "hint": error.hint}
    except OSError as error:
        return {"kind": "OSError", "errno": error.errno, "text": error.strerror, "file": str(error.filename or folder)}
    finally:
        (work / apart).unlink(missing_ok=True)


def _result(ray: Any, job: Any, name: str) -> tuple[int, Digest, int] | FuseError:
    try:
        found = ray.get(job)
    except ray.exceptions.WorkerCrashedError:
        told = f"the worker that wrote {name} was lost {TRIES_MORE + 1} times"
        return MachineError(told, hint="`ray logs` tells why; less memory: fewer --threads")
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.RayTaskError):
            raise error.cause from None
        return MachineError(f"Ray cannot write {name}: {(str(error).splitlines() or ['?'])[0][:200]}")
    if isinstance(found, tuple):
        size, digest, total = found
        return size, Digest(**digest), total
    if found["kind"] == "OSError":
        raise OSError(found["errno"], found["text"], found["file"])
    return getattr(errors, found["kind"])(found["problem"], where=found["where"], hint=found["hint"])


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise MachineError("--engine ray needs Ray", hint="pip install 'fuse-mllm[ray]'") from None
    return ray


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Connected to a cluster; one that was started for this is stopped, and its tasks with it."""
    if ray.is_initialized():
        yield
        return
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    here = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    try:
        ray.init(configure_logging=False, log_to_driver=False, **here)
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = (str(error).splitlines() or ["?"])[0][:200]
        raise MachineError(f"Ray's cluster cannot be reached ({told})", hint="RAY_ADDRESS names it") from None
    finally:
        for number, handler in ours.items():  # Ray takes one for itself
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()
