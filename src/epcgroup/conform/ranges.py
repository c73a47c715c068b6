"""The short forms of page lists: ``3 7-9``, ``1:4-9 1:S``, ``1*3 0 2``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from epcgroup.epc import SECS_INDEX
from epcgroup.errors import BadInput


def parse_pages(words: Sequence[str]) -> list[int]:
    """Page numbers of ``["3", "7-9"]``: 3, 7, 8, 9."""
    numbers: list[int] = []
    for word in words:
        first, dash, last = word.partition("-")
        try:
            numbers.extend(range(int(first), int(last if dash else first) + 1))
        except ValueError:
            raise BadInput(f"{word!r} is not a page or a range like 7-9") from None
    return numbers


def ranges(numbers: Iterable[int]) -> str:
    """``3 7-9`` for 3, 7, 8, 9; only neighbours that follow each other are joined."""
    return " ".join(_runs(("", number, "") for number in numbers))


def tagged_ranges(items: Iterable[tuple[str, int, str]]) -> str:
    """``1:4-9y`` for pages of the same prefix and suffix that follow each other."""
    return " ".join(_runs(items))


def run_lengths(values: Iterable[int]) -> str:
    """``1*3 0 2`` for 1, 1, 1, 0, 2."""
    words: list[str] = []
    last, count = 0, 0
    for value in [*values, None]:
        if count and value == last:
            count += 1
            continue
        if count:
            words.append(f"{last}*{count}" if count > 1 else str(last))
        if value is not None:
            last, count = value, 1
    return " ".join(words)


def _runs(items: Iterable[tuple[str, int, str]]) -> Iterable[str]:
    run: tuple[str, int, int, str] | None = None
    for prefix, number, suffix in items:
        if number == SECS_INDEX:
            if run is not None:
                yield _word(*run)
                run = None
            yield f"{prefix}S{suffix}"
        elif run is not None and run[0] == prefix and run[3] == suffix and number == run[2] + 1:
            run = (prefix, run[1], number, suffix)
        else:
            if run is not None:
                yield _word(*run)
            run = (prefix, number, number, suffix)
    if run is not None:
        yield _word(*run)


def _word(prefix: str, first: int, last: int, suffix: str) -> str:
    return f"{prefix}{first}{suffix}" if first == last else f"{prefix}{first}-{last}{suffix}"
