"""Enclaves that ask for their code as it was added, though others are left without a trap.

Who an enclave is, is known at EINIT, when its code has been patched long since (`space.Exits`). Nobody has
been inside before that, so the changes are taken back there, of evicted pages too. Such an enclave is still
entered without a trap; its EEXIT, EACCEPT and EMODPE trap.

Rejected: to patch at EINIT only. Then every enclave would have its code loaded once more.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from epcgroup.errors import BadInput
from epcgroup.live.enclave import threads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from epcgroup.live.devices import Device
    from epcgroup.live.enclave.processor import Processor
    from epcgroup.live.fastpath.space import Exits
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Job
    from epcgroup.live.world import World

#: In the environment of a program: the same as the option, for its enclaves.
VARIABLE = b"EPCGROUP_UNPATCHED"


def parse(words: Iterable[str]) -> frozenset[bytes]:
    """MRENCLAVEs and MRSIGNERs in hexadecimal digits, one or several (with commas) in each word.

    Raises BadInput.
    """
    found = set()
    for name in ",".join(words).split(","):
        if name and not re.fullmatch("[0-9a-fA-F]{64}", name):
            raise BadInput(f"unpatched {name!r}: write an MRENCLAVE or MRSIGNER, 64 hexadecimal digits")
        found.add(bytes.fromhex(name))
    return frozenset(found - {b""})


def of_program(world: World, command: str, environment: dict[bytes, bytes]) -> frozenset[bytes]:
    """What a program asks for in its environment."""
    try:
        return parse([environment.get(VARIABLE, b"").decode("ascii", "replace")])
    except BadInput as error:
        world.log(f"{VARIABLE.decode()} of {command}: {error}; it is ignored")
        return frozenset()


def initialised(world: World, task: Task, device: Device) -> Job:
    """EINIT has succeeded: take the jumps out of its code if that is wanted."""
    assert device.file is not None
    secs = device.file.state.secs
    world.debug(
        f"enclave {device.file.enclave.id} of {device.command}: "
        f"MRENCLAVE {secs.mrenclave.hex()}, MRSIGNER {secs.mrsigner.hex()}"
    )
    exits, fast = device.exits, task.mm.fast
    wanted = world.unpatched | (fast.unpatched if fast is not None else frozenset())
    if exits is None or not wanted & {secs.mrenclave, secs.mrsigner}:
        return
    yield from put_back(world, task, device, exits)


def put_back(world: World, task: Task, device: Device, exits: Exits) -> Job:
    """Take all jumps out of the enclave's code, in which nobody is."""
    while exits.changed:
        address, code = exits.changed[-1]
        change = functools.partial(_put_back, address, code)
        yield from threads.execute(world, task, device, change, restartable=False)
        exits.changed.pop()


def _put_back(address: int, code: bytes, access: Processor) -> None:
    access.replace_code(address, code)


__all__ = ["VARIABLE", "initialised", "of_program", "parse", "put_back"]
