"""What is hidden from the model, and how it is scored."""
