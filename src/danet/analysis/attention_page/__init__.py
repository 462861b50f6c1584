"""A page that shows where each position of an image attends to, under the mouse."""
