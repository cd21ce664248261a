"""What a folder's chat template writes, held to seconds, memory and letters.

A template comes with a checkpoint, and what it costs is not known before. transformers renders it in Jinja's immutable
sandbox, which keeps it from the machine and not from running for ever. The bounds are our choice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fuse.bounds import bounded
from fuse.errors import CheckpointError, FuseError, in_a_line

SECONDS, MEMORY, LETTERS = 2, 64 << 20, 1 << 18


def written(render: Callable[[], str], *, where: object, room: int = 0) -> str:
    """The text of a conversation, from `render`, which applies the template of `where`.

    room: letters that may come beside LETTERS, because the conversation has so many. Raises CheckpointError when the
    template fails, refuses the conversation, or goes over a bound.
    """
    try:
        with bounded(SECONDS, MEMORY):
            text = render()
    except FuseError:
        raise
    except TimeoutError:
        raise CheckpointError(f"the chat template takes more than {SECONDS} seconds", where=where) from None
    except (MemoryError, RecursionError):
        told = f"the chat template asks for more than {MEMORY >> 20} MiB or a bounded depth"
        raise CheckpointError(told, where=where) from None
    except Exception as error:  # of Jinja, or of what the template does with the conversation
        raise CheckpointError(f"the chat template writes no prompt: {in_a_line(error)}", where=where) from None
    if len(text) > LETTERS + room:
        told = f"the chat template writes {len(text):,} letters, more than {LETTERS + room:,}"
        raise CheckpointError(told, where=where)
    return text


@contextmanager
def runs(folder: object) -> Iterator[None]:
    """A model runs on what its own folder's processor made; CheckpointError where the two do not fit together."""
    try:
        yield
    except (ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, FuseError) or "memory" in str(error):
            raise
        raise CheckpointError(f"the model does not run: {in_a_line(error)}", where=folder) from None
