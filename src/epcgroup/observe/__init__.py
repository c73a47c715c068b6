"""One snapshot model; tables, JSON, plots and views made from it.

`model` is what a moment looks like, `source` where moments come from, `codec` their
one form as JSON, `journal` the events between them, `store` their history on disk.
"""

from __future__ import annotations

from epcgroup.observe.history import History, Series
from epcgroup.observe.journal import Journal
from epcgroup.observe.model import (
    EnclaveView,
    Event,
    GroupView,
    NodeView,
    ProcessView,
    Snapshot,
    ThreadView,
)
from epcgroup.observe.source import Source

__all__ = [
    "EnclaveView",
    "Event",
    "GroupView",
    "History",
    "Journal",
    "NodeView",
    "ProcessView",
    "Series",
    "Snapshot",
    "Source",
    "ThreadView",
]
