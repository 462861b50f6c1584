"""Datasets (one file each), augmentation, the loader and the check that runs before training."""
