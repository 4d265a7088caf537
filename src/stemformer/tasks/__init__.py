"""Labelled problems: what a record becomes for the model, how it is scored, and what the scores say."""
