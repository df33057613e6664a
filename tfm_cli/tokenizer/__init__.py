"""SentencePiece: tokenizers, their training, their vocabularies, and model files of others."""
