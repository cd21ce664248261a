"""One table per language-model architecture: `FAMILY = TextFamily(...)`, found by model_type through `registry.TEXTS`."""
