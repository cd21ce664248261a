"""What becomes of a finished folder: other forms of it, for those who do not have `fuse`."""
