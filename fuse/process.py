"""Whose process this is."""

OURS = False  # set by the command line: nobody else's code shares what is imported
