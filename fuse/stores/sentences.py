"""Failures of object stores, each in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from fuse.errors import FuseError, MachineError, RecipeError
from fuse.stores.address import CREDENTIALS, Address

UNNAMED = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError",
           "ProfileNotFound", "TokenRetrievalError", "NoAuthTokenError", "UnauthorizedSSOTokenError"}  # fmt: skip
CLIENTS = {"aiohttp", "aiobotocore", "botocore", "gcsfs", "adlfs", "azure", "google", "fsspec", "s3fs", "urllib3",
           "httpx", "httpx2", "httpcore", "huggingface_hub"}  # fmt: skip


@contextmanager
def sentences(address: Address) -> Iterator[None]:
    """RecipeError for a bucket or file that is not there, MachineError where the store refuses or cannot be reached."""
    try:
        yield
    except FuseError:
        raise
    except FileNotFoundError as error:
        if "bucket" in str(error):
            raise RecipeError(f"the bucket {address.parts[0]!r} does not exist", where=address) from None
        raise RecipeError("there is no such folder in the store", where=address) from None
    except PermissionError as error:
        if error.filename is not None and error.errno is not None:  # of the local disk
            raise
        hint = CREDENTIALS.get(address.scheme, "")
        raise MachineError(f"the store does not allow it ({_told(error)})", where=address, hint=hint) from None
    except Exception as error:  # of any client of a store; what is not far is raised again
        if type(error).__name__ in UNNAMED:
            hint = CREDENTIALS.get(address.scheme, "")
            raise MachineError("no credentials for the store were found", where=address, hint=hint) from None
        if not is_far(error):
            raise
        raise MachineError(f"the store cannot be reached ({_told(error)})", where=address) from None


def is_far(error: BaseException) -> bool:
    """Whether a failure is of the store or of the way to it, not of this machine."""
    if isinstance(error, OSError):
        return error.filename is None
    return isinstance(error, TimeoutError) or type(error).__module__.split(".")[0] in CLIENTS


def _told(error: BaseException) -> str:
    """What the client said, in at most a line."""
    text = " ".join((str(error.args[-1]) if error.args else "").split())
    name = type(error).__name__
    return name if not text or len(text) > 100 or name.endswith(("ConnectionError", "Timeout")) else text.rstrip(".")
