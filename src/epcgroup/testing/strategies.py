"""Hypothesis strategies for machines, small enough that everything collides.

Needs ``hypothesis``; import it by name, ``epcgroup.testing`` does not.
"""

from __future__ import annotations

from hypothesis import strategies as st

from epcgroup.epc import POLICIES, Policy, with_soft_limits
from epcgroup.units import PAGE_SIZE

PATHS = ("/a", "/b", "/a/c", "/a/d", "/a/c/e")
"""Groups that a random sequence creates and removes, at most three levels deep."""


def policies() -> st.SearchStrategy[Policy]:
    """Every policy there is."""
    return st.sampled_from(list(POLICIES.values()))


def extended_policies() -> st.SearchStrategy[Policy]:
    """Every policy there is, without and with misc.low and misc.high."""
    return policies() | policies().map(with_soft_limits)


def epc_sizes() -> st.SearchStrategy[int]:
    """EPC sizes in pages: from too small for anything to above the fixed watermarks."""
    return st.sampled_from((6, 16, 24, 48, 100, 200))


def limits() -> st.SearchStrategy[int | None]:
    """Limits in bytes: none, tiny, unaligned, and around the steps of the goals."""
    pages = st.integers(0, 8) | st.integers(0, 140)
    return st.none() | pages.map(lambda n: n * PAGE_SIZE) | pages.map(lambda n: n * PAGE_SIZE + 77)


def paths() -> st.SearchStrategy[str]:
    """A path of a small tree; whether it exists is the sequence's business."""
    return st.sampled_from(("/", *PATHS))


def page_runs(size: int = 64) -> st.SearchStrategy[range]:
    """Some neighbouring pages of an enclave of ``size`` pages."""
    return st.builds(
        lambda first, count: range(first, min(first + count, size)),
        st.integers(0, size - 1),
        st.integers(1, 40),
    )
