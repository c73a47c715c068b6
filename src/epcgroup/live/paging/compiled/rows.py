"""Rows of the backing store in machine code: where they are, and a batch of them changed.

What a row is, `epcgroup.driver.evicted` says. A batch is one block.
"""

from __future__ import annotations

from typing import Final

from epcgroup.driver.arena import CHUNK_SHIFT
from epcgroup.driver.evicted import GROUP_SHIFT, NO_PLACE, PLACE, REST, ROW
from epcgroup.live.paging.compiled.calls import COLUMN, LENGTH, OWN, peek, poke
from epcgroup.sgx.seal import SEALED_SIZE
from epcgroup.sim.compiler.dialect import INT
from epcgroup.sim.compiler.jit import Entry, part

# Words of the block, as byte offsets.
COUNT: Final = 0  # pages
DIRECTORY: Final = 8  # of the enclave's rows
INDICES: Final = OWN  # columns of a word for each page: its index,
PLACES: Final = INDICES + COLUMN  # out: its place + 2, NO_PLACE for one without,
RESTS: Final = PLACES + COLUMN  # in (keep): what is to be added to the rest; out (withdraw): the rest
SIZE: Final = RESTS + COLUMN
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


def _keep(block: int) -> int:
    """Pages that are ready have arrived: how many of them have a place."""
    stored = 0
    for at in range(peek(block + COUNT)):
        column = block + (at << 3)
        row = row_of(peek(block + DIRECTORY), peek(column + INDICES))
        place = -peek(row)
        poke(row, place)
        poke(row + _REST, peek(row + _REST) | peek(column + RESTS))
        if place > NO_PLACE:
            stored += 1
    return stored


def _withdraw(block: int) -> int:
    """Forget pages: 0, or MISSING, and none is forgotten."""
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
        poke(column + PLACES, place if place > 0 else -place)
        poke(column + RESTS, peek(row + _REST))
    return 0


keep = Entry(_keep, (INT,), tell=False)
withdraw = Entry(_withdraw, (INT,), tell=False)
