"""Incremental decoding of a GPT: decoder, key-value caches, linear kernels for few rows."""
