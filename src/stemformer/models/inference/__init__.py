"""Incremental decoding of a GPT or Llama: decoder, key-value caches, linear kernels for few rows."""
