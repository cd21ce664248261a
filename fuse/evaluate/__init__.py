"""Evaluation: questions from a data file, replies of model folders, scores with intervals."""
