"""What a repository of the hub holds, and how that differs from a folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuse.push.local import Local, git_id

OWN = ".gitattributes"  # the hub writes it into every repository


@dataclass(frozen=True)
class Far:
    """A file on the hub: its size, its sha256 where it is kept as LFS ("" elsewhere), and git's id of what is kept."""

    bytes: int
    sha256: str
    git: str


@dataclass(frozen=True)
class Remote:
    """A repository at the commit of a branch. private: who may read it; None where the hub does not say.

    branch: False where the repository is there and the branch is not: it is then at the commit of `main`, which a new
    branch begins with.
    """

    commit: str
    private: bool | None
    files: Mapping[str, Far]
    branch: bool = True


@dataclass(frozen=True)
class Difference:
    """missing: names that the hub lacks. changed: that it has with another content. foreign: that the folder lacks."""

    missing: tuple[str, ...]
    changed: tuple[str, ...]
    foreign: tuple[str, ...]

    @property
    def none(self) -> bool:
        return not (self.missing or self.changed or self.foreign)


def look_at(api: Any, repository: str, revision: str | None) -> Remote | None:
    """The repository as it is now; None where there is none. Errors are the hub's, see `sentences`."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.model_info(repository, revision=revision, files_metadata=True)
    except RevisionNotFoundError:
        if revision is None:  # no commit yet
            return Remote("", None, {})
        there = look_at(api, repository, None)
        return there and Remote(there.commit, there.private, there.files, branch=False)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            raise
        return None
    files = {
        one.rfilename: Far(one.size or 0, one.lfs.sha256 if one.lfs else "", one.blob_id or "")
        for one in info.siblings or [] if one.rfilename != OWN
    }  # fmt: skip
    return Remote(info.sha or "", info.private, files)


def compare(local: Local, remote: Remote | None) -> Difference:
    """How the folder and the repository differ; by sha256, and by git's id where the hub tells no sha256."""
    there = remote.files if remote else {}
    here = {file.name: file for file in local.files}
    changed = []
    for name, file in here.items():
        if (far := there.get(name)) is None:
            continue
        same = far.sha256 == file.sha256 if far.sha256 else far.git == git_id(local.folder / name)
        if not same:
            changed.append(name)
    return Difference(
        tuple(name for name in here if name not in there), tuple(changed), tuple(sorted(there.keys() - here.keys()))
    )
