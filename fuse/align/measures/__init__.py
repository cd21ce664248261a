"""Measures of how alike two sides of features are, and the table that describes them."""
