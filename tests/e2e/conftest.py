"""Both ways into an enclave and out of it, for every test whose programs go in.

A test that asks for `enclu` runs twice: all its programs enter by the jumps of the fast way, then all by
traps. They are told by their environment, which also reaches programs of `serve`, `exec` and of a shell in
between. Other tests ask by option (`--enclu`), which is the same thing.

Without a second way are tests in which nobody enters: those of /dev/sgx_vepc (a guest's pages are only
touched), of loading that is refused, of programs that have no enclave, and of commands that look from
outside; and those of other rooms, to which an enclave is just somebody who pages.
"""

from __future__ import annotations

import pytest
from tests.e2e.machine import ENCLU


@pytest.fixture(params=ENCLU)
def enclu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way into enclaves and out of them in this test."""
    way: str = request.param
    monkeypatch.setenv("EPCGROUP_ENCLU", way)
    return way
