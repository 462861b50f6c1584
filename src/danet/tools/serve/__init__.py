"""The attention page, served for uploaded pictures."""
