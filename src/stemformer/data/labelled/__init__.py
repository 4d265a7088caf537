"""labelled."""
