"""SentencePiece tokenizers, their training and vocabularies, and untrusted model files."""
