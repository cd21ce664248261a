"""Failures of the hub while something is pushed, each in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from fuse.errors import FuseError, MachineError, RecipeError, in_a_line, short
from fuse.stores.sentences import is_far

LOGIN = "`hf auth login`, or HF_TOKEN, with a token that may write"
# status of HTTP -> what it means here, and what helps
STATUS: dict[int, tuple[str, str]] = {
    401: ("the hub does not accept the token", LOGIN),
    403: ("the token may not write here", LOGIN),
    409: ("somebody else writes there", "look at it, and push again"),
    412: ("the repository changed meanwhile", "look at it, and push again"),
    413: ("the hub refuses a file of that size", ""),
    429: ("the hub is asked too often", "the same command goes on later"),
}


@contextmanager
def sentences(repository: str) -> Iterator[None]:
    """RecipeError for what the user can mend in the folder or the name, MachineError for the rest."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except FuseError:
        raise
    except HFValidationError:
        raise RecipeError(f"{short(repository)} is no hub id", hint="org/name, of at most 96 letters") from None
    except OfflineModeIsEnabled:
        raise MachineError("HF_HUB_OFFLINE is set, so nothing may be sent", hint="unset it") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        told, hint = STATUS.get(status, (f"the hub answers {status}", "" if status < 500 else "try again later"))
        said = " ".join((error.server_message or "").split())[:200]
        raise MachineError(told + (f" ({said})" if said else ""), where=repository, hint=hint) from None
    except ValueError as error:
        if "README.md" not in str(error):
            raise
        said = " ".join(str(error).partition("\n")[2].split()).removeprefix("- ")[:200]
        raise RecipeError(f"the hub refuses the front matter of README.md ({said})", where=repository) from None
    except Exception as error:  # of the client or of its storage; what is not far is raised again
        if not (is_far(error) or _is_xet(error)):
            raise
        said = f"{type(error).__name__}: {in_a_line(error)}" if _is_xet(error) else type(error).__name__
        raise MachineError(f"the hub cannot be reached ({said})", where=repository,
                           hint="the same command goes on from there") from None  # fmt: skip


def _is_xet(error: BaseException) -> bool:
    """Failures inside hf_xet, which come as one of Python's own types, with its name in the trace."""
    trace = error.__traceback__
    while trace is not None:
        if "xet" in trace.tb_frame.f_code.co_name or "_upload_pipeline" in trace.tb_frame.f_code.co_filename:
            return isinstance(error, RuntimeError | OSError)
        trace = trace.tb_next
    return False
