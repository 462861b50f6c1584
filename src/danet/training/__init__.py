"""One run: its loop, its state, its folder."""
