"""The page service in machine code: faults of the express lane, and rounds of eviction.

This is the part of paging that decides nothing. Which pages, in what order and for whom is the
engine's business before and after. A round trip through Python costs a fault twice what it is worth
here, most of it in an interpreter whose code and branch predictions the switch of processes has thrown
out of the caches; and what is to be done to each of 16 pages costs the interpreter more than the kernel.

=========  ==================================================
`calls`    what all of it is written with: words at addresses, functions of C
`sealing`  a page sealed and opened (as `sgx.seal` does)
`rows`     what the backing store knows of pages
`slots`    VA slots taken and given
`lane`     the express lane's loop: read a fault, open the page, fill it, note it
`evict`    a batch of pages revoked, sealed, and punched out
`look`     a batch of pages looked at for their age
=========  ==================================================

All memory is addressed by number. Each function works on one block of 64-bit words that Python sees too,
at offsets that its file names. It is written in the dialect of `epcgroup.sim.compiler`.

Needs llvmlite (extra ``sim``) and libcrypto.so; importing raises MissingCapability else.
"""

from epcgroup.live.paging.compiled import ciphers, evict, lane, look, rows
from epcgroup.live.paging.compiled.calls import LENGTH, new_block

__all__ = ["LENGTH", "ciphers", "evict", "lane", "load", "look", "new_block", "rows"]


def load() -> None:
    """Have all machine code ready, compiled now if it never was."""
    for entry in (lane.acquire, lane.serve, evict.evict, evict.keep, look.look, rows.withdraw):
        entry.load()
