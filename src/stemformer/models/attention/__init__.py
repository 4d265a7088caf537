"""Attention over flat tokens: the public functions in `varlen.py`, the kernels of the CPU in `cpu.py`."""
