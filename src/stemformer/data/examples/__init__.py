"""Training examples: packing, sentence pairs, batches and their order."""
