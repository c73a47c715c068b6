"""Rows of the backing store in machine code: where they are, and a batch of them withdrawn.

What a row is, `epcgroup.driver.evicted` says. A batch is one block.
"""

from __future__ import annotations

from typing import Final

from epcgroup.driver.arena import CHUNK_SHIFT
from epcgroup.driver.evicted import FLAGS_MASK, GROUP_SHIFT, PLACE, REST, ROW, SLOT_SHIFT
from epcgroup.live.paging.compiled.calls import COLUMN, LENGTH, OWN, peek, poke
from epcgroup.live.paging.compiled.slots import give
from epcgroup.sgx.seal import SEALED_SIZE
from epcgroup.sim.compiler.dialect import INT
from epcgroup.sim.compiler.jit import Entry, part

# Words of the block, as byte offsets.
COUNT: Final = 0  # pages
DIRECTORY: Final = 8  # of the enclave's rows
VA: Final = 16  # of the words of its VA slots
INDICES: Final = OWN  # columns of a word for each page: its index,
PLACES: Final = INDICES + COLUMN  # out: its place, negative for none,
FLAGS: Final = PLACES + COLUMN  # and its flags
SIZE: Final = FLAGS + COLUMN
MISSING: Final = -1  # a page has no row

_GROUP: Final = (1 << GROUP_SHIFT) - 1
_CHUNK: Final = (1 << CHUNK_SHIFT) - 1
_ROW_SIZE: Final = ROW << 3
_REST: Final = REST << 3
assert PLACE == 0
assert LENGTH


@part
def row_of(directory: int, index: int) -> int:
    """Address of the row of a page; 0 for none."""
    group = peek(directory + (index >> GROUP_SHIFT << 3))
    return group + (index & _GROUP) * _ROW_SIZE if group else 0


@part
def sealed_at(bases: int, place: int) -> int:
    """Address of a place of the arena."""
    chunk = peek(bases + (place >> CHUNK_SHIFT << 3))
    return chunk + (place & _CHUNK) * SEALED_SIZE  # type: ignore[no-any-return]


def _withdraw(block: int) -> int:
    """Forget pages, and give back their VA slots: 0, or MISSING, and none is forgotten."""
    count = peek(block + COUNT)
    for at in range(count):
        row = row_of(peek(block + DIRECTORY), peek(block + (at << 3) + INDICES))
        if not row:
            return MISSING
        if not peek(row):
            return MISSING
    for at in range(count):
        column = block + (at << 3)
        row = row_of(peek(block + DIRECTORY), peek(column + INDICES))
        place = peek(row)
        poke(row, 0)
        poke(column + PLACES, (place if place > 0 else -place) - 2)
        poke(column + FLAGS, peek(row + _REST) & FLAGS_MASK)
        give(peek(block + VA), peek(row + _REST) >> SLOT_SHIFT)
    return 0


withdraw = Entry(_withdraw, (INT,), tell=False)
