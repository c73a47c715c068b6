"""What passes through the pager is written down, however it was loaded."""

from __future__ import annotations

from epcgroup.epc import STANDARD
from epcgroup.epc.reclaim import reclaim
from epcgroup.live.paging.recording import _Recorder
from epcgroup.testing import World


def test_loads_that_were_done_in_machine_code_are_recorded_as_those_that_python_did() -> None:
    found = []
    for at_once in (False, True):
        world = World(STANDARD, 512)
        world.group("/a")
        enclave, caller = world.enclave("/a", 60), world.caller("/a")
        while enclave.child_count:
            reclaim(world.machine, world.machine.groups.root, 16, ignore_age=True)
        world.touch(enclave, [0])  # and with it the SECS
        recorder = _Recorder(world.machine)
        world.machine.pager = recorder
        if at_once:
            world.machine.arrived(caller, enclave, [7, 3, 5])
        else:
            for index in (7, 3, 5):
                world.machine.fault(caller, enclave, index)
        found.append((recorder.keys, recorder.enclaves, recorder.indices))
    assert list(found[0][2]) == [7, 3, 5]
    assert found[0] == found[1]
