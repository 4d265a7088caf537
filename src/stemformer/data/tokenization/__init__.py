"""Tokenizers: load, save, apply and train WordPiece and byte-level BPE vocabularies."""
