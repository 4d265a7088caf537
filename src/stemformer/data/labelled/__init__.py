"""Labelled data: tables and the examples of each task."""
