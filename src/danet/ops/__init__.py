"""Faster or smaller forms of what the components compute: the same values."""
