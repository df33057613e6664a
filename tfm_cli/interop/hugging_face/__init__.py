"""Marian models of Hugging Face Transformers."""
