"""Threads that need several pages at once make progress, however small the EPC or the limit."""

from __future__ import annotations

import random

import pytest

from epcgroup.epc import STANDARD
from epcgroup.epc.invariants import check
from epcgroup.errors import Busy
from epcgroup.testing import World

SIZE = 30


@pytest.mark.parametrize(
    ("epc_pages", "limit", "threads"),
    [(6, None, 1), (16, None, 1), (16, None, 3), (64, None, 4), (512, 6, 1), (512, 10, 2)],
)
@pytest.mark.parametrize("seed", range(3))
def test_an_instruction_gets_its_four_pages_in_bounded_time(
    epc_pages: int, limit: int | None, threads: int, seed: int
) -> None:
    """Each thread has an enclave; an instruction needs code, stack, SSA and some data page, all mapped.

    Threads and slices of background work come in any order, one step at a time.
    """
    choose = random.Random(seed)
    world = World(STANDARD, epc_pages)
    world.group("/a", limit)
    caller = world.caller("/a")
    enclaves = [world.enclave("/a", SIZE) for _ in range(threads)]
    data: list[int | None] = [None] * threads
    executed, since = [0] * threads, 0
    while min(executed) < 100:
        thread = choose.randrange(threads)
        data[thread] = data[thread] or choose.randrange(3, SIZE)
        needed = (0, 1, 2, data[thread])
        missing = [page for page in needed if not world.pager.access(enclaves[thread], page or 0)]
        if not missing:
            executed[thread] += 1
            data[thread] = None
            since = 0
        else:
            since += 1
            assert since < 2000, "nobody gets on"
            index = missing[0] or 0
            try:
                world.machine.fault(caller, enclaves[thread], index)
            except Busy:
                pass
            else:
                world.pager.map(enclaves[thread], index)
                world.pager.access(enclaves[thread], index)
        world.machine.step()
    check(world.machine)
