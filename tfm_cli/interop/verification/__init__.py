"""Comparison of a model in tfm with the same model in another toolkit."""
