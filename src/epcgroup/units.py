"""Bytes and pages: what a person writes, what the engine counts.

A size on the command line is a whole number of bytes with an optional binary
unit (``64M``, ``16 MiB``, ``64Mi``), a number of EPC pages (``16384 pages``), or the word
``max`` where a limit may be absent.
"""

from __future__ import annotations

import re

from epcgroup.errors import BadInput

PAGE_SIZE = 4096
PAGE_SHIFT = 12
U64_MAX = 2**64 - 1

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"\s*(\d+)\s*(?:([kmgt]?)b?|([kmgt])ib?|(p(?:ages?)?))\s*\Z", re.IGNORECASE)


def parse_size(text: str, option: str = "") -> int:
    """Bytes in ``text``: ``"64M"``, ``"64 MiB"``, ``"16384 pages"``, ``"4096"``.

    >>> parse_size("64M"), parse_size("2 pages")
    (67108864, 8192)

    Raises BadInput naming the text (and the ``option`` it was given to) and the accepted forms.
    """
    match = _SIZE.match(text)
    shown = f"{option} {text!r}" if option else repr(text)
    if match is None:
        raise BadInput(f"{shown} is not a size; write 64M, 1G, 4096 or '16384 pages'")
    number, short, binary, pages = match.groups()
    factor = PAGE_SIZE if pages else _UNITS[(binary or short).lower()]
    size = int(number) * factor
    if size > U64_MAX:
        raise BadInput(f"{shown} is larger than 2^64-1 bytes")
    return size


def parse_limit(text: str, option: str = "") -> int | None:
    """A limit in bytes, or None for ``max``.

    Raises BadInput as parse_size does.
    """
    return None if text.strip() == "max" else parse_size(text, option)


def format_size(size: int) -> str:
    """``size`` bytes in the largest binary unit that loses nothing visible.

    >>> format_size(67108864), format_size(6144), format_size(100)
    ('64M', '6K', '100')
    """
    for unit, factor in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if size >= factor:
            value = size / factor
            return f"{value:.0f}{unit}" if size % factor == 0 else f"{value:.1f}{unit}"
    return str(size)


def format_limit(limit: int | None) -> str:
    """As format_size; ``max`` for no limit."""
    return "max" if limit is None else format_size(limit)


def pages(size: int) -> int:
    """Whole EPC pages in ``size`` bytes, rounded down."""
    return size >> PAGE_SHIFT


def page_ceil(size: int) -> int:
    """EPC pages needed for ``size`` bytes, rounded up."""
    return (size + PAGE_SIZE - 1) >> PAGE_SHIFT
