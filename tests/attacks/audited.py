"""Run commands of `fuse` in this process under an audit hook: `audited.py WORK COMMANDS` prints what was not allowed.

WORK: the folder that the commands know; members lie in WORK/members, outputs in WORK/made. COMMANDS: a JSON list of
argument lists. On stdout: a JSON list, for each command its exit code, how many events were looked at, and what broke a
rule. Python's audit events are those of Python: files that a library's C code opens are not among them.
"""

import json
import os
import re
import site
import sys
import sysconfig
from pathlib import Path
from typing import Any

WORK = Path(sys.argv[1]).resolve()
HERE = (Path(__file__).parents[2] / "fuse", __file__)
NEVER = {
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "subprocess.Popen",
    "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "pty.spawn",
}  # fmt: skip
PYTHON = tuple({
    form for place in (
        sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *site.getsitepackages(), *HERE,
    ) for form in (str(place), str(Path(place).resolve()))
})  # fmt: skip
CACHE, TEMP = str(WORK / "cache" / "fuse"), str(WORK / "temp")
READ = (*PYTHON, CACHE, str(WORK / "members"), str(WORK / "made"), str(WORK / "recipes"))
WRITTEN = (CACHE, str(WORK / "made"))
# what the interpreter and the libraries ask of the system: threads, memory, cores, disks, random numbers; which boot the
# lock of an output is of
SYSTEM = ("/dev/null", "/dev/urandom", "/proc/self/", "/proc/cpuinfo", "/proc/meminfo", "/proc/mounts", "/proc/stat",
          "/proc/sys/kernel/random/boot_id", "/sys/devices/system/cpu")  # fmt: skip
# tempfile tries whether it may write there, and torch makes an empty folder
TRIED = re.compile(re.escape(TEMP) + r"/([a-z0-9_]{8}|torchinductor_\w+)")
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate",
           "os.utime", "shutil.rmtree", "shutil.copyfile", "shutil.move", "shutil.copymode", "shutil.copystat"}  # fmt: skip
LISTS = {"os.listdir", "os.scandir"}
LOOKED_THROUGH = {os.path.abspath(place) for place in sys.path}  # noqa: PTH100 - for modules

broken: list[str] = []
looked = 0


def hook(event: str, given: tuple[Any, ...]) -> None:
    global looked  # noqa: PLW0603
    if event == "open":
        looked += 1
        path, mode, flags = given
        writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        )
        judge(event, path, bool(writes))
    elif event in LISTS:
        judge(event, given[0], False)
    elif event in CHANGES:
        judge(event, given[0], not event.startswith("shutil.copy"))
        if event in {"os.rename", "os.link", "os.symlink"} or event.startswith(("shutil.copy", "shutil.move")):
            judge(event, given[1], True)
    elif event in NEVER or (event == "pickle.find_class" and not of_numba()):
        broken.append(f"{event} {given[:2]!r}")


def judge(event: str, path: Any, writes: bool) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return  # a descriptor that was opened before
    name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - a hook opens nothing
    if (event in LISTS and name in LOOKED_THROUGH) or TRIED.fullmatch(name):
        return
    allowed = WRITTEN if writes else READ
    if any(name == place or name.startswith(place + "/") for place in allowed):
        return
    if not (name.startswith(SYSTEM) and not (writes and name != "/dev/null")):
        broken.append(f"{event} {'writes' if writes else 'reads'} {name}")


def of_numba() -> bool:
    """numba keeps what it compiled of fuse's own kernels in pickles, in a folder that only this user may write."""
    frame = sys._getframe(2)
    while frame := frame.f_back:
        if frame.f_globals.get("__name__") in {"numba.core.caching", "numba.core.serialize"}:
            return True
    return False


def run(arguments: list[str]) -> dict[str, Any]:
    global looked  # noqa: PLW0603
    broken.clear()
    looked = 0
    from fuse.cli import main

    sys.argv = ["fuse", *arguments]
    stdout, sys.stdout = sys.stdout, sys.stderr
    code: Any = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.stdout = stdout
    return {"command": arguments[0], "code": code, "looked": looked, "broken": sorted(set(broken))}


if __name__ == "__main__":
    sys.addaudithook(hook)
    told = [run(arguments) for arguments in json.loads(sys.argv[2])]
    sys.stdout.write(json.dumps(told))
