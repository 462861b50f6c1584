"""src/export.py: graphs and weights for other programs."""
