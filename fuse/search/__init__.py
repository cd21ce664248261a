"""`fuse search`: coefficients and options of a recipe, tried without training on a model that stays in memory."""
