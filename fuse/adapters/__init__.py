"""Adapters of PEFT as members: `{base: X, adapter: Y}` is X with Y's changes, computed while it is read."""
