"""The decoder with fixed shapes that CUDA graphs need."""
