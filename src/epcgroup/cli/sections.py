"""`--epc`: the size of the EPC, or its sections and their NUMA nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epcgroup.errors import BadInput
from epcgroup.units import PAGE_SIZE, parse_size

if TYPE_CHECKING:
    import argparse

    from epcgroup.epc import Section

MOST = 8  # sections that a driver takes note of


def add_epc(parser: argparse.ArgumentParser) -> None:
    """The option."""
    parser.add_argument(
        "--epc",
        default="128M",
        metavar="SIZE[@NODE],…",
        help="EPC of the machine (default 128M); 64M@0,64M@1: in sections on NUMA nodes",
    )


def parse_sections(text: str) -> list[tuple[int, int]]:
    """Pages and node of each section.

    >>> parse_sections("64M@0,32M@1"), parse_sections("700 pages")
    ([(16384, 0), (8192, 1)], [(700, 0)])
    """
    sections = []
    for part in text.split(","):
        size, at, node = part.partition("@")
        if at and not (node.isascii() and node.isdigit() and int(node) < 1024):
            raise BadInput(f"--epc {text!r}: {part!r} names no NUMA node; write SIZE@NODE, e.g. 64M@0,64M@1")
        pages = parse_size(size, "--epc") // PAGE_SIZE
        if pages < 1:
            raise BadInput(f"--epc {text!r}: {part!r} is 0 pages; it takes one at least ({PAGE_SIZE} bytes)")
        sections.append((pages, int(node or 0)))
    if len(sections) > MOST:
        raise BadInput(f"--epc {text!r}: an EPC has at most {MOST} sections")
    return sections


def to_sections(parsed: list[tuple[int, int]]) -> list[Section]:
    """The same for the engine."""
    from epcgroup.epc import Section

    return [Section(pages, node) for pages, node in parsed]
