"""A trained Transformer for decoding on a GPU, in steps of fixed shapes."""
