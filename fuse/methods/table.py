"""The merge methods as data, by name. The functions live beside this file, one file a method; `fuse.methods.load`."""

from collections.abc import Mapping
from typing import Final

from fuse.methods.method import REQUIRED, Method, Param, sums_to_zero
from fuse.methods.table_foreign import FOREIGN
from fuse.methods.table_matrices import MATRICES
from fuse.methods.table_sparse import SPARSE
from fuse.methods.table_spheres import SPHERES
from fuse.methods.table_vectors import VECTORS

__all__ = ["METHODS", "REQUIRED", "Method", "Param", "sums_to_zero"]

METHODS: Final[Mapping[str, Method]] = {**VECTORS, **SPARSE, **SPHERES, **MATRICES, **FOREIGN}
