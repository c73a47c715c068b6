"""What a machine must have, or must not."""

from __future__ import annotations

import os

import pytest

from epcgroup.errors import MissingCapability
from epcgroup.live import platform


def test_shared_memory_in_huge_pages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of one page brings its neighbours, which no fault would ever tell of."""
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, _, at: write(fd, bytes(2 << 20), at))
    with pytest.raises(MissingCapability, match="shmem_enabled"):
        platform.require()


def test_this_machine_is_not_refused() -> None:
    platform.require()
