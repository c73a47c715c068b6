"""The state of the compiled engine as one array: scalars, and where the tables are.

A jitted function pays for every array argument: seven words and two atomic
reference counts a call, and a large part of the time to compile. So functions
take one array of integers: the machine's scalars, then addresses and lengths of
the tables; each function opens the tables that it uses, which costs nothing
after optimisation (the width of a row is a constant).

Addresses outlive nothing: :class:`.store.Store` holds the arrays and writes
their addresses anew whenever one is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from epcgroup.sim import columns as c

State = Any
"""int64[STATE]: see :mod:`.columns`."""


def _table(address: int, length: int, width: int, item: Any, height: int = 0) -> Callable[[State], Any]:
    """What opens a table: ``width`` columns (0: one-dimensional) of as many rows as ``length`` says.

    With a ``height``, so many rows of as many columns as ``length`` says.
    """
    array = types.Array(item, 2 if width or height else 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        state = make_array(signature.args[0])(context, builder, arguments[0])

        def scalar(number: int) -> Any:
            return builder.load(builder.gep(state.data, [context.get_constant(types.intp, number)]))

        size = context.get_abi_sizeof(context.get_data_type(item))
        whole = context.get_constant(types.intp, size)
        table = make_array(array)(context, builder)
        across = context.get_constant(types.intp, width) if width else scalar(length)
        down = context.get_constant(types.intp, height) if height else scalar(length)
        flat = array.ndim == 1
        populate_array(
            table,
            data=builder.inttoptr(scalar(address), table.data.type),
            shape=cgutils.pack_array(builder, [down] if flat else [down, across]),
            strides=cgutils.pack_array(builder, [whole] if flat else [builder.mul(across, whole), whole]),
            itemsize=whole,
            meminfo=None,
        )
        return table._getvalue()

    @intrinsic  # type: ignore[untyped-decorator]
    def opener(typing_context: Any, s: Any) -> Any:  # noqa: ARG001  (numba's signature)
        return array(s), generate

    opened: Callable[[State], Any] = opener
    return opened


groups = _table(c.AT_GROUPS, c.LEN_GROUPS, c.GROUP_COLUMNS, types.int64)
"""A row per cgroup."""
enclaves = _table(c.AT_ENCLAVES, c.LEN_ENCLAVES, c.ENCLAVE_COLUMNS, types.int64)
"""A row per enclave."""
page_flags = _table(c.AT_FLAGS, c.LEN_FLAGS, 0, types.uint8)
"""A byte per enclave page: all that a hit touches."""
owners = _table(c.AT_OWNERS, c.LEN_OWNERS, 0, types.int64)
"""The enclave of each block of page numbers."""
chunks = _table(c.AT_CHUNKS, c.LEN_CHUNKS, c.CHUNK, types.int32)
"""Lists: 16 page numbers a row."""
links = _table(c.AT_LINKS, c.LEN_CHUNKS, 0, types.int32)
"""The chunk after each chunk."""
nodes = _table(c.AT_NODES, c.LEN_NODES, c.NODE_COLUMNS, types.int64)
"""A row per SECS or VA page."""
order = _table(c.AT_ORDER, c.RINGS, 0, types.int64, height=3)
"""Groups in pre-order, and the rings of queued and of dying groups."""
bits = _table(c.AT_BITS, c.LEN_BITS, 0, types.uint64, height=2)
"""A bit for each group in pre-order whose list is not empty, and one per word of those."""
log_lines = _table(c.AT_LOG, c.LEN_LOG, 2, types.int64)
"""Rows of (enclave, page)."""
batch = _table(c.AT_BATCH, c.LEN_LOG, c.BATCH, types.int64, height=4)
"""Scratch for one reclaim round: pages, and owner, start and end of each list's part."""
per_group = _table(c.AT_SCRATCH, c.LEN_GROUPS, 0, types.int64)
"""Scratch: a number per group."""
