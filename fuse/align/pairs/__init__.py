"""`fuse inspect pairs`: which members fit together, in order."""
