"""The EPCM: what the processor knows of each resident enclave page.

An entry is one integer in the encoding of SECINFO.flags (R, W, X, PENDING,
MODIFIED, PR, type in bits 15:8) plus BLOCKED. Presence in the map is the VALID
bit; the owner is the enclave whose map it is; the linear address is the key.
A plain integer because one entry comes and goes with every load and eviction;
for the same reason answers about a word are remembered (few words ever occur).
"""

from __future__ import annotations

import functools

from epcgroup.sgx.layouts import (
    MODIFIED,
    PENDING,
    PR,
    TYPE_MASK,
    TYPE_SHIFT,
    PageType,
    R,
    W,
    X,
)

BLOCKED = 1 << 16
#: Bits that EWB seals into the PCMD and ELDU brings back.
SEALED_MASK = TYPE_MASK | PR | MODIFIED | PENDING | X | W | R

_REG = PageType.REG << TYPE_SHIFT
_NEEDED = {"r": R, "w": W, "x": X}


def page_type(word: int) -> int:
    return (word & TYPE_MASK) >> TYPE_SHIFT


@functools.lru_cache(maxsize=4096)
def allows(word: int, access: str) -> bool:
    """Whether enclave code may make this access (``"r"``, ``"w"``, ``"x"``).

    Only regular pages can be touched by loads, stores and fetches; a page that
    waits for EACCEPT after EAUG or EMODT cannot. PR alone hides nothing.
    """
    return word & (TYPE_MASK | PENDING | MODIFIED | BLOCKED) == _REG and bool(word & _NEEDED[access])


@functools.lru_cache(maxsize=4096)
def hidden(word: int) -> bool:
    """Whether no access at all may reach the page, not even a read."""
    return not allows(word & ~BLOCKED, "r")


def describe(word: int) -> str:
    """For logs and error messages: ``REG rw- PENDING``."""
    kind = page_type(word)
    name = PageType(kind).name if kind in PageType._value2member_map_ else f"type {kind}"
    prot = "".join(c if word & bit else "-" for c, bit in (("r", R), ("w", W), ("x", X)))
    states = [
        text
        for text, bit in (("PENDING", PENDING), ("MODIFIED", MODIFIED), ("PR", PR), ("BLOCKED", BLOCKED))
        if word & bit
    ]
    return " ".join([name, prot, *states])
