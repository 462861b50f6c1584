"""What a model attends to and what it costs."""
