"""Recipes written for mergekit, read as recipes of fuse where they mean the same, and refused where they do not."""
