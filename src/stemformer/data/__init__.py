"""From text to token ids to batches; knows no model."""
