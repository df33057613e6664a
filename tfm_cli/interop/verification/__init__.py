"""Comparison of a model in this toolkit with the same model in another one."""
