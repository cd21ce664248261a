"""The fused model: one language model, many branches, in the classes of transformers. Knows nothing of merging."""
