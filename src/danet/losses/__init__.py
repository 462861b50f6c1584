"""Losses over logits and labels, one file each; one is chosen by name and applied to every output of the model."""
