"""`fuse recipe new`: a few questions, and a recipe with a comment at every line."""
