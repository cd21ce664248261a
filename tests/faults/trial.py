"""One merge with one fault, what it left, and the same command once more: nothing may be lost, or half there."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.harness import WALL, Ran, command, digests
from tests.faults.scene import Scene

OUT, PARTIAL = "out", ".out.partial"
# what can go wrong, as the table of docs/reliability.md counts it
TRACEBACK, PARTIAL_OUTPUT, LOST, OTHER = "traceback", "partial output taken for whole", "bytes lost", "other"


@dataclass
class Trial:
    """ran: with the fault. left: what it left, in words. again: the same command without it. wrong: (kind, words)."""

    fault: str
    ran: Ran
    left: str = ""
    again: Ran | None = None
    kept: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)

    def demand(self, holds: bool, kind: str, words: str) -> None:
        if not holds:
            self.wrong.append((kind, words))


def trial(
    scene: Scene, root: Path, fault: str = "", *, force: bool = False, repeat: bool = True, **how: Any
) -> Trial:  # fmt: skip
    """Merge in `root`, made by `scene.root`, with a fault; then again without one, where `repeat`. how: of `command`."""
    before = _places(root / OUT)
    found = Trial(fault, command(scene.words(force), root, fault=fault, **how))
    _look(found, scene, root, force, before)
    if repeat:
        _again(found, scene, root, force, fresh=bool(how.get("fresh")))
    return found


def _look(found: Trial, scene: Scene, root: Path, force: bool, before: Mapping[str, Any]) -> None:
    """What the fault left, and whether the command said so."""
    found.demand("Traceback" not in found.ran.err, TRACEBACK, found.ran.err[-1500:])
    found.demand(found.ran.seconds < WALL, OTHER, "it hangs")
    found.demand(found.ran.code != 1, TRACEBACK, f"exit 1: {found.ran.err[-1500:]}")
    names = {path.name for path in root.iterdir()}
    found.demand(names <= {OUT, PARTIAL}, OTHER, f"{sorted(names)} beside the output")
    target = _target(scene, root)
    if force:
        found.demand(target != "absent", LOST, "the older output is gone and no new one is there")
        found.demand(target != "old" or _places(root / OUT) == before, LOST, "the older output was touched")
    found.demand(
        target in {"absent", "whole"} or (force and target == "old"), PARTIAL_OUTPUT, f"the target is {target}"
    )
    found.left = target + ", partial" * (PARTIAL in names)
    found.kept = len(_kept(root))
    _listen(found, target, PARTIAL in names)
    found.demand(digests(scene.folder) == scene.inputs, LOST, "an input is not what it was")


def _listen(found: Trial, target: str, partial: bool) -> None:
    """A command that was not killed says one sentence, and in it what is left."""
    if found.ran.code == 0:
        found.demand(target == "whole", PARTIAL_OUTPUT, f"exit 0, and the target is {target}")
    if found.ran.code <= 0:
        return
    try:
        said = found.ran.sentence
    except AssertionError as error:
        found.demand(False, OTHER, f"not one sentence: {error}")
        return
    if kept := re.search(r"(\d+) of \d+ files? (is|are) kept in ", said):
        found.demand(partial and int(kept[1]) == found.kept, OTHER, f"{said}, but {found.kept} are")
    elif "is whole" in said:
        found.demand(target == "whole", PARTIAL_OUTPUT, f"{said}, but the target is {target}")
    else:
        found.demand(not partial and target != "whole", OTHER, f"{said}, but there is: {found.left}")


def _again(found: Trial, scene: Scene, root: Path, force: bool, *, fresh: bool) -> None:
    """The same command must finish the output, and keep the files that were finished."""
    done = _target(scene, root) == "whole"
    kept = _kept(root)
    found.again = again = command(scene.words(force), root, fresh=fresh)
    found.demand("Traceback" not in again.err, TRACEBACK, again.err[-1500:])
    refused = done and not force and again.code == 2 and "already exists" in again.err
    found.demand(again.code == 0 or refused, OTHER, f"again: exit {again.code}, {again.err[-500:]}")
    names = {path.name for path in root.iterdir()}
    found.demand(names == {OUT}, OTHER, f"again: {sorted(names)} are there")
    target = _target(scene, root)
    found.demand(target == "whole", PARTIAL_OUTPUT if target != "absent" else LOST, f"again: the target is {target}")
    now = _places(root / OUT)
    if not done:
        for name, place in kept.items():
            found.demand(now.get(name) == place, OTHER, f"again: {name} was finished and was written once more")
        told = json.loads(again.out).get("resumed", 0) if again.code == 0 else -1
        found.demand(told >= len(kept), OTHER, f"again: says that {told} files were there, {len(kept)} were")


def _kept(root: Path) -> dict[str, list[int]]:
    """The finished files of an unfinished output, as the journal names them."""
    named = journalled(root)
    return {name: place for name, place in _places(root / PARTIAL / "folder").items() if name in named}


def journalled(root: Path) -> set[str]:
    """The finished shards that the journal names, by its whole lines."""
    try:
        text = (root / PARTIAL / "journal.jsonl").read_bytes()
    except OSError:
        return set()
    lines = [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
    return {line["shard"]["name"] for line in lines if "shard" in line}


def _target(scene: Scene, root: Path) -> str:
    if not (root / OUT).exists():
        return "absent"
    found = digests(root / OUT)
    for name, wanted in (("whole", scene.whole), ("old", scene.old)):
        if found == wanted:
            return name
    other = sorted(name for name in found.keys() | scene.whole.keys() if found.get(name) != scene.whole.get(name))
    return f"neither old nor whole: {', '.join(other)}"


def _places(folder: Path) -> dict[str, list[int]]:
    """Inode and time of change of each file."""
    if not folder.is_dir():
        return {}
    return {path.name: [path.stat().st_ino, path.stat().st_mtime_ns] for path in folder.iterdir() if path.is_file()}


def sweep(scene: Scene, name: str, faults: Iterable[str], *, force: bool = False, **how: Any) -> list[Trial]:
    """A trial for each fault, each in a fresh folder."""
    return [trial(scene, scene.root(name, force=force), fault, force=force, **how) for fault in faults]


def broken(trials: Iterable[Trial]) -> list[str]:
    """What went wrong, a line for each promise that was not kept."""
    return [f"{one.fault}: {kind}: {words}" for one in trials for kind, words in one.wrong]
