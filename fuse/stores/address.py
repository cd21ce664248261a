"""Addresses of folders in object stores, and the fsspec file system behind each. To import this imports no fsspec."""

import re
from dataclasses import dataclass
from typing import Any

from fuse.errors import MachineError, RecipeError, in_a_line

# scheme -> what brings it
SCHEMES = {"s3": "fuse-mllm[s3]", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
AZURE = "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; of a public bucket FSSPEC_S3_ANON=true",
    "az": AZURE,
    "abfs": AZURE,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "max_concurrency": 4,  # parts of 50 MB in memory at once
        "config_kwargs": {"retries": {"max_attempts": 2}, "connect_timeout": 10, "read_timeout": 60},
    },
}
PART = re.compile(r"[\w=+@,()-][\w.=+@,() -]*|\.[\w=+@,()-][\w.=+@,() -]*", re.ASCII)


@dataclass(frozen=True)
class Address:
    """`s3://bucket/some/folder`: scheme "s3", parts ("bucket", "some", "folder")."""

    scheme: str
    parts: tuple[str, ...]

    @property
    def path(self) -> str:
        """As fsspec wants it."""
        return "/".join(self.parts)

    @property
    def name(self) -> str:
        return self.parts[-1]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def file(self, name: str) -> str:
        """The path of a file in the folder, as fsspec wants it."""
        return f"{self.path}/{name}"


def is_store(location: str) -> bool:
    """Whether a location names an object store."""
    scheme, colon, _ = location.partition("://")
    return bool(colon) and scheme in SCHEMES


def address_of(location: str) -> Address:
    """The address that a location with a known scheme is. RecipeError where it is none: parts are plain names."""
    scheme, _, rest = location.partition("://")
    parts = tuple(rest.removesuffix("/").split("/"))
    if not all(PART.fullmatch(part) for part in parts):
        raise RecipeError(f"{location!r} is no folder of a store", hint=f"such as {scheme}://bucket/folder")
    return Address(scheme, parts)


def connect(address: Address) -> Any:
    """The file system of fsspec. Credentials are those of the environment; nothing else is taken from anywhere.

    Raises MachineError where its package is not installed, or does not start with what is in the environment.
    """
    needs = SCHEMES[address.scheme]
    try:
        import fsspec

        options = {"use_listings_cache": False, "skip_instance_cache": True}
        return fsspec.filesystem(address.scheme, **options, **OPTIONS.get(address.scheme, {}))
    except ImportError:
        raise MachineError(f"{address.scheme}:// needs {needs}", hint=f"pip install {needs}") from None
    except Exception as error:  # of any client of a store
        told = f"the client of the store does not start ({in_a_line(error)})"
        raise MachineError(told, where=address, hint=CREDENTIALS.get(address.scheme, "")) from None
