"""`fuse inspect deltas`: the geometry of task vectors."""
