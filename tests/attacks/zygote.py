"""Runs the real command line in forked children, so that a case does not pay for imports again.

`python -m tests.attacks.zygote [MODULE ...]` imports the modules, or else AHEAD, reads one JSON object a line, {argv, cwd,
env, limits, wall}, and answers each with one {code, out, err, seconds, cpu, peak}. It starts no thread, so that a fork of
it is a whole process.
"""

import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import weakref
from typing import Any

# what the verbs import before they say anything about their input
AHEAD = """
torch transformers transformers.models.auto safetensors.torch PIL.Image jinja2.sandbox ruamel.yaml pydantic
huggingface_hub fuse.cli fuse.merge fuse.planner fuse.plan_view fuse.card fuse.sidecars fuse.output fuse.recipe_yaml
fuse.engine.execute fuse.progress fuse.visual_tokens fuse.ask fuse.commands.merge fuse.commands.plan
fuse.commands.inspect fuse.commands.ask fuse.commands.import_ fuse.commands.eval fuse.commands.search fuse.ask_folder
fuse.model.fused fuse.model.processor fuse.workers fuse.hub fuse.stores.hub fuse.stores.members fuse.families.text.llama
jinja2.debug transformers.models.llama.modeling_llama transformers.generation.streamers
"""
# a bomb that bursts takes no more of the machine than this
LIMITS = {"DATA": 6 << 30, "CPU": 30}


def main() -> None:
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    from fuse import torchvision_shim

    torchvision_shim.install()
    for name in sys.argv[1:] or AHEAD.split():
        importlib.import_module(name)
    _leave_operators()
    # a table that the first model to be loaded makes, for all there are
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        told.write(json.dumps(_run(**json.loads(line))) + "\n")
        told.flush()


def _leave_operators() -> None:
    """As a child ends it need not take torch's operators apart, which costs it more than most cases do."""
    for one in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        if (alive := one.peek()) and alive[1].__module__ == "torch.library":
            one.atexit = False


def _run(argv: list[str], cwd: str, env: dict[str, str], limits: dict[str, int], wall: float) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        child = os.fork()
        if not child:
            _child(argv, cwd, env, limits, out.fileno(), err.fileno())
        status, usage = _wait(child, began + wall)
        seconds = time.monotonic() - began
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "backslashreplace"))
    return {
        "code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1], "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss << 10,
    }  # fmt: skip


def _hub_settings() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith("HF_")}


def _wait(child: int, until: float) -> tuple[int, resource.struct_rusage]:
    """How the child ended; it is killed, with what it started, when the time is over."""
    handle = os.pidfd_open(child)
    if not select.select([handle], [], [], max(0, until - time.monotonic()))[0]:
        os.killpg(child, signal.SIGKILL)
    os.close(handle)
    _, status, usage = os.wait4(child, 0)
    return status, usage


def _child(argv: list[str], cwd: str, env: dict[str, str], limits: dict[str, int], out: int, err: int) -> None:
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        for to, handle in enumerate((null, out, err)):
            os.dup2(handle, to)
        for name, value in {**LIMITS, **limits}.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        os.chdir(cwd)
        hub = _hub_settings()
        os.environ.clear()
        os.environ.update(env)
        if _hub_settings() != hub:  # which that library reads as it is imported
            importlib.reload(importlib.import_module("huggingface_hub.constants"))
        sys.argv = ["fuse", *argv]
        sys.stdin = os.fdopen(0)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
        from fuse.cli import run

        run()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:  # whatever happens, the child never goes on as the zygote
        os._exit(70)


if __name__ == "__main__":
    main()
