"""The run, its loop, optimizer, checkpoints and log."""
