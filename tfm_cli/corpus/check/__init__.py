"""Checks of a corpus before a run reads it."""
