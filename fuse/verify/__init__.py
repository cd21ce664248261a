"""Is a finished folder whole, and still what it was? The checks behind `fuse verify`."""
