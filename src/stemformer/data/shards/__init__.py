"""Shards: tokenized corpora on disk, written resumably and read memory-mapped."""
