"""Merges on a small file system of their own that another program fills meanwhile.

`unshare -Urm python -m tests.faults.full_disk SCENE` prints {"broken": [...], "ended": [[exit code, what is left], ...]};
it exits with 77 where nothing can be mounted.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.faults import harness
from tests.faults.scene import open_scene
from tests.faults.trial import broken, trial

SIZE = 80 << 20  # bytes: a merge begins only where it sees some room


def main(folder: Path) -> int:
    scene, disk = open_scene(folder), folder / "disk"
    disk.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(disk)], check=False)
    if mounted.returncode:
        return 77
    trials = []
    for place in ("mkdir:2", "write:1", "open:2", "open:3", "open:4", "open:5", "open:6", "open:9"):
        shutil.rmtree(disk / "root", ignore_errors=True)
        (disk / "full").unlink(missing_ok=True)
        (disk / "root").mkdir()
        fault = f"change:{place}:fill={disk}/full"
        trials.append(trial(scene, disk / "root", fault, repeat=False))
        (disk / "full").unlink(missing_ok=True)
        trials.append(trial(scene, disk / "root"))
    harness.stop()
    sys.stdout.write(json.dumps({"broken": broken(trials), "ended": [(t.ran.code, t.left) for t in trials[::2]]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
