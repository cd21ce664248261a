"""Every fault at full size, every hostile input, 100,000 fuzzed files, for docs/reliability.md.

    python tools/soak.py                         # all of it, into docs/reliability.json and docs/reliability.md
    python tools/soak.py --only kills --kills 500
    python tools/soak.py --json /tmp/soak.json   # elsewhere

A group that is run replaces what the JSON said of it; the others stay. Exit code 1 where a promise was broken; what and
how stands in the JSON.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import reliability_report
import soak_groups

from tests.faults import harness
from tests.faults.scene import Scene, in_memory, make_scene
from tests.faults.trial import LOST, OTHER, PARTIAL_OUTPUT, TRACEBACK, Trial, broken

ROOT = Path(__file__).parents[1]
LARGE = {"hidden": 512, "layers": 4, "size": "4MB"}  # of the merges that are killed at any moment: 9 files, 33 MB
MOST_TOLD = 20  # broken promises of a group that are quoted
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]


def machine() -> dict[str, Any]:
    """What ran it."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    packages = ("torch", "transformers", "safetensors", "hypothesis")
    return {
        "processor": model or platform.processor(), "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "system": platform.platform(),
        "python": platform.python_version(), "packages": {name: importlib.metadata.version(name) for name in packages},
    }  # fmt: skip


def tree() -> dict[str, str]:
    """Which code it was, and when."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "fuse"], capture_output=True, text=True, check=False)
    told = (commit.stdout.strip() or "no commit") + (" with changes" if changed.stdout.strip() else "")
    return {"tree": told, "date": time.strftime("%Y-%m-%d", time.gmtime())}


def of_trials(trials: Iterable[Trial]) -> dict[str, Any]:
    """One row of the table."""
    tried = list(trials)
    outcomes = Counter(_ended(one) for one in tried)
    wrong = Counter(kind for one in tried for kind, _ in one.wrong)
    again = [one.again for one in tried if one.again and not one.left.startswith("whole")]
    return {
        "tried": len(tried), "outcomes": dict(sorted(outcomes.items())),
        "again": len(again), "again_whole": sum(one.code == 0 for one in again),
        "files_kept": sum(one.kept for one in tried if one.left.split(",")[0] != "whole"),
        "slowest_stop_s": round(max((one.ran.took for one in tried), default=0.0), 2),
        "tracebacks": wrong[TRACEBACK], "partial_for_whole": wrong[PARTIAL_OUTPUT], "lost": wrong[LOST],
        "other": wrong[OTHER], "told": broken(tried)[:MOST_TOLD],
    }  # fmt: skip


def _ended(one: Trial) -> str:
    ways = {0: "went through", 130: "interrupted", 143: "interrupted", 2: "refused", 3: "refused", 4: "refused"}
    way = "killed" if one.ran.code < 0 else ways.get(one.ran.code, f"exit {one.ran.code}")
    return f"{way}, {one.left.split(',')[0].replace('whole', 'output whole').replace('old', 'older output untouched')}"


def of_tests(*paths: str) -> dict[str, Any]:
    """A row of pytest's cases."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "junit.xml"
        subprocess.run([*PYTEST, *paths, f"--junitxml={file}"], cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
        cases = list(ET.parse(file).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    said = ["".join(part.itertext()) for case in failed for part in case]
    outcomes = {"as demanded": len(cases) - len(failed) - len(skipped), "failed": len(failed), "skipped": len(skipped)}
    return {
        "tried": len(cases) - len(skipped), "outcomes": {key: count for key, count in outcomes.items() if count},
        "tracebacks": sum("Traceback" in text for text in said), "partial_for_whole": 0, "lost": 0,
        "other": len(failed), "told": [f"{case.get('classname')}::{case.get('name')}" for case in failed][:MOST_TOLD],
    }  # fmt: skip


def of_fuzz(inputs: int) -> dict[str, Any]:
    """A row of tools/fuzz.py."""
    ran = subprocess.run(
        [sys.executable, "tools/fuzz.py", "--inputs", str(inputs)], cwd=ROOT, check=False, stdout=subprocess.PIPE
    )
    told = json.loads(ran.stdout)
    by = Counter()
    for one in told["readers"].values():
        by += Counter({key: one.get(key, 0) for key in ("value", "refused")})
    return {
        "tried": told["inputs"], "outcomes": {"read, and the oracle agrees": by["value"], "refused": by["refused"]},
        "readers": told["readers"], "tracebacks": len(told["crashes"]), "partial_for_whole": 0, "lost": 0, "other": 0,
        "told": told["crashes"][:MOST_TOLD],
    }  # fmt: skip


def rows(chosen: argparse.Namespace, folders: Mapping[str, Path]) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name of a group -> what runs it."""
    made: dict[str, Scene] = {}

    def scene(name: str) -> Scene:
        if name not in made:
            made[name] = make_scene(folders[name] / name, **(LARGE if name == "large" else {}))
        return made[name]

    found: dict[str, Callable[[], dict[str, Any]]] = {
        name: lambda run=run: of_trials(run(scene("small"))) for name, run in soak_groups.GROUPS.items()
    }
    found["kills"] = lambda: of_trials(soak_groups.random_kills(scene("large"), chosen.kills, fresh=False))
    found["kills_fresh"] = lambda: of_trials(soak_groups.random_kills(scene("large"), chosen.kills // 5, fresh=True))
    found["surroundings"] = lambda: of_tests("tests/faults/test_surroundings.py", "tests/faults/test_disk.py")
    found["attacks"] = lambda: of_tests("tests/attacks")
    found["fuzz"] = lambda: of_fuzz(chosen.inputs)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", action="append", help="a group, as often as wanted")
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--inputs", type=int, default=100_000)
    options.add_argument("--json", type=Path, default=ROOT / "docs" / "reliability.json")
    chosen = options.parse_args()
    from fuse import torchvision_shim

    torchvision_shim.install()
    told = json.loads(chosen.json.read_text()) if chosen.json.exists() else {"groups": {}}
    with tempfile.TemporaryDirectory(prefix="soak") as disk, in_memory() as memory:
        for name, run in rows(chosen, {"large": Path(disk), "small": memory}).items():
            if chosen.only and name not in chosen.only:
                continue
            began = time.monotonic()
            row = run()
            told["groups"][name] = row | {"seconds": round(time.monotonic() - began), **tree()}
            told["machine"] = machine()
            bad = sum(row[key] for key in reliability_report.BROKEN)
            sys.stderr.write(f"{name}: {row['tried']:,} tried, {bad} broken, {time.monotonic() - began:.0f} s\n")
            chosen.json.write_text(json.dumps(told, indent=1) + "\n")
        harness.stop()
    chosen.json.with_suffix(".md").write_text(reliability_report.page(told))
    return int(any(row[key] for row in told["groups"].values() for key in reliability_report.BROKEN))


if __name__ == "__main__":
    sys.exit(main())
