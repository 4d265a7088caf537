"""Filling blanks, and held-out figures."""
