"""A killed supervisor's programs never see memory that nobody keeps any more.

The kernel closes a dying process's descriptors before it kills what that traced. Here the moment between
the two is as long as can be.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.machine import NEEDS
from tests.e2e.processes import wait_until_gone
from tests.programs.build import build

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

#: Dies as by kill -9: first its userfaultfds, 0.3 s later all else.
DIES_SLOWLY = """
import os, signal, sys, time
from epcgroup.live import Supervisor

machine = Supervisor(epc_pages=100, page_service=sys.argv[3])

def die(snapshot):
    if sum(group.pages_in for group in snapshot.groups) < 500:
        return
    for task in machine.world.tasks.values():
        if task.mm.service is not None:
            task.mm.service.end()
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)

print(machine.spawn([sys.argv[1], sys.argv[2], "200"]), flush=True)
machine.run(die, 0.05)
"""


@pytest.mark.parametrize("service", ["python", "compiled"])
def test_evicted_memory_is_never_seen_as_zeros(tmp_path: Path, service: str) -> None:
    """The program waits for its page in the last moments of its life, and dies waiting."""
    command = [sys.executable, "-c", DIES_SLOWLY, build() / "load", "watch", service]
    with (tmp_path / "output").open("w+") as output:
        died = subprocess.run(command, stdout=output, stderr=output, timeout=120, check=False)
        output.seek(0)
        pid, *said = output.read().splitlines()
    assert died.returncode == -signal.SIGKILL, said
    assert said[0] == "ready"
    assert "the heap changed" not in said  # (that its pages are no more served it may well be told)
    assert not wait_until_gone([int(pid)])
