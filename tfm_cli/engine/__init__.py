"""A trained Transformer made ready to decode on a GPU, in steps of fixed shapes."""
