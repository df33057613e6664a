"""The directory that holds a trained model: configuration, tokenizers, weights."""
