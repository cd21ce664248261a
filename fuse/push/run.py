"""A folder pushed: looked at, compared with what is there, sent in one go, and compared again."""

import glob
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.digests import RECORD
from fuse.errors import FuseError, MachineError, RecipeError, short
from fuse.hub import HUB_ID
from fuse.push.local import Local, look
from fuse.push.remote import Difference, Remote, compare, look_at
from fuse.push.sentences import LOGIN, sentences
from fuse.verify.check import Bar, verify

MAIN = "main"


@dataclass(frozen=True)
class Ready:
    """A push before anything is sent. remote: None where the repository will be made."""

    local: Local
    repository: str
    revision: str
    remote: Remote | None
    difference: Difference
    api: Any

    @property
    def done(self) -> bool:
        """Whether there is nothing to send."""
        return self.difference.none and self.remote is not None and self.remote.branch


@dataclass(frozen=True)
class Pushed:
    """url: of the commit. commit: its id. sent: the names that the hub lacked or had otherwise. notes: of its own."""

    url: str
    commit: str
    sent: tuple[str, ...]
    notes: tuple[str, ...] = ()


def check_name(repository: str) -> None:
    """RecipeError for what is no `org/name`."""
    if not HUB_ID.fullmatch(repository) or len(repository) > 96 or ".." in repository or "--" in repository:
        raise RecipeError(f"{short(repository)} is no repository of the hub", hint="org/name, such as me/my-model")


def prepare(
    folder: Path, repository: str, *, private: bool = False, revision: str | None = None, force: bool = False
) -> Ready:
    """Look at the folder and at the repository; nothing is sent.

    private: others may not read what is sent. Raises RecipeError for a name that is none, a folder that fuse did not
    make, a repository that is there and not private, where it is to be, and, unless forced, one whose branch holds
    something else, or whose `main` does where the branch is new and begins with that; MachineError without a token or
    where the hub cannot be reached.
    """
    check_name(repository)
    local = look(folder)
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise MachineError("HF_HUB_OFFLINE is set, so nothing may be sent", hint="unset it")
    if not get_token():
        raise MachineError("there is no token for the hub", where=repository, hint=LOGIN)
    api = HfApi(library_name="fuse")
    with sentences(repository):
        remote = look_at(api, repository, revision)
        difference = compare(local, remote)
    if private and remote:
        _check_private(repository, remote)
    _check_free(repository, difference, new=remote is not None and not remote.branch, force=force)
    return Ready(local, repository, revision or MAIN, remote, difference, api)


def _check_private(repository: str, remote: Remote) -> None:
    """Refuse what is there and is not private: a push changes nothing of who may read it."""
    if remote.private:
        return
    told = "is public" if remote.private is False else "may be public: the hub does not say"
    raise RecipeError(f"{told}, and --private makes only a new repository private", where=repository,
                      hint="make it private on the hub, or leave --private out")  # fmt: skip


def _check_free(repository: str, difference: Difference, *, new: bool, force: bool) -> None:
    """Refuse to write over, or beside, what is not of this folder. new: a branch that begins with what is there."""
    if force or not (difference.foreign or difference.changed):
        return
    if difference.changed:
        name, what = difference.changed[0], "otherwise than the folder"
    else:
        name, what = difference.foreign[0], "which is not of the folder"
    others = len(difference.changed) + len(difference.foreign) - 1
    more = f", and {others} more that differ{'s' * (others == 1)}" if others else ""
    begins = ", and a new branch begins with that" if new else ""
    forced = "the new branch as the folder is, and no other" if new else "it as the folder is"
    raise RecipeError(f"holds {name!r} {what}{more}{begins}", where=repository,
                      hint=f"another repository, or --force, which makes {forced}")  # fmt: skip


def check_whole(folder: Path, *, threads: int | None, bar: Bar) -> None:
    """Everything that `fuse verify --no-load` looks at; errors are its own, in its words."""
    for _ in verify(folder, load=False, threads=threads, bar=bar):
        pass


def send(ready: Ready, *, private: bool) -> Pushed:
    """Send what was prepared, in one commit where the hub takes it so, and compare what it has then with the folder.

    Files go straight from the folder, in which nothing is written. private: of a repository that is made. Raises
    MachineError where the hub refuses, cannot be reached, has not what was sent or has more than that, RecipeError
    where it refuses the card.
    """
    api, repository = ready.api, ready.repository
    try:
        with sentences(repository), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if ready.remote is None:
                api.create_repo(repository, private=private or None)
            if ready.revision != MAIN and not (ready.remote and ready.remote.branch):
                api.create_branch(repository, branch=ready.revision, revision=_begun(ready), exist_ok=True)
            found = _upload(ready)
            there = look_at(api, repository, ready.revision)
            difference = compare(ready.local, there)
    except BaseException as stop:
        if not isinstance(stop, FuseError):
            stop.add_note(f"what {repository} has of the folder is not sent again: the same command goes on")
        raise
    if there is None or difference.missing or difference.changed:
        name = next(iter((*difference.missing, *difference.changed)), RECORD)
        raise MachineError(f"the hub has not what was sent: {name!r} differs", where=repository,
                           hint="did the folder change meanwhile? push again")  # fmt: skip
    if difference.foreign:
        raise MachineError(f"holds {difference.foreign[0]!r} beside what was sent", where=repository,
                           hint="somebody wrote there meanwhile: look at it, and push again")  # fmt: skip
    notes = dict.fromkeys(" ".join(str(one.message).split()) for one in told if "README.md" in str(one.message))
    sent = ready.difference.missing + ready.difference.changed
    return Pushed(str(found.commit_url), str(found.oid), sent, tuple(notes))


def _begun(ready: Ready) -> str | None:
    """The commit that the folder was compared with; None where there was none."""
    return ready.remote.commit or None if ready.remote else None


def _upload(ready: Ready) -> Any:
    names = [glob.escape(file.name) for file in ready.local.files]
    return ready.api.upload_folder(
        repo_id=ready.repository, folder_path=ready.local.folder, allow_patterns=names, revision=ready.revision,
        delete_patterns=[glob.escape(name) for name in ready.difference.foreign] or None,
        parent_commit=_begun(ready), commit_message=f"fuse push of {ready.local.folder.resolve().name}",
    )  # fmt: skip
