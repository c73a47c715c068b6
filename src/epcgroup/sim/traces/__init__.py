"""Traces: the format, readers of others' formats, generators, and what cuts and merges them."""
