"""A page sealed and opened in machine code; what comes out is that of `sgx.seal`."""

from __future__ import annotations

from typing import Final

from epcgroup.live.paging.compiled.calls import (
    PAGE_SIZE,
    SCRATCH,
    control,
    open_final,
    open_init,
    open_update,
    poke,
    seal_final,
    seal_init,
    seal_update,
)
from epcgroup.sim.compiler.jit import part

_NONCE: Final = SCRATCH  # 12 bytes
_AAD: Final = SCRATCH + 16  # 25 bytes: flags, address, enclave, all zero
_DONE: Final = SCRATCH + 48  # what libcrypto tells of the bytes that it has written
_AAD_SIZE: Final = 25
_GET_TAG, _SET_TAG = 0x10, 0x11
_MAC: Final = 16


@part
def _begin(block: int, version: int, flags: int, addr: int, enclave: int, size: int) -> int:
    poke(block + _NONCE, version)
    poke(block + _NONCE + 8, 0)
    poke(block + _AAD, flags)
    poke(block + _AAD + 8, addr)
    poke(block + _AAD + 16, enclave)
    poke(block + _AAD + 24, 0 if size else 1)
    return 0


@part
def seal(
    block: int, cipher: int, version: int, flags: int, addr: int, enclave: int, page: int, size: int, out: int
) -> bool:
    """Seal ``size`` bytes (0 for a page of zeros) to ``out``, the MAC behind them."""
    _begin(block, version, flags, addr, enclave, size)
    return (  # type: ignore[no-any-return]
        seal_init(block, cipher, 0, 0, 0, block + _NONCE) > 0
        and seal_update(block, cipher, 0, block + _DONE, block + _AAD, _AAD_SIZE) > 0
        and seal_update(block, cipher, out, block + _DONE, page, size) > 0
        and seal_final(block, cipher, out + size, block + _DONE) > 0
        and control(block, cipher, _GET_TAG, _MAC, out + size) > 0
    )


@part
def unseal(
    block: int, cipher: int, version: int, flags: int, addr: int, enclave: int, page: int, size: int, out: int
) -> bool:
    """Open ``size`` sealed bytes (0 for a page of zeros) with their MAC at ``out``, to ``page``.

    What is in ``page`` counts for nothing unless they verify.
    """
    _begin(block, version, flags, addr, enclave, size)
    good = (
        open_init(block, cipher, 0, 0, 0, block + _NONCE) > 0
        and open_update(block, cipher, 0, block + _DONE, block + _AAD, _AAD_SIZE) > 0
        and open_update(block, cipher, page, block + _DONE, out, size) > 0
        and control(block, cipher, _SET_TAG, _MAC, out + size) > 0
        and open_final(block, cipher, page + size, block + _DONE) > 0
    )
    if good and not size:
        for word in range(PAGE_SIZE >> 3):
            poke(page + (word << 3), 0)
    return good  # type: ignore[no-any-return]
