"""Every kind of process can own an enclave: of other users, in other namespaces, of other languages."""

from __future__ import annotations

import pytest
from tests.e2e.machine import NEEDS, programs, run

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(300)]

CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--net")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
CASES = ("cpuid", "enter_vdso", "enter_bare", "heap", "two_enclaves", "threads")


@pytest.mark.needs("root")
@pytest.mark.parametrize("wrap", [CONTAINER, NOBODY], ids=["container", "nobody"])
def test_programs_that_cannot_see_the_supervisor_get_the_device(wrap: tuple[str, ...]) -> None:
    """It is handed to them: they cannot open /proc/PID/fd of a process that they do not see or own."""
    ended = run(*wrap, programs() / "basics", *CASES, epc=128)
    assert ended.cases == dict.fromkeys(CASES, "ok"), ended.errors
