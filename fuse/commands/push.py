"""`fuse push`: a finished folder to a repository of the hub."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fuse.push.local import Local
    from fuse.push.run import Pushed, Ready

SHOWN = 12  # files that are listed by name without --all


@click.command("push")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repository")
@click.option("--private", is_flag=True, help="Make the repository private; one that is there and public is refused.")
@click.option("--revision", metavar="BRANCH", help="The branch that gets the files; made where there is none. [main]")
@click.option(
    "--force", is_flag=True, help="Replace what the repository holds otherwise, and take out what else it holds."
)
@click.option(
    "--dry-run", is_flag=True, help="Tell what would be sent; nothing is asked of the hub and nothing verified."
)
@click.option("--yes", is_flag=True, help="Do not ask before sending.")
@click.option("--all", "every", is_flag=True, help="List every file.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Files or tensors read at once. [default: cores]")
@click.option("--quiet", is_flag=True, help="No progress, and only the result.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout; what is asked stands on stderr.")
def command(
    folder: Path, repository: str, private: bool, revision: str | None, force: bool, dry_run: bool, yes: bool,
    every: bool, threads: int | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Send FOLDER, which `fuse merge` or `fuse export` wrote, to REPOSITORY (org/name) of the hub.

    The files, the bytes, the licences of the parents and what the repository holds are told, and you are asked. Then
    the folder is compared with its record, as `fuse verify --no-load` does, and sent, and what the hub has is compared
    with it. Nothing else in fuse uploads anything to the hub.
    """
    import json
    import sys

    from fuse.errors import RecipeError, one_line
    from fuse.progress import byte_progress
    from fuse.push.local import look
    from fuse.push.run import check_name, check_whole, prepare, send

    def bar(total: int) -> AbstractContextManager[Callable[[int], None]]:
        return byte_progress(total, shown=not quiet, name="push")

    check_name(repository)
    if not (yes or dry_run or sys.stdin.isatty()):
        raise RecipeError("nobody is there to be asked", hint="--yes sends without a question, --dry-run sends nothing")
    if dry_run:
        local = look(folder)
        _say(json.dumps(_document(local, repository, revision, None), indent=1) if as_json else _told(local, every))
        return
    ready = prepare(folder, repository, private=private, revision=revision, force=force)
    if ready.done:
        commit = ready.remote.commit if ready.remote else ""
        same = f"{repository} has all of {folder} as it is; nothing was sent"
        _say(
            json.dumps(_document(ready.local, repository, revision, None, commit=commit), indent=1) if as_json else same
        )
        return
    if not (quiet and yes):
        click.echo("\n".join([_told(ready.local, every), *map(one_line, _target(ready, private))]), err=as_json)
    if not yes and not click.confirm("Send it?", err=True):
        stop = click.Abort()
        stop.add_note("nothing was sent")
        raise stop
    check_whole(folder, threads=threads, bar=bar)
    with _quiet_hub(quiet or not sys.stderr.isatty()):
        pushed = send(ready, private=private)
    for note in pushed.notes:
        click.echo(one_line(f"the hub says of the card: {note}"), err=True)
    result = f"{pushed.url}: {len(pushed.sent)} files sent, {len(ready.local.files)} there as in {folder}"
    _say(json.dumps(_document(ready.local, repository, revision, pushed), indent=1) if as_json else result)


def _say(text: str) -> None:
    from fuse.errors import printable

    click.echo(printable(text))


def _told(local: "Local", every: bool) -> str:
    """Files, bytes, what stays here, and the licences."""
    from fuse.errors import printable
    from fuse.licences import roll_up_lines
    from fuse.sizes import counted, size_text

    largest = sorted(local.files, key=lambda file: -file.bytes)
    shown = local.files if every or len(largest) <= SHOWN else largest[: SHOWN - 1]
    lines = [f"files ({len(local.files)}, {size_text(local.bytes)})"]
    lines += [f"  {file.name}  {size_text(file.bytes)}" for file in shown]
    left = [file.bytes for file in largest[len(shown) :]]
    lines += [f"  and {counted(len(left), 'smaller file')}, {size_text(sum(left))}"] if left else []
    lines += ["left here", *(f"  {name}  ({why})" for name, why in local.left)] if local.left else []
    licences = roll_up_lines(local.licences) if local.licences else ["  ! not recorded in fuse.json"]
    return printable("\n".join([*lines, "licences, as the parents state them", *licences]))


def _target(ready: "Ready", private: bool) -> list[str]:
    """Where it goes, and what becomes of what is there, a line each."""
    from fuse.sizes import counted

    remote, difference = ready.remote, ready.difference
    kind = {True: "private ", False: "public ", None: ""}[remote.private if remote else private]
    state = f"a {kind}repository that is there" if remote else f"a {kind}repository that will be made"
    state += ", a branch that will be made" if remote and not remote.branch else ""
    lines = [f"to {ready.repository}, branch {ready.revision}: {state}"]
    if difference.changed:
        lines.append(f"  ! replaces {counted(len(difference.changed), 'file')}: {', '.join(difference.changed[:3])}")
    if difference.foreign:
        lines.append(f"  ! takes out {counted(len(difference.foreign), 'file')}: {', '.join(difference.foreign[:3])}")
    return lines


@contextmanager
def _quiet_hub(quiet: bool) -> Iterator[None]:
    """Whether the hub's own display is left out."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    switched = quiet and not are_progress_bars_disabled()
    if switched:
        disable_progress_bars()
    try:
        yield
    finally:
        if switched:
            enable_progress_bars()


def _document(
    local: "Local", repository: str, revision: str | None, pushed: "Pushed | None", *, commit: str = ""
) -> dict[str, Any]:  # fmt: skip
    from dataclasses import asdict

    from fuse.licences import licences_json

    return {
        "folder": str(local.folder), "repository": repository, "revision": revision or "main",
        "commit": pushed.commit if pushed else commit, "url": pushed.url if pushed else "",
        "sent": list(pushed.sent) if pushed else [], "bytes": local.bytes,
        "files": [asdict(file) for file in local.files],
        "left": [{"name": name, "why": why} for name, why in local.left],
        "licences": licences_json(local.licences) if local.licences else None,
    }  # fmt: skip
