"""Pre-training objectives: what is masked or predicted, and its loss."""
