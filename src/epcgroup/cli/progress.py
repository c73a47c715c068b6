"""How far a long command is: a bar with rate and time left, on a terminal, after two seconds."""

from __future__ import annotations

import sys
import time

_AFTER = 2.0  # seconds
_EVERY = 0.2
_WIDTH = 30


class Progress:
    """Use it in a ``with`` block; ``update`` shows the share and what was counted so far."""

    def __init__(self, unit: str = "accesses") -> None:
        self._unit = unit
        self._began = time.monotonic()
        self._shown = 0.0
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._shown:
            print(file=sys.stderr)

    def update(self, share: float, count: int) -> None:
        """Show how far it is."""
        now = time.monotonic()
        took = now - self._began
        if not self._terminal or took < _AFTER or now - self._shown < _EVERY:
            return
        self._shown = now
        share = min(share, 1.0)
        left = f"{took / share - took:.0f} s left" if share > 0 else "…"
        filled = int(share * _WIDTH)
        bar = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {share:4.0%}"
        rate = count / took
        each = f"{rate / 1e6:.1f} M" if rate > 1e5 else f"{rate:.0f}"
        line = f"{bar}  {each} {self._unit}/s  {left}"
        print(f"\r{line:78}", end="", file=sys.stderr, flush=True)
