"""The state of the compiled engine as one array: scalars, and where the tables are.

Functions take one array of integers: the machine's scalars, then addresses and
lengths of the tables; each function opens the tables that it uses, which costs
nothing after optimisation (the width of a row is a constant).

Addresses outlive nothing: :class:`.store.Store` holds the arrays and writes
their addresses anew whenever one is replaced.
"""

from __future__ import annotations

from typing import Any

from epcgroup.sim.compiler.dialect import Table, at, view
from epcgroup.sim.kernel import columns as c

State = Any
"""int64[STATE]: see :mod:`.columns`."""

STATE = view("s", "i64", columns=True)

groups = Table(c.AT_GROUPS, view("cg", "i64", width=c.GROUP_COLUMNS, columns=True))
"""A row per cgroup."""
enclaves = Table(c.AT_ENCLAVES, view("en", "i64", width=c.ENCLAVE_COLUMNS, columns=True))
"""A row per enclave."""
page_flags = Table(c.AT_FLAGS, view("fl", "u8"))
"""A byte per enclave page: all that a hit touches."""
owners = Table(c.AT_OWNERS, view("ow", "i64"))
"""The enclave of each block of page numbers."""
chunks = Table(c.AT_CHUNKS, view("ch", "i32", width=c.CHUNK))
"""Lists: 16 page numbers a row."""
links = Table(c.AT_LINKS, view("nx", "i32"))
"""The chunk after each chunk."""
nodes = Table(c.AT_NODES, view("nd", "i64", width=c.NODE_COLUMNS, columns=True))
"""A row per SECS or VA page."""
order = Table(c.AT_ORDER, view("tb", "i64", stride=c.RINGS))
"""Groups in pre-order, and the rings of queued and of dying groups."""
bits = Table(c.AT_BITS, view("bm", "u64", stride=c.LEN_BITS))
"""A bit for each group in pre-order whose list is not empty, and one per word of those."""
log_lines = Table(c.AT_LOG, view("lg", "i64", width=2, columns=True))
"""Rows of (enclave, page)."""
batch = Table(c.AT_BATCH, view("sc", "i64", width=c.BATCH))
"""Scratch for one reclaim round: pages; owner, start and end of each list's part; young pages."""
per_group = Table(c.AT_SCRATCH, view("pg", "i64"))
"""Scratch: a number per group."""
threads = Table(c.AT_THREADS, view("th", "i64", width=c.THREAD_COLUMNS, columns=True))
"""A row per thread of a simulation."""

PAGES = view("pages", "i32")
"""Accesses to replay."""
RESULTS = view("k", "i8")
TIMES = view("times", "f64", columns=True)
"""Virtual time of one replay."""

pages_at, results_at, times_at = at(PAGES), at(RESULTS), at(TIMES)
"""The same at an address."""
