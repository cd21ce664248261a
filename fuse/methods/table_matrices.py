"""The methods that treat a tensor as a matrix: its singular vectors, or what it does to inputs."""

from collections.abc import Mapping
from typing import Final

from fuse.methods.method import Method

MATRICES: Final[Mapping[str, Method]] = {}
