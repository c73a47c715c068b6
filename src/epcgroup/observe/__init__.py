"""One snapshot model; tables, JSON and plots made from it."""

from __future__ import annotations

from epcgroup.observe.history import History, Series
from epcgroup.observe.model import EnclaveView, GroupView, Snapshot

__all__ = ["EnclaveView", "GroupView", "History", "Series", "Snapshot"]
