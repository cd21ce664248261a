"""Branches: an encoder, its projector and its own preprocessing, that turn one image into tokens of a host."""
