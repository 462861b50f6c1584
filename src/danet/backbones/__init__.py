"""Backbones: images in, features of four stages out. One file per family."""
