"""Load and save models as Hugging Face folders."""
