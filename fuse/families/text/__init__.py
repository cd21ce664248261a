"""One table per language-model architecture: `FAMILY = TextFamily(...)`, found by model_type in `registry.TEXTS`."""
