"""src/inspect_data.py: a page that shows a data set before anything is trained on it."""
