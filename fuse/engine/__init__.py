"""Runs the rows of a plan. Knows nothing of recipes or families."""
