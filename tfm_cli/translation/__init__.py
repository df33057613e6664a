"""Translation: lines in, as many lines out."""
