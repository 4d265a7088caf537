"""Text out of a model that was trained on the next word."""
