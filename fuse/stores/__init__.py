"""Object stores: members that are read by byte ranges, outputs that are published file by file."""
