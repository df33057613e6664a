"""The engine that translates on CPUs: C++ with a C interface, and its Python bindings.

These modules import neither PyTorch nor NumPy.
"""
