"""`--epc 64M@0,64M@1`."""

from __future__ import annotations

import pytest

from epcgroup.cli.sections import parse_sections
from epcgroup.errors import BadInput


def test_sections_are_read_in_their_order() -> None:
    assert parse_sections("4 pages@1,8K@0") == [(4, 1), (2, 0)]
    assert parse_sections("64M") == [(16384, 0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("64M@", "names no NUMA node"),
        ("64M@x,1M@0", "names no NUMA node"),
        ("64M@-1", "names no NUMA node"),
        ("64M@0,100@1", "'100@1' is 0 pages"),
        ("64M,,1M", "is not a size"),
        (",".join(["1M@0"] * 9), "at most 8 sections"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        parse_sections(text)
