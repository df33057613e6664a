"""Greedy and beam search with fixed shapes, as CUDA graphs need them."""
