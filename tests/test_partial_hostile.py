"""What a stranger's archive may hold beside the output's place: links, journals by hand, names that are none."""

import hashlib
import json
import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fuse import journal as journals
from fuse.errors import RecipeError
from fuse.journal import JOURNAL, Journal, Shard
from fuse.partial import new_folder, partial_folder
from fuse.unfinished import home_of, settle
from tests.cli import fuse_here
from tests.members import save_family

MAKES = {"what": "merge", "plan": "abc", "device": "cpu", "inputs": {}}
IN_THE_WAY = "is in the way and fuse did not make it (remove it yourself)"
ANEW = "remove it, or fuse merge RECIPE OUT --restart, which begins anew in one process"
WHOLE = {"name": "one", "bytes": 7, "sha256": "d", "marks": "m", "synced": True}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members, a recipe, and `whole`, what comes of it."""
    root = tmp_path_factory.mktemp("family")
    save_family(root, "a", "b")
    recipe = f"members: {{a: {root}/a, b: {root}/b}}\nlanguage: {{method: linear, weights: 1}}\n"
    (root / "recipe.yaml").write_text(recipe + "output: {shard_size: 30KB}\n")
    assert fuse_here("merge", root / "recipe.yaml", root / "whole", "--quiet").code == 0
    return root


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def merged(family: Path, out: Path, *options: str) -> Any:
    return fuse_here("merge", family / "recipe.yaml", out, "--quiet", *options)


def shard_of(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"name": file.name, "bytes": file.stat().st_size, "sha256": digest, "marks": "", "synced": True}


def write_lines(home: Path, lines: list[dict[str, Any]], name: str = JOURNAL) -> None:
    (home / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def planted(family: Path, home: Path) -> list[dict[str, Any]]:
    """Files of a stranger in an unfinished output, and the lines of a journal that vouch for them."""
    (home / "folder").mkdir(parents=True)
    name = min(path.name for path in (family / "whole").glob("*.safetensors"))
    data = bytearray((family / "whole" / name).read_bytes())
    data[-3] ^= 1
    (home / "folder" / name).write_bytes(data)
    (home / "folder" / "added_tokens.json").write_text("{}")
    return [{"shard": shard_of(file)} for file in sorted((home / "folder").iterdir())]


def test_files_of_a_journal_that_does_not_say_of_what_are_never_taken(family: Path, tmp_path: Path) -> None:
    home = tmp_path / ".out.partial"
    write_lines(home, planted(family, home))
    said = f"fuse: {home}: holds a journal that cannot be read (--restart throws it away)\n"
    ran = merged(family, tmp_path / "out")
    assert (ran.code, ran.err) == (2, said) and not (tmp_path / "out").exists()
    write_lines(home, [{"shard": WHOLE}], "worker-0000-of-0001.jsonl")
    ran = merged(family, tmp_path / "out", "--worker", "0/1")
    assert (ran.code, ran.err) == (2, said.replace("--restart throws it away", ANEW))
    assert merged(family, tmp_path / "out", "--restart").code == 0
    for path in (family / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_files_that_are_not_planned_are_not_gone_on_with(family: Path, tmp_path: Path) -> None:
    """Also where the journal is one of ours but for them."""
    out, home = tmp_path / "out", tmp_path / ".out.partial"
    assert merged(family, out, "--worker", "0/1").code == 0
    (home / "worker-0000-of-0001.jsonl").rename(home / JOURNAL)
    lines = (home / JOURNAL).read_text().splitlines()
    (home / "folder" / "added_tokens.json").write_text("{}")
    first = min((home / "folder").glob("*.safetensors"))
    shutil.move(first, tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    more = {"shard": shard_of(home / "folder" / "added_tokens.json")}
    write_lines(home, [*(json.loads(line) for line in lines if "complete" not in line), more])
    ran = merged(family, out, "--json")
    count = len(list((family / "whole").glob("*.safetensors")))
    assert (ran.code, json.loads(ran.out)["resumed"]) == (0, count - 1)
    assert names(out) == names(family / "whole")
    assert not any(path.is_symlink() for path in out.iterdir())


@pytest.mark.parametrize("name", ["folder", "old", "work", JOURNAL, "worker-0000-of-0002.jsonl"])
@pytest.mark.parametrize("journal", [True, False])
def test_links_lead_nowhere(tmp_path: Path, name: str, journal: bool) -> None:
    """What they lead to stays, and is not taken for the output."""
    home = tmp_path / ".out.partial"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("precious")
    home.mkdir()
    if journal:
        (home / JOURNAL).touch()
    (home / name).unlink(missing_ok=True)
    (home / name).symlink_to("../precious" if "." not in name else "../precious/file")
    for act in (lambda: settle(tmp_path / "out"), lambda: new_folder(tmp_path / "out").__enter__()):
        with pytest.raises(RecipeError) as caught:
            act()
        assert str(caught.value) == f"{home}: {IN_THE_WAY}"
    assert (tmp_path / "precious" / "file").read_text() == "precious" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["fifo", "folder"])
def test_a_journal_that_is_no_file(tmp_path: Path, what: str) -> None:
    home = tmp_path / ".out.partial"
    home.mkdir()
    os.mkfifo(home / JOURNAL) if what == "fifo" else (home / JOURNAL).mkdir()
    with pytest.raises(RecipeError) as caught, new_folder(tmp_path / "out"):
        pass
    assert str(caught.value) == f"{home}: {IN_THE_WAY}"


@pytest.mark.parametrize(
    "change",
    [{"name": 5}, {"name": "../one"}, {"name": "/one"}, {"name": ""}, {"name": "a\0"}, {"name": "x/" * 600 + "x"},
     {"name": "./one"}, {"bytes": "7"}, {"bytes": True}, {"sha256": None}, {"marks": ["m"]}, {"synced": 1}, {"more": 1}],
)  # fmt: skip
def test_a_shard_that_no_run_wrote(tmp_path: Path, change: dict[str, Any]) -> None:
    write_lines(tmp_path, [{"makes": MAKES}, {"shard": WHOLE}])
    with closing(Journal(tmp_path, tmp_path / "out")) as one:
        assert one.head == MAKES and one.shards == {"one": Shard(**WHOLE)}
    write_lines(tmp_path, [{"makes": MAKES}, {"shard": WHOLE | change}])
    with closing(Journal(tmp_path, tmp_path / "out")) as one:
        assert one.head is None


def test_a_disk_that_takes_half_a_line_gets_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(journals.os, "write", lambda handle, data: write(handle, data[:9]))
    one = Journal(tmp_path, tmp_path / "out", sync=False)
    one.begin(MAKES)
    one.add(Shard(**WHOLE))
    one.close()
    assert [list(json.loads(line)) for line in (tmp_path / JOURNAL).read_text().splitlines()] == [
        ["makes"], ["run"], ["shard"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (".", ".: the output has no name of its own (name a folder, such as ../out)"),
        ("..", "..: the output has no name of its own (name a folder, such as ../out)"),
        ("", ".: the output has no name of its own (name a folder, such as ../out)"),
        ("a/..", "a/..: the output has no name of its own (name a folder, such as ../out)"),
        ("a.partial", "a.partial: the output is named as unfinished ones are (choose another name)"),
        ("n" * 247, ".: the output's name is longer than 246 bytes (choose a shorter one)"),
        ("é" * 124, ".: the output's name is longer than 246 bytes (choose a shorter one)"),
    ],
)
def test_names_that_are_none(family: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str) -> None:
    monkeypatch.chdir(family)
    for verb in (["merge"], ["merge", "--force"], ["merge", "--worker", "0/1"], ["commit"]):
        ran = fuse_here(*verb, family / "recipe.yaml", name)
        assert (ran.code, ran.err) == (2, f"fuse: {told}\n")


@pytest.mark.parametrize("name", ["n" * 246, "a\nb", ".hidden", "folder/", "a\udcffb"])
def test_names_that_are_some(family: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    ran = merged(family, out)
    assert ran.code == 0 and ran.out.count("\n") == 2  # the second line is the index's sha256
    assert names(tmp_path) == [name.rstrip("/")] and (out / "fuse.json").exists()


def test_workers_do_not_add_to_what_another_recipe_left(family: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / ".out.partial"
    with pytest.raises(KeyboardInterrupt), partial_folder(out, MAKES, files=2) as one:
        (one.folder / "one").write_text("weights")
        one.journal.add(Shard(**WHOLE))
        raise KeyboardInterrupt
    ran = merged(family, out, "--worker", "0/1")
    said = f"fuse: {home}: holds an unfinished merge of another recipe ({ANEW})\n"
    assert (ran.code, ran.err) == (2, said) and names(home / "folder") == ["one"]
    assert home_of(out) == home


def test_what_another_user_left_is_not_gone_on_with(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / ".out.partial"
    assert merged(family, tmp_path / "out", "--worker", "0/1").code == 0
    before = sorted(home.rglob("*"))
    monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)
    for verb in (["merge"], ["merge", "--restart"], ["merge", "--worker", "0/1"], ["commit"]):
        ran = fuse_here(*verb, family / "recipe.yaml", tmp_path / "out")
        assert (ran.code, ran.err) == (2, f"fuse: {home}: {IN_THE_WAY}\n")
    assert sorted(home.rglob("*")) == before


def test_an_output_below_a_file(family: Path) -> None:
    out = family / "recipe.yaml" / "out"
    ran = merged(family, out)
    told = f"fuse: {out}: the folder '{family}/recipe.yaml' does not exist (make it first)\n"
    assert (ran.code, ran.err) == (2, told)


@pytest.mark.parametrize("name", ["tokenizer.model", "merges.txt", "qformer_tokenizer/vocab.txt"])
def test_small_files_that_are_huge_on_paper(family: Path, tmp_path: Path, name: str) -> None:
    """A file of holes takes no room until it is copied."""
    for member in "ab":
        shutil.copytree(family / member, tmp_path / member)
    (file := tmp_path / "a" / name).parent.mkdir(exist_ok=True)
    file.touch()
    os.truncate(file, 1 << 40)
    (tmp_path / "recipe.yaml").write_text("members: {a: a, b: b}\nlanguage: {method: linear, weights: 1}\n")
    ran = fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out")
    told = f"fuse: {file}: 1,099,511,627,776 bytes is more than the 100,000,000 that fuse reads\n"
    assert (ran.code, ran.err) == (3, told) and names(tmp_path) == ["a", "b", "recipe.yaml"]


def test_a_disk_is_no_output(family: Path) -> None:
    ran = merged(family, Path("/proc"), "--force")
    told = "fuse: /proc: the output is where a disk begins, which cannot be replaced (name a folder in it)\n"
    assert (ran.code, ran.err) == (2, told)
