"""Statements, one function for each of their kinds."""
