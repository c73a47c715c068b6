"""Amounts as the clients write them: Kubernetes quantities, plain bytes, MiB, pages.

Each client has a form of its own, and a number in the wrong one is valid text with
another meaning: ``64`` is 64 bytes to Kubernetes and 64 MiB to Alibaba's plug-in,
``64m`` is 0.064 bytes. So every reader here is strict about its own form.
"""

from __future__ import annotations

import re
from fractions import Fraction

from epcgroup.errors import BadInput
from epcgroup.units import U64_MAX

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,3}))?\Z")
_SUFFIXES = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 10**3),
    "k": Fraction(10**3),
    **{letter: Fraction(10 ** (3 * power)) for power, letter in enumerate("MGTPE", 2)},
    **{f"{letter}i": Fraction(1 << (10 * power)) for power, letter in enumerate("KMGTPE", 1)},
}


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity, fractions rounded up as Kubernetes does.

    >>> quantity("64Mi"), quantity("64M"), quantity("1e6"), quantity("64m")
    (67108864, 64000000, 1000000, 1)

    Raises BadInput.
    """
    match = _QUANTITY.match(text)
    if match is None:
        raise BadInput(f"{text!r} is no Kubernetes quantity; write 64Mi, 1Gi or a number of bytes")
    number, suffix, exponent = match.groups()
    value = Fraction(number) * (_SUFFIXES[suffix] if suffix else Fraction(10) ** int(exponent or 0))
    if value < 0 or value > U64_MAX:
        raise BadInput(f"{text!r} is no amount of memory; write 64Mi, 1Gi or a number of bytes")
    return -(-value.numerator // value.denominator)


def whole_bytes(text: str) -> int:
    """A decimal number of bytes and nothing else: what NRI's plug-in and misc.max take.

    Raises BadInput that says what the writer may have meant.
    """
    if text.isascii() and text.isdigit() and int(text) <= U64_MAX:
        return int(text)
    try:
        meant = f"; {text!r} would be {quantity(text)}"
    except BadInput:
        meant = ""
    raise BadInput(f"{text!r} is no whole number of bytes without a suffix{meant}")


def times(unit: int, text: str) -> int:
    """A whole number of ``unit`` bytes (older plug-ins count MiB or pages). Raises BadInput."""
    if not (text.isascii() and text.isdigit()):
        raise BadInput(f"{text!r} is no whole number; the unit is {unit} bytes")
    return int(text) * unit
