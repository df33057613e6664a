"""Parallel text on its way to the model."""
