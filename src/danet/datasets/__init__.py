"""Data sets, one file each, and how their files are read."""
