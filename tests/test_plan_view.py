"""What `fuse plan` shows: a tree of members, a table of parts, verdicts, licences, cost; plain and in a terminal."""

import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fuse.plan import Plan
from fuse.plan_view import plan_text
from fuse.plan_view.seconds import seconds_of
from fuse.plan_view.terminal import show_plan
from fuse.plan_view.uses import uses_of
from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe
from fuse.visual_tokens import DEFAULT_SIZE, cost_of
from tests.cli import fuse_here

ZOO = Path(__file__).parent.parent / "recipes" / "zoo"
PLAN = """\
members
  base: base  [llama, 39 tensors, 1.4 MB]
    language: 39 the base of task_arithmetic
  hue: hue  [llava, 98 tensors, 1.9 MB]  (host)
    language: 39 merged (task_arithmetic)
    projector: 4 copied
    encoder: 55 copied
  expert: expert  [llama, 39 tensors, 1.4 MB]
    language: 39 merged (task_arithmetic)
verdicts
  = same architecture: llama, 4 layers, hidden 128, 4/4 heads
  = output head: of its own in every member
  = tokens: 70 tokens, the same ids in every member
  = dtype: BF16
  = chat template: the same wherever there is one
licences
  base, hue, expert: apache-2.0 (its notices are kept)
  = the output's card says apache-2.0, as every parent does
tensors (98)
  part       tensors  parameters     bytes  what becomes of it
  language        39     681,088    1.4 MB  task_arithmetic of hue + expert over base [weights 0.5/1]: language_model.*
  projector        4      28,928   57.9 kB  copy from hue: multi_modal_projector.*
  encoder         55     244,224  488.4 kB  copy from hue: vision_tower.*
cost
  read 4.6 MB, write 1.9 MB in 1 file, tensors in memory up to 786.4 kB; free disk here FREE
  time at least 2.2 s on CORES, if the disk gives RATE/s (seconds of a core for a GB, by docs/benchmarks.md: 0.95 for sha256, 0.5 for task_arithmetic)
"""


def plan_of(name: str) -> Plan:
    return make_plan(load_recipe(ZOO / name))


def settled(text: str) -> str:
    """Without what is this machine's own."""
    import re

    text = re.sub(r"free disk here [\d.]+ .B", "free disk here FREE", text)
    text = re.sub(r"on \d+ cores?", "on CORES", text)
    return re.sub(r"gives [\d.]+ .B/s", "gives RATE/s", text)


def test_the_whole_page() -> None:
    assert settled(fuse_here("plan", ZOO / "with_expert.yaml").out) == PLAN


def test_a_part_that_is_treated_in_two_ways() -> None:
    text = plan_text(plan_of("visionfuse.yaml"))
    for line in (
        "  language        39     681,088    1.4 MB",
        "                   2      24,576   49.2 kB  task_arithmetic of hue + form over base [weights 0.5/0.5] (70 of 96 rows "
        "matched by token, the others are hue's): language_model.lm_head.weight, language_model.model.embed_tokens.weight",
        "                  55     267,936  535.9 kB  copy from form: branches.form.vision_tower.*",
    ):
        assert line in text.splitlines(), text


def test_json_has_the_same_facts() -> None:
    told = json.loads(fuse_here("plan", ZOO / "with_memory.yaml", "--json").out)
    text = plan_text(plan_of("with_memory.yaml"))
    for member in told["members"]:
        for line in member["becomes"]:
            assert f"\n    {line}\n" in text
    for part in told["parts"]:
        assert f" {part['tensors']}  " in text and f" {part['parameters']:,}  " in text
        assert part["tensors"] == sum(group["tensors"] for group in part["treatments"])
        assert part["bytes"] == sum(group["bytes"] for group in part["treatments"])
        for group in part["treatments"]:
            assert f"  {group['what']}: " in text
    assert sum(part["bytes"] for part in told["parts"]) == told["cost"]["write"]
    assert told["licences"]["strictest"] == "apache-2.0" and not told["licences"]["agreed"]
    assert f"time at least {told['cost']['seconds']} s on {told['cost']['cores']} core" in text


def test_members_account_for_their_tensors() -> None:
    """What becomes of a member's tensors adds up to all that it has."""
    for name in ("visionfuse.yaml", "with_memory.yaml", "with_expert.yaml"):
        plan = plan_of(name)
        uses = uses_of(plan)
        for member in plan.members:
            numbers = [
                int(word) for line in uses[member.name] for word in line.replace(",", " ").split() if word.isdecimal()
            ]
            assert sum(numbers) == len(member.checkpoint.tensors), (name, uses)


# what docs/benchmarks.md measured at 1B on two cores with sha256: GB read, GB written, seconds
MEASURED = {"linear": (4, 2, 7.4), "task_arithmetic": (6, 2, 8.6), "slerp": (4, 2, 9.7), "model_stock": (6, 2, 10.7),
            "ties": (6, 2, 15.0), "dare_ties": (6, 2, 10.8), "della": (6, 2, 19.5)}  # fmt: skip


@pytest.mark.parametrize("method", MEASURED)
def test_the_time_is_what_was_measured(method: str) -> None:
    """At least as long as told, and at most a quarter longer."""
    read, written, seconds = MEASURED[method]
    plan = plan_of("with_expert.yaml")
    row = next(row for row in plan.rows if row.action == "merge" and row.base)
    big = replace(row.sources[0].tensor, shape=(10**9,), begin=0, end=2 * 10**9)
    sources = tuple(replace(row.sources[i % 2], member=f"m{i}", tensor=big) for i in range(read // 2))
    one = replace(row, method=method, shape=(10**9,), sources=sources, base=None)
    found = seconds_of(replace(plan, rows=(one,)), cores=2)
    assert plan.rows[0].dtype == "BF16" and written == 2
    assert found.at_least <= seconds <= 1.31 * found.at_least, found


def test_a_method_without_a_rate_is_named() -> None:
    plan = plan_of("with_expert.yaml")
    rows = tuple(replace(row, method="wudi") if row.action == "merge" else row for row in plan.rows)
    assert seconds_of(replace(plan, rows=rows)).unknown == ("wudi",)
    assert "); no rate is known for wudi\n" in plan_text(replace(plan, rows=tuple(
        replace(row, parameters={}) for row in rows))) + "\n"  # fmt: skip


def shown(plan: Plan, width: int) -> list[str]:
    out = io.StringIO()
    show_plan(plan, cost=cost_of(plan, DEFAULT_SIZE), console=Console(file=out, width=width, force_terminal=True,
                                                                     color_system=None))  # fmt: skip
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_terminal_says_the_same(width: int) -> None:
    """Word for word but for the tree's lines, whatever is broken into several lines."""
    plan = plan_of("with_memory.yaml")
    lines = shown(plan, width)
    assert all(len(line) <= width for line in lines)
    words = " ".join(" ".join(lines).replace("─", "").replace("│", "").replace("├", "").replace("└", "").split())
    for line in settled(plan_text(plan, cost=cost_of(plan, DEFAULT_SIZE))).splitlines():
        if "FREE" in line or "RATE" in line or " parameters " in line:
            continue
        for word in line.split():
            assert word in words.replace(" ", "") or word in words, (word, lines)
    assert any(line.startswith("└── grafts.memory: memory/mixture") for line in lines)


def test_tensor_names_drive_no_terminal() -> None:
    plan = plan_of("with_expert.yaml")
    row = replace(plan.rows[0], name="a\x1b[31m.b", note="[bold]x[/bold]", action="copy")
    for text in (plan_text(replace(plan, rows=(row,))), "\n".join(shown(replace(plan, rows=(row,)), 200))):
        assert "\x1b[31m" not in text and "a\\x1b[31m.b" in text and "[bold]x[/bold]" in text


@pytest.mark.parametrize(("given", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colors_only_where_they_are_wanted(given: dict[str, str], colored: bool) -> None:
    plain = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "COLUMNS"}}
    pid, terminal = pty.fork()
    if pid == 0:
        arguments = [sys.executable, "-m", "fuse", "plan", str(ZOO / "with_expert.yaml")]
        os.execve(sys.executable, arguments, {**plain, "TERM": "xterm", "PYTHONPATH": str(ZOO.parent.parent), **given})
    out = b""
    while True:
        try:
            out += (more := os.read(terminal, 65536))
        except OSError:
            break
        if not more:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert (b"\x1b[" in out) == colored and ("├── ".encode() in out) == colored


def test_no_rich_without_a_terminal() -> None:
    code = (
        "import sys\nfrom fuse.cli import cli\n"
        f"cli.main(['plan', {str(ZOO / 'visionfuse.yaml')!r}], standalone_mode=False)\n"
        "assert not {'rich', 'torch', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
