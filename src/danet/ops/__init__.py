"""Faster or smaller forms of what the components compute, and what moves values alone: the same values."""
