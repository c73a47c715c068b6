"""Entering and leaving enclaves without a trap."""
