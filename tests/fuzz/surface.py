"""What a hostile program can reach, driven by bytes: ioctls, ENCLU, faults, mappings, debug access, limits.

A byte string is a programme of operations (`hostile`), played on a machine that has a neighbour (`stage`).
Numbers come from a list of telling ones or are taken as they stand (`words`).

What must hold, whatever the bytes are: only the documented refusals come back; every invariant of the
engine (spec 11) and of sealing holds at the end; mappings are what a page by page model says; the neighbour's
pages are what they were; and when the program is gone, so is everything it had.

    python -m tests.fuzz.surface -runs=100000           coverage-guided, with atheris (`run`: several at once)
    python -m tests.fuzz.surface FILE…                  inputs again, in this order
    python -m tests.fuzz.surface --random SECONDS SEED  random inputs, no atheris

An input that breaks something is written to a file by atheris; those that its machine had played before it,
to a directory `before-…` beside it. If FILE alone shows nothing, play `before-…/* FILE`.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__" and sys.argv[1:2] and sys.argv[1][0] == "-" and sys.argv[1] != "--random":
    import atheris

    with atheris.instrument_imports(include=["epcgroup"], exclude=["epcgroup.epc.invariants"]):
        import epcgroup.driver
        import epcgroup.live.enclave.processor
        import epcgroup.live.fastpath.sites
        import epcgroup.live.paging.mappings  # noqa: F401 - the import is what instruments

from epcgroup.driver import BusError
from epcgroup.errors import Refused
from epcgroup.sgx.faults import LeafFault

from .hostile import Hostile
from .run import COUNTER, Count
from .stage import Stage
from .words import Words

POLICIES = ("standard", "v5", "v17")
_stages: dict[str, Stage] = {}


def one_input(data: bytes) -> None:
    """Play one input; raises whatever should not have happened."""
    words = Words(data)
    policy = POLICIES[words.byte() % len(POLICIES)]
    stage = _stages.get(policy)
    if stage is None:
        stage = _stages[policy] = Stage(policy)
    stage.played.append(data)
    try:
        _play(stage, words)
        if stage.worn:
            del _stages[policy]
            stage.close()
    except BaseException:
        _stages.pop(policy, None)
        _keep(stage.played[:-1])
        raise


def _play(stage: Stage, words: Words) -> None:
    program = Hostile(stage)
    while words.more:
        with contextlib.suppress(Refused, OSError, LeafFault, BusError):  # the documented answers
            program.act(words)
    stage.check_meanwhile()
    program.mappings.check()
    program.end()
    stage.check_after()


def _keep(inputs: list[bytes]) -> None:
    """Write down what the machine had seen before it broke."""
    prefix = next((word.partition("=")[2] for word in sys.argv if word.startswith("-artifact_prefix=")), None)
    if prefix is None:
        return
    directory = Path(f"{prefix}before-{os.getpid()}")
    directory.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(inputs):
        (directory / f"{number:03}").write_bytes(data)


def forget_machines() -> None:
    """The next inputs are played on new ones."""
    _stages.clear()


def random_inputs(seconds: float, seed: int, least: int = 0) -> int:
    """Random inputs for a while, and at least so many; how many."""
    chance, until, count = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < until or count < least:
        data = chance.randbytes(chance.randrange(8, 400))
        try:
            one_input(data)
        except BaseException:
            print(f"input: {data.hex()}", file=sys.stderr)
            raise
        count += 1
    return count


def counted(play: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """``play``, that counts for whoever asked for it (`run`)."""
    path = os.environ.get(COUNTER)
    if path is None:
        return play
    count = Count(Path(path))

    def played(data: bytes) -> None:
        play(data)
        count.value += 1

    return played


def main() -> None:
    if sys.argv[1:2] == ["--random"]:
        print(f"{random_inputs(float(sys.argv[2]), int(sys.argv[3]))} inputs, nothing broken")
    elif sys.argv[1:] and all(Path(word).is_file() for word in sys.argv[1:]):
        for word in sys.argv[1:]:
            one_input(Path(word).read_bytes())
    else:
        atheris.Setup(sys.argv, counted(one_input))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
