"""`fuse inspect tokens`: tokenizers, special tokens, chat templates and embedding rows, side by side."""
