"""What plan, merge and verify do to the system, as Python's audit events tell it: reads and writes where they belong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ZOO = Path(__file__).parents[2] / "recipes" / "zoo"
AUDITED = Path(__file__).parent / "audited.py"
NATIVE = """
base: ../members/base
members: {hue: ../members/hue, expert: ../members/expert}
language: {method: ties, weights: {hue: 0.5, expert: 1.0}, density: 0.5}
vision: [hue]
"""
FUSED = """
base: ../members/base
members: {form: ../members/form, hue: ../members/hue}
language: {method: task_arithmetic, weights: {form: 0.5, hue: 0.5}}
vision:
  - form
  - {name: lent, encoder: ../members/memory/eyes, projector: ../members/memory/linear.safetensors}
grafts:
  - {from: ../members/memory/mixture, name: memory}
"""


class Runs:
    """A pickle of it would make a folder as it is loaded."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.made),)


def audited(work: Path, *given: str) -> Any:
    (work / "cwd").mkdir(exist_ok=True)
    env = {
        **os.environ, "HOME": str(work / "home"), "TMPDIR": str(work / "temp"), "XDG_CACHE_HOME": str(work / "cache"),
        "HF_HOME": str(work / "hub"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    env.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it where it was used
    done = subprocess.run(
        [sys.executable, *given], cwd=work / "cwd", env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members with code beside their weights: a module that config.json names, and a pickle that would run."""
    folder = tmp_path_factory.mktemp("audited").resolve()
    for name in ("made", "recipes", "home", "temp", "cwd"):
        (folder / name).mkdir()
    for name in ("base", "expert", "hue", "form", "memory"):
        shutil.copytree(ZOO / name, folder / "members" / name)
    (folder / "recipes" / "native.yaml").write_text(NATIVE)
    (folder / "recipes" / "fused.yaml").write_text(FUSED)
    for name in ("hue", "form", "expert"):
        member = folder / "members" / name
        config = json.loads((member / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
        (member / "config.json").write_text(json.dumps(config))
        (member / "evil.py").write_text(f"import os; os.mkdir({str(folder / 'made_by_a_module')!r})")
        torch.save({"x": Runs(folder / "made_by_a_pickle")}, member / "pytorch_model.bin")
    return folder


def test_plan_merge_and_verify_stay_where_they_belong(work: Path) -> None:
    """No pickle but numba's of fuse's own kernels, no connection, no process, no file elsewhere, for any of them."""
    made = {name: str(work / "made" / name) for name in ("native", "fused")}
    commands = [
        command for name in made for recipe in [str(work / "recipes" / f"{name}.yaml")]
        for command in (["plan", recipe], ["merge", recipe, made[name]], ["verify", made[name]])
    ]  # fmt: skip
    told = audited(work, str(AUDITED), str(work), json.dumps(commands))
    for one in told:
        assert (one["command"], one["code"], one["broken"]) == (one["command"], 0, [])
        assert one["looked"] > 20  # the hook was there
    assert [one["command"] for one in told] == ["plan", "merge", "verify"] * 2
    assert sorted(path.name for path in (work / "made").iterdir()) == ["fused", "native"]
    assert {path.name for path in (work / "cache").glob("*")} <= {"fuse"}
    assert not any(path.is_file() for path in (work / "temp").rglob("*"))
    assert sorted(path.name for path in work.iterdir() if path.name.startswith("made_")) == []
    for folder in made.values():
        assert not list(Path(folder).rglob("*.py")) and "auto_map" not in (Path(folder) / "config.json").read_text()


ACTS = {
    "open('/etc/hostname').close()": "open reads /etc/hostname",
    "os.listdir('/etc')": "os.listdir reads /etc",
    "open(WORK / 'cwd' / 'x', 'w').close()": "open writes WORK/cwd/x",
    "os.mkdir(WORK / 'members' / 'x')": "os.mkdir writes WORK/members/x",
    "os.rename(WORK / 'members' / 'x', WORK / 'made' / 'x')": "os.rename writes WORK/members/x",
    "os.open(WORK / 'members' / 'y', os.O_RDWR | os.O_CREAT)": "open writes WORK/members/y",
    "os.system('true')": "os.system (b'true',)",
    "subprocess.run(['true'])": "subprocess.Popen ('true', ['true'])",
    "pickle.loads(pickle.dumps(WORK))": "pickle.find_class ('pathlib', 'PosixPath')",
    "socket.socket().connect_ex(('127.0.0.1', 9))": "socket.connect (",
    "os._exit(0) if os.fork() == 0 else os.wait()": "os.fork ()",
    "torch.load(io.BytesIO(TENSOR), weights_only=False)": "pickle.find_class (",
}


def test_the_hook_sees(work: Path) -> None:
    """Each of these acts is told, so that none of them was done above."""
    script = (
        f"import io, json, os, pickle, runpy, socket, subprocess, sys, torch\n"
        f"sys.argv = ['audited', {str(work)!r}]; named = runpy.run_path({str(AUDITED)!r}, run_name='audited')\n"
        "WORK, broken, told = named['WORK'], named['broken'], []\n"
        "held = io.BytesIO(); torch.save({'a': torch.ones(1)}, held); TENSOR = held.getvalue()\n"
        "sys.addaudithook(named['hook'])\n"
        f"for act in {list(ACTS)!r}:\n broken.clear(); exec(act); told.append(list(broken))\n"
        "print(json.dumps(told))\n"
    )
    for (act, expected), told in zip(ACTS.items(), audited(work, "-c", script), strict=True):
        assert any(line.startswith(expected.replace("WORK", str(work))) for line in told), (act, told)
