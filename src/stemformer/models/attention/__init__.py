"""Attention over flat tokens.

`varlen.py` holds the public functions, `attend` and `attend_cached`, the PyTorch operators and the
kernels for other devices; `cpu.py` holds the CPU kernels, which batch sequences by length.
"""
