"""A signing key that is quick to sign with, and worth nothing.

An enclave's certificate costs 3 ms, most of what an input costs: a power of 3072 bits. Modulo a power of a
small prime a cube root needs no power: it is found modulo the prime and lifted, twice the digits each time
(Hensel). The one who verifies, and that is whom the fuzzer tries, cannot tell and does all its work.
"""

from __future__ import annotations

from functools import cache

from epcgroup.sgx.sign import SigningKey

_PRIME, _POWER = (1 << 32) - 5, 96  # the largest below 2^32; as it is 2 modulo 3, every number has a root
_MODULI = [_PRIME**power for power in (2, 4, 8, 16, 32, 64, _POWER)]
_THIRD = pow(3, -1, _MODULI[-1])


class WeakKey(SigningKey):
    """RSA-3072 with exponent 3 by a modulus that everybody can factor."""

    __slots__ = ()

    def cube_root(self, number: int) -> int:
        inverse = pow(number, -pow(3, -1, _PRIME - 1), _PRIME)  # 1 over the root, then by Newton's iteration
        for modulus in _MODULI:
            inverse = inverse * (4 - number * inverse**3 % modulus) * _THIRD % modulus
        return number * inverse * inverse % _MODULI[-1]


@cache
def key() -> WeakKey:
    return WeakKey(_MODULI[-1], 0)
