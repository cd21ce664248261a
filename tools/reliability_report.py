"""docs/reliability.md, from what tools/soak.py found.

python tools/reliability_report.py docs/reliability.json > docs/reliability.md
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BROKEN = ("tracebacks", "partial_for_whole", "lost", "other")
# group -> what was done, in words
WORDS = {
    "killed": "`kill -9` before every call that changes a file",
    "torn": "`kill -9` after half of a write, every write",
    "cut": "power cut before every call: what no fsync has promised is lost",
    "again": "killed up to six times in a row, gone on with each time",
    "kills": "`kill -9` at any moment, 33 MB in 9 files",
    "kills_fresh": "the same, `python -m fuse` from its start",
    "stopped": "stopped for a while by SIGSTOP",
    "interrupted": "Ctrl-C, SIGTERM or SIGHUP at every call",
    "locks": "the same right after every lock of Python's threads that the main thread takes",
    "failing": "disk full, quota or I/O error at every call, once",
    "full": "disk full from every call on",
    "file_size": "files may not grow beyond a size (RLIMIT_FSIZE)",
    "memory": "little memory (RLIMIT_AS)",
    "open_files": "few open files (RLIMIT_NOFILE)",
    "inputs": "a member's weights change, shrink or vanish while they are read",
    "imports": "`fuse import`: the process that unpickles killed at every line, the command as above",
    "surroundings": "a full or read-only file system, closed pipes, masks, no terminal, `python -O`, two at once",
    "attacks": "hostile recipes, headers, configs, tokenizers, templates, images, archives",
    "fuzz": "fuzzed headers, indexes, recipes, configs and tokenizers",
}
HEAD = """# Reliability

What was done to `fuse`, and what came of it. `make soak` does it all and writes this page.

- [What was tried](#what-was-tried)
- [How](#how)
- [What this does not show](#what-this-does-not-show)

## What was tried

"""
HOW = """
*Broken* counts four things: a Python traceback instead of a sentence; a target folder that is neither absent, nor the
older output, nor the new one byte for byte; an older output or an input that is lost or changed; anything else that is
not as promised, such as a file left beside the output, a sentence that is not true, or a finished file that was written
once more.

## How

- A merge of three small Llamas in three files is watched: every call that changes a file, from `mkdir` to the last
  `rmdir`, is a place for a fault. `tests/faults/site` puts itself between Python and the system; `fuse` has no part in
  it. Each fault is tried on a new output and on one that replaces an older one.
- After each fault the target is compared with the output of an unbroken merge, file by file, by sha256. Then the same
  command runs again without a fault: its output must be the same, byte for byte, nothing may lie beside it, and files
  that the journal called finished must be the very same files, by inode and time.
- A power cut is played by hand: files written since their last fsync become empty or full of zeros, and entries of
  folders made since the folder's last fsync disappear, the last first. File systems mostly lose less.
- Commands run in forked children of a process that has imported everything, where not said otherwise.
- Hostile inputs are rows of tables in `tests/attacks`: exit code, the one sentence word for word, time, memory, and
  nothing left behind.
- Fuzzed inputs (`tools/fuzz.py`) are read, and an oracle confirms the value, or they are refused with a sentence.

## What this does not show

- Disks that lie about fsync, and file systems other than the one it ran on.
- A broken input disk: a page that cannot be read ends the process by a signal; the output is then as after `kill -9`.
  So does an input that another program makes shorter in the very moment it is read.
- Calls that libraries make by themselves, past Python. Small files are written whole by one call each.
"""


def page(told: Mapping[str, Any]) -> str:
    """The whole page. told: what tools/soak.py wrote."""
    groups = [name for name in WORDS if name in told["groups"]]
    lines = [
        "| what was done | tried | what came of it | finished by the same command | broken |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(WORDS[name], told["groups"][name]) for name in groups]
    sums = {key: sum(told["groups"][name][key] for name in groups) for key in BROKEN}
    total = sum(told["groups"][name]["tried"] for name in groups)
    lines += [
        "",
        f"{total:,} in all: {sums['tracebacks']} tracebacks, {sums['partial_for_whole']} partial outputs taken for "
        f"whole ones, {sums['lost']} outputs or inputs lost, {sums['other']} other promises broken.",
    ]
    if slow := told["groups"].get("interrupted", {}).get("slowest_stop_s"):
        lines += [f"From a signal to the end of the process it took at most {slow} s."]
    return HEAD + "\n".join(lines) + "\n\n" + _machine(told) + _trees(told) + HOW


def _row(words: str, row: Mapping[str, Any]) -> str:
    outcomes = "; ".join(f"{key} {count:,}" for key, count in row["outcomes"].items())
    kept = f", {row['files_kept']:,} finished files kept" if row.get("files_kept") else ""
    again = f"{row['again_whole']:,} of {row['again']:,}{kept}" if row.get("again") else ""
    return f"| {words} | {row['tried']:,} | {outcomes} | {again} | {sum(row[key] for key in BROKEN)} |"


def _machine(told: Mapping[str, Any]) -> str:
    one, minutes = told["machine"], sum(row["seconds"] for row in told["groups"].values()) / 60
    return (
        f"{minutes:.0f} minutes on {one['cores']} cores ({one['processor']}, {one['memory'] / 2**30:.0f} GiB), Python "
        f"{one['python']}, torch {one['packages']['torch']}.\n"
    )


def _trees(told: Mapping[str, Any]) -> str:
    """Which rows are of which code, where that was noted."""
    found: dict[str, list[str]] = {}
    for name in WORDS:
        row = told["groups"].get(name, {})
        if "tree" in row:
            found.setdefault(f"{row['date']}, at {row['tree']}", []).append(f"`{name}`")
    if not found:
        return ""
    rest = any(name in told["groups"] and "tree" not in told["groups"][name] for name in WORDS)
    lines = [f"- {when}: {', '.join(names)}" for when, names in found.items()]
    ending = ["- the others earlier, each once"] if rest else []
    return "\n".join(["", "Groups of `tools/soak.py`, by the code that they last ran on:", "", *lines, *ending, ""])


def main() -> int:
    sys.stdout.write(page(json.loads(Path(sys.argv[1]).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
