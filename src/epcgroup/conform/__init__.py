"""Replay recorded sequences and compare every observation.

:func:`conform` judges one file; ``docs/conform.md`` describes the formats.
"""

from epcgroup.conform.verdict import Difference, Verdict, conform

__all__ = ["Difference", "Verdict", "conform"]
