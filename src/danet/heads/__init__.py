"""Heads: features in, logits out. One file per head."""
