"""Synthetic access patterns, seeded: the same seed gives the same accesses.

| pattern | accesses |
|---------|----------|
| uniform | each of ``pages`` equally likely |
| zipf    | the k-th most popular of ``pages`` with weight k^-alpha; popularity is scattered over addresses |
| scan    | 0, 1, 2 … ``pages``-1, and again |
| loop    | the same over the first ``hot`` pages; every ``every``-th access goes to a uniform page |
| drift   | uniform in a window of ``window`` pages that moves on by one page every ``every`` accesses |
| phases  | each part of ``phases`` (a pattern with ``accesses``) in turn, then again |
| mixture | each access from one of ``parts``, chosen by its ``weight`` |

Tenants that come and go are a scenario's business (``arrivals``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from epcgroup.errors import BadInput
from epcgroup.sim.kernel.draw import Weighted

Pages = npt.NDArray[np.int32]


class Pattern:
    """An endless stream of page numbers; ``take`` gives the next ones."""

    def __init__(self, spec: Mapping[str, Any], pages: int, rng: np.random.Generator) -> None:
        self.pages = int(spec.get("pages", pages))
        self.rng = rng
        self.at = 0
        if not 0 < self.pages <= pages:
            raise BadInput(f"pages is {self.pages}; want 1 to {pages}, the enclave's")

    def take(self, count: int) -> Pages:
        """The next ``count`` accesses."""
        raise NotImplementedError


class Uniform(Pattern):
    """Every page equally likely."""

    def take(self, count: int) -> Pages:
        """The next ``count`` accesses."""
        return self.rng.integers(0, self.pages, count, np.int32)


class Zipf(Pattern):
    """Popular pages by a power law."""

    def __init__(self, spec: Mapping[str, Any], pages: int, rng: np.random.Generator) -> None:
        super().__init__(spec, pages, rng)
        weights = np.arange(1, self.pages + 1, dtype=np.float64) ** -float(spec.get("alpha", 1.0))
        self._ranks = Weighted(weights)
        self._where = rng.permutation(self.pages).astype(np.int32)

    def take(self, count: int) -> Pages:
        """The next ``count`` accesses."""
        found: Pages = self._where[self._ranks.take(self.rng, count)]
        return found


class Scan(Pattern):
    """All pages in order, again and again."""

    def take(self, count: int) -> Pages:
        """The next ``count`` accesses."""
        found = (np.arange(self.at, self.at + count) % self.pages).astype(np.int32)
        self.at = (self.at + count) % self.pages
        return found


class Loop(Pattern):
    """A hot loop with rare excursions."""

    def __init__(self, spec: Mapping[str, Any], pages: int, rng: np.random.Generator) -> None:
        super().__init__(spec, pages, rng)
        self._hot = int(spec.get("hot", max(1, self.pages // 10)))
        self._every = int(spec.get("every", 100))
        if not 0 < self._hot <= self.pages or self._every < 1:
            raise BadInput(f"hot is {self._hot}, every {self._every}; want 1 to {self.pages}, and at least 1")

    def take(self, count: int) -> Pages:
        """The next ``count`` accesses."""
        number = np.arange(self.at, self.at + count)
        self.at += count
        far = self.rng.integers(0, self.pages, count)
        return np.where(number % self._every == self._every - 1, far, number % self._hot).astype(np.int32)


class Drift(Pattern):
    """A working set that moves."""

    def __init__(self, spec: Mapping[str, Any], pages: int, rng: np.random.Generator) -> None:
        super().__init__(spec, pages, rng)
        self._window = int(spec.get("window", max(1, self.pages // 10)))
        self._every = int(spec.get("every", 100))
        if not 0 < self._window <= self.pages or self._every < 1:
            raise BadInput(f"window is {self._window}; want 1 to {self.pages}; every at least 1")

    def take(self, count: int) -> Pages:
        """The next ``count`` accesses."""
        base = np.arange(self.at, self.at + count) // self._every
        self.at += count
        return ((base + self.rng.integers(0, self._window, count)) % self.pages).astype(np.int32)


class Phases(Pattern):
    """One pattern after the other."""

    def __init__(self, spec: Mapping[str, Any], pages: int, rng: np.random.Generator) -> None:
        super().__init__(spec, pages, rng)
        parts = _tables(spec.get("phases"))
        if not parts or any(int(part.get("accesses", 0)) < 1 for part in parts):
            raise BadInput("phases: want a list of patterns, each with accesses of at least 1")
        self._parts = [(pattern(part, pages, rng), int(part["accesses"])) for part in parts]
        self._now = 0
        self._left = self._parts[0][1]

    def take(self, count: int) -> Pages:
        """The next ``count`` accesses."""
        found = [np.zeros(0, np.int32)]
        while count:
            here = min(count, self._left)
            found.append(self._parts[self._now][0].take(here))
            count -= here
            self._left -= here
            if not self._left:
                self._now = (self._now + 1) % len(self._parts)
                self._left = self._parts[self._now][1]
        return np.concatenate(found)


class Mixture(Pattern):
    """Several patterns at once."""

    def __init__(self, spec: Mapping[str, Any], pages: int, rng: np.random.Generator) -> None:
        super().__init__(spec, pages, rng)
        parts = _tables(spec.get("parts"))
        weights = np.array([float(part.get("weight", 1)) for part in parts])
        if not parts or not weights.min() > 0:
            raise BadInput("parts: want a list of patterns, each with a weight above 0")
        self._parts = [pattern(part, pages, rng) for part in parts]
        self._sums = np.cumsum(weights / weights.sum())

    def take(self, count: int) -> Pages:
        """The next ``count`` accesses."""
        which = np.searchsorted(self._sums, self.rng.random(count))
        found = np.zeros(count, np.int32)
        for number, part in enumerate(self._parts):
            mine = which == number if number < len(self._parts) - 1 else which >= number
            found[mine] = part.take(int(mine.sum()))
        return found


def _tables(parts: object) -> list[Mapping[str, Any]]:
    """The parts of a pattern; none if what is written there is no list of tables."""
    right = isinstance(parts, list) and all(isinstance(part, Mapping) for part in parts)
    return parts if right else []  # type: ignore[return-value]


PATTERNS: dict[str, type[Pattern]] = {
    "uniform": Uniform,
    "zipf": Zipf,
    "scan": Scan,
    "loop": Loop,
    "drift": Drift,
    "phases": Phases,
    "mixture": Mixture,
}


def pattern(spec: Mapping[str, Any], pages: int, rng: np.random.Generator) -> Pattern:
    """The pattern that ``spec`` describes, over an enclave of ``pages`` pages.

    >>> pattern({"pattern": "scan"}, 4, np.random.default_rng(1)).take(6).tolist()
    [0, 1, 2, 3, 0, 1]
    """
    name = spec.get("pattern", "uniform")
    if name not in PATTERNS:
        raise BadInput(f"no pattern {name!r}; there are {', '.join(PATTERNS)}")
    return PATTERNS[name](spec, pages, rng)
