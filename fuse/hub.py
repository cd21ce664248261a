"""Members on the hub, through huggingface_hub: small files come first, headers by ranges, weights only to merge.

A revision is resolved to its commit once; everything after reads that commit.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from fuse.errors import CheckpointError, MachineError, RecipeError, short
from fuse.licence_files import NAMES
from fuse.safetensors_header import TensorEntry, parse_header
from fuse.strict_json import MAX_BYTES

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# what a loader may read besides the weights; never code, never a pickle
LOADED = ["*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt", "spiece.model", "README.md"]
SMALL = [*LOADED, *NAMES]  # what is fetched of a member besides its weights
MOST_SMALL = 1 << 30  # bytes of all of them together
FIRST = 1 << 18  # bytes of a weight file that are asked for at first; most headers fit


@dataclass(frozen=True)
class Repository:
    """A repository at one commit, with the names of its top-level files (a `fuse.repository.Repository`)."""

    hub_id: str
    commit: str
    names: frozenset[str]

    @property
    def etags(self) -> dict[str, str]:
        """None: the commit tells the bytes, and files come whole."""
        return {}

    def header(self, name: str, path: Path) -> dict[str, TensorEntry]:
        return remote_header(self, name, path)

    def fetch(self, entries: Sequence[TensorEntry]) -> None:
        download(self, sorted({entry.file.name for entry in entries}))


def open_repository(
    hub_id: str, revision: str | None, folder: str = "a folder, relative to the recipe,"
) -> tuple[Path, Repository | None]:  # fmt: skip
    """The local snapshot with the repository's small files, and the repository where the weights still are.

    How large those files are the hub's listing tells before they are fetched.
    folder: what else may be named, in words.
    Without a network the repository is None, and the snapshot in the local cache is all there is.
    Raises RecipeError for what is no hub id, or a repository or revision that does not exist, CheckpointError for
    small files that are large; MachineError offline.
    """
    if not HUB_ID.fullmatch(hub_id):
        raise RecipeError(f"{hub_id!r} does not exist", hint=f"{folder} or a hub id org/name")
    from huggingface_hub import HfApi, constants, snapshot_download

    with sentences(hub_id, revision):
        if constants.HF_HUB_OFFLINE:
            patterns = [*SMALL, "*.safetensors"]
            return Path(
                snapshot_download(hub_id, revision=revision, allow_patterns=patterns, local_files_only=True)
            ), None
        info = HfApi().model_info(hub_id, revision=revision, files_metadata=True)
        sizes = {one.rfilename: one.size or 0 for one in info.siblings or []}
        check_small(hub_id, {name: size for name, size in sizes.items() if is_small(name)})
        here = Path(snapshot_download(hub_id, revision=revision, allow_patterns=SMALL))
        if here.name != info.sha:
            raise CheckpointError("the repository changed while it was opened", where=hub_id, hint="try again")
        return here, Repository(hub_id, here.name, frozenset(name for name in sizes if "/" not in name))


def is_small(name: str) -> bool:
    """Whether a file of this name may be needed besides the weights."""
    return any(fnmatchcase(name, pattern) for pattern in SMALL)


def check_small(where: object, sizes: Mapping[str, int]) -> None:
    """CheckpointError, before a byte of it comes, for files that are no weights and too large to be read."""
    for name, size in sizes.items():
        if size > MAX_BYTES:
            told = f"{size:,} bytes is more than the {MAX_BYTES:,} that fuse reads"
            raise CheckpointError(f"{told}; nothing was fetched", where=f"{where}/{name}")
    if (total := sum(sizes.values())) > MOST_SMALL:
        told = f"its {len(sizes):,} small files have {total:,} bytes together, more than {MOST_SMALL:,}"
        raise CheckpointError(f"{told}; nothing was fetched", where=where)


def remote_header(repository: Repository, name: str, path: Path) -> dict[str, TensorEntry]:
    """The header of a weight file on the hub, by one or two range requests; `path` is where the file will be."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    if name not in repository.names:
        raise CheckpointError("the file is missing", where=path)
    url = hf_hub_url(repository.hub_id, name, revision=repository.commit)

    def get(begin: int, end: int) -> tuple[bytes, int]:
        headers = {**build_hf_headers(), "range": f"bytes={begin}-{end - 1}"}
        response = get_session().get(url, headers=headers, timeout=30, follow_redirects=True)
        hf_raise_for_status(response)
        whole = response.headers.get("content-range", "").rpartition("/")[2]
        if not whole.isdigit():
            raise MachineError("the hub does not serve ranges of the file", where=f"{repository.hub_id}/{name}")
        return response.content, int(whole)

    with sentences(repository.hub_id, repository.commit):
        first, size = get(0, FIRST)
        return parse_header(
            lambda begin, end: first[begin:end] if end <= len(first) else get(begin, end)[0], size, path
        )


def download(repository: Repository, names: list[str]) -> None:
    """Bring weight files into the local snapshot (resumable, and checked by huggingface_hub)."""
    from huggingface_hub import snapshot_download

    with sentences(repository.hub_id, repository.commit):
        snapshot_download(repository.hub_id, revision=repository.commit, allow_patterns=names)


@contextmanager
def sentences(hub_id: str, revision: str | None) -> Iterator[None]:
    """Errors of huggingface_hub as one sentence each."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError:
        raise MachineError("the hub asks for a licence to be accepted", where=hub_id, hint="`hf auth login`") from None
    except HFValidationError:
        raise RecipeError(f"{short(hub_id)} is no hub id", hint="org/name, of at most 96 letters") from None
    except RevisionNotFoundError:
        raise RecipeError(f"revision {revision!r} does not exist", where=hub_id) from None
    except RepositoryNotFoundError:
        raise RecipeError("no such folder here and no such repository on the hub", where=hub_id) from None
    except (CheckpointError, MachineError, RecipeError):
        raise
    except Exception as error:  # the HTTP client under huggingface_hub changes with its release
        if not _is_network(error):
            raise
        raise MachineError(
            f"not a folder here, and the hub cannot be reached ({type(error).__name__})",
            where=hub_id,
            hint=f"download it where there is a network with `hf download {hub_id}`, or give a local path",
        ) from None


def _is_network(error: Exception) -> bool:
    """Failures of the connection: of huggingface_hub, of the HTTP client under it, or of the system."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in {
        "httpx",
        "httpx2",
        "httpcore",
        "requests",
    }
