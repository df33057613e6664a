"""The engine that translates on CPUs: C++ behind a C interface, and its face in Python.

Nothing here imports PyTorch or NumPy.
"""
