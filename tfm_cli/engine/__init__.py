"""A trained Transformer made ready to decode fast."""
