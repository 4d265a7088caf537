"""Text to ids to batches; knows no model."""
