"""Features of vision encoders and language models over batches of images, and the grids that they lie on."""
