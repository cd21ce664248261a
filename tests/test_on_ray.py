"""fuse merge --engine ray, on a cluster of several processes of this machine."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fuse.engine import on_ray
from fuse.engine.on_ray import check_room, execute_on_ray
from fuse.errors import CheckpointError, MachineError
from fuse.merge import merge
from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe
from tests.members import save_family

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, num_gpus=0, configure_logging=False, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = save_family(tmp_path_factory.mktemp("ray"), "a", "b")
    (root / "recipe.yaml").write_text(
        "base: a\nmembers: {b: b}\nlanguage: {method: dare_ties, weights: 0.5, density: 0.4, seed: 3}\n"
        "output: {shard_size: 20KB}\n"
    )
    return root / "recipe.yaml"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_cluster_writes_what_one_process_writes_although_a_worker_is_killed(
    cluster: None, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, real = tmp_path / "killed", on_ray._write

    def killed_once(rows: Any, name: str, folder: Path, *rest: Any) -> Any:
        if name.startswith("model-00002") and not killed.exists():
            (folder.parent / "work" / f"{name}.half").write_bytes(b"half")
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(rows, name, folder, *rest)

    plan = make_plan(load_recipe(recipe))
    merge(plan, tmp_path / "one")
    monkeypatch.setattr(on_ray, "_write", killed_once)
    merge(plan, tmp_path / "out", engine="ray")
    assert killed.exists() and contents(tmp_path / "out") == contents(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "one", "out"]


def test_a_worker_that_is_always_lost(
    cluster: None, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(on_ray, "_write", always)
    monkeypatch.setattr(on_ray, "TRIES_MORE", 0)
    with pytest.raises(MachineError) as caught:
        merge(make_plan(load_recipe(recipe)), tmp_path / "out", engine="ray")
    told = str(caught.value)
    assert told.startswith("the worker that wrote model-0000") and " was lost 1 times; nothing was written (" in told
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_is_said_as_always(cluster: None, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / name).mkdir()
        for path in (recipe.parent / name).iterdir():
            (tmp_path / "in" / name / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "in" / "b" / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "in" / "b" / "model.safetensors", {"format": "pt"})
    (tmp_path / "in" / "recipe.yaml").write_text(recipe.read_text())
    plan = make_plan(load_recipe(tmp_path / "in" / "recipe.yaml"))
    said = []
    for engine in ("local", "ray"):
        with pytest.raises(CheckpointError) as caught:
            merge(plan, tmp_path / "out", engine=engine)
        said.append(str(caught.value))
    assert said[0] == said[1] and "model.norm.weight" in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("threads", "device", "said"),
    [
        (4, "cpu", "no machine of the cluster has 4 cores; nothing was written (--threads 2 or fewer)"),
        (
            1, "cuda",
            "no machine of the cluster has a GPU that Ray knows of; nothing was written "
            "(leave --device out, or name another cluster by RAY_ADDRESS)",
        ),
    ],
)  # fmt: skip
def test_what_no_machine_can_run_is_not_waited_for(
    cluster: None, recipe: Path, tmp_path: Path, threads: int, device: str, said: str
) -> None:
    with pytest.raises(MachineError) as caught:
        merge(make_plan(load_recipe(recipe)), tmp_path / "out", engine="ray", threads=threads, device=device)
    assert str(caught.value) == said and not list(tmp_path.iterdir())


def node(cores: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {key: n for key, n in (("CPU", cores), ("GPU", gpus)) if n}}


WITHOUT = "no machine of the cluster has a GPU that Ray knows of (leave --device out, or name another cluster by"
IDLE = "no machine of the cluster has a core for tasks (start one with `ray start --num-cpus`, or name another cluster"


@pytest.mark.parametrize(
    ("nodes", "cores", "gpus", "said"),
    [
        ([node(0), node(2)], 2, 0, ""),
        ([node(2.0), node(4.0, 1.0)], 4, 1, ""),
        ([node(2), node(8, alive=False)], 4, 0, "no machine of the cluster has 4 cores (--threads 2 or fewer)"),
        ([node(2, 1), node(8)], 4, 1, "no machine of the cluster has 4 cores and a GPU (--threads 2 or fewer)"),
        ([node(2, 1, alive=False), node(8)], 4, 1, f"{WITHOUT} RAY_ADDRESS)"),
        ([node(0)], 1, 0, f"{IDLE} by RAY_ADDRESS)"),
        ([], 1, 0, f"{IDLE} by RAY_ADDRESS)"),
    ],
)
def test_what_machines_can_run(nodes: list[dict[str, Any]], cores: int, gpus: int, said: str) -> None:
    if not said:
        return check_room(nodes, cores=cores, gpus=gpus)
    with pytest.raises(MachineError) as caught:
        check_room(nodes, cores=cores, gpus=gpus)
    assert str(caught.value) == said


def test_without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MachineError) as caught:
        execute_on_ray([], [], tmp_path / "folder", lambda _: None)
    assert str(caught.value) == "--engine ray needs Ray (pip install 'fuse-mllm[ray]')"
