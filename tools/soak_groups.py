"""The faults of tools/soak.py, all of each kind."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator

from tests.faults.harness import command, forked_size, kill_after
from tests.faults.import_scene import make_import
from tests.faults.scene import Scene
from tests.faults.table import LOCKS, Faults, at_locks, cut, failing, full_from, interrupted, killed, moments, torn
from tests.faults.test_inputs import WEIGHTS, changed
from tests.faults.trial import Trial, sweep, trial


def at_every_call(faults: Faults, telling: str = "") -> Callable[[Scene], Iterator[Trial]]:
    """Of a new output, and of one that replaces an older one. telling: a fault that tells more steps."""

    def run(scene: Scene) -> Iterator[Trial]:
        for force in (False, True):
            steps = command(scene.words(force), scene.root("steps", force=force), fault=telling).steps
            yield from sweep(scene, "soak", faults(steps), force=force)

    return run


def killed_again_and_again(scene: Scene) -> Iterator[Trial]:
    """Killed up to six times at random calls, gone on with each time."""
    drawn = random.Random(1)
    steps = len(command(scene.words(), scene.root("steps")).steps)
    for _ in range(25):
        root = scene.root("soak")
        for _ in range(drawn.randint(1, 5)):
            found = trial(scene, root, f"kill:any:{drawn.randint(10, steps)}", repeat=False)
            yield found
            if found.left.startswith("whole"):
                break
        else:
            yield trial(scene, root, f"kill:any:{drawn.randint(10, steps)}")


def little_memory(scene: Scene) -> Iterator[Trial]:
    for more in range(0, 1000, 25):
        yield trial(scene, scene.root("soak"), limits={"AS": forked_size() + (more << 20)})


def few_files(scene: Scene) -> Iterator[Trial]:
    for count in range(6, 30):
        yield trial(scene, scene.root("soak"), limits={"NOFILE": count})


def small_files_only(scene: Scene) -> Iterator[Trial]:
    for size in (100, 500, 1000, 2000, 5000, 20_000, 30_000, 37_000, 39_000, 40_000):
        yield trial(scene, scene.root("soak"), limits={"FSIZE": size})


def changed_inputs(scene: Scene) -> Iterator[Trial]:
    steps = command(scene.words(), scene.root("steps")).steps
    for how in WEIGHTS:
        for k in range(1, len(steps), 4):
            yield changed(scene, "ab"[k % 2] + "/model.safetensors", how, f"any:{k}")


def random_kills(scene: Scene, count: int, *, fresh: bool) -> Iterator[Trial]:
    """SIGKILL by another process at moments spread over the time that an unbroken merge takes."""
    begun: list[float] = []
    command(scene.words(), scene.root("soak"), fresh=fresh, meanwhile=lambda _: begun.append(time.monotonic()))
    seconds = time.monotonic() - begun[0]
    for k, moment in enumerate(moments(count, seconds, seed=int(fresh))):
        force = k % 4 == 3
        yield trial(scene, scene.root("soak", force=force), force=force, fresh=fresh, meanwhile=kill_after(moment))


def imports(scene: Scene) -> Iterator[Trial]:
    """`fuse import`: its child killed at every line, itself killed, interrupted and failing at every call, and killed
    at moments spread over the time that it takes."""
    one = make_import(scene.folder.parent / "imports")
    lines = command(one.words(), one.root("steps"), fault="kill:child:1000000000").steps
    count = sum(line.startswith("child ") for line in lines)
    yield from sweep(one, "soak", (f"kill:child:{k}" for k in range(1, count + 1)))
    yield from sweep(one, "soak", (f"signal:child:{k}:SIGSEGV" for k in range(1, count + 1, 4)), force=True)
    for faults in (killed, interrupted, failing):
        yield from at_every_call(faults)(one)
    yield from random_kills(one, 40, fresh=False)


def stopped(scene: Scene) -> Iterator[Trial]:
    """A process that is stopped and goes on is no other."""

    def pause(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(pid, signal.SIGCONT)

    for _ in range(5):
        yield trial(scene, scene.root("soak"), meanwhile=pause)


GROUPS: dict[str, Callable[[Scene], Iterator[Trial]]] = {
    "killed": at_every_call(killed),
    "torn": at_every_call(torn),
    "cut": at_every_call(cut),
    "again": killed_again_and_again,
    "interrupted": at_every_call(interrupted),
    "locks": at_every_call(at_locks, LOCKS),
    "failing": at_every_call(failing),
    "full": at_every_call(full_from),
    "file_size": small_files_only,
    "memory": little_memory,
    "open_files": few_files,
    "inputs": changed_inputs,
    "imports": imports,
    "stopped": stopped,
}
