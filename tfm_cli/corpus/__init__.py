"""Parallel text: reading, filtering, encoding, storage and batching."""
