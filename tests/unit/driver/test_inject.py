"""Faults on order: the grammar, and what each kind does to a driver."""

from __future__ import annotations

import errno
import struct

import pytest

from epcgroup import epc
from epcgroup.driver import Driver, Fault
from epcgroup.driver.faulty import Dice, HostileStore
from epcgroup.driver.inject import CHANCES, Plan, parse
from epcgroup.errors import BadInput, NoEpc, Refused
from epcgroup.testing.frames import DictFrames


def test_a_plan_is_made_of_all_that_is_said() -> None:
    plan = parse(["tamper@5,tamper@0x6, enomem=0.5", "ewb-slow=1.5ms,backing=64M", "seed=9"])
    assert plan.at("tamper") == {5, 6}
    assert plan.at("sigbus") == frozenset()
    assert plan == Plan({"tamper": frozenset({5, 6})}, {"enomem": 0.5}, {"ewb-slow": 0.0015}, 64 << 20, 9)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "is none of tamper@PAGE"),
        ("bend@1", "is none of tamper@PAGE"),
        ("tamper", "is none of"),
        ("tamper=1", "is none of"),
        ("enomem@1", "is none of"),
        ("tamper@1,,enomem=1", "is none of"),
        ("tamper@-1", "a number of a page"),
        ("sigbus@x", "a number of a page"),
        ("enomem=2", "between 0 and 1"),
        ("eintr=often", "between 0 and 1"),
        ("ewb-slow=5", "a time has a unit"),
        ("eldu-slow=ms", "a time has a unit"),
        ("backing=much", "is not a size"),
        ("seed=-1", "whole number"),
    ],
)
def test_what_cannot_be_read_is_named_with_what_would_be_right(spec: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as refused:
        parse([spec])
    assert "--inject" in str(refused.value)


def test_chances_repeat_by_seed_and_do_not_depend_on_each_other() -> None:
    def falls(specs: str, kind: str, seed: int) -> list[bool]:
        dice = Dice(parse([specs]), seed)
        return [dice.falls(kind) for _ in range(200)]

    alone = falls("enomem=0.3", "enomem", 1)
    assert 30 < sum(alone) < 90
    assert falls("enomem=0.3,eintr=0.5", "enomem", 1) == alone
    assert falls("enomem=0.3", "enomem", 2) != alone
    assert not any(falls("enomem=0.3", "eintr", 1))


@pytest.mark.parametrize("kind", CHANCES)
def test_certain_and_impossible(kind: str) -> None:
    assert all(Dice(parse([f"{kind}=1"]), 1).falls(kind) for _ in range(50))
    assert not any(Dice(parse([f"{kind}=0"]), 1).falls(kind) for _ in range(50))


def test_a_page_with_a_memory_error_is_a_sigbus_for_the_first_enclave_only(world) -> None:
    w = world(plan=parse(["sigbus@3"]))
    first, second = w.build(), w.build()
    assert w.touch(first, 3) is Fault.SIGBUS
    assert w.touch(first, 4) is Fault.RESIDENT
    assert w.touch(second, 3) is Fault.RESIDENT


@pytest.mark.parametrize("kind", ["tamper", "mac-fail"])
def test_an_attacked_page_does_not_load(world, kind: str) -> None:
    w = world(plan=parse([f"{kind}@3"]))
    file = w.build(data=bytes(range(256)) * 128)
    w.evict(file)
    assert w.touch(file, 3) is Fault.SIGBUS
    assert w.touch(file, 4) is Fault.RESIDENT
    assert "page 0x3 cannot be loaded" in w.log[-1]


def test_a_refused_page_is_enomem_in_an_ioctl_and_a_sigbus_in_a_fault(world) -> None:
    w = world(plan=parse(["enomem=0"]))
    file = w.build()
    w.evict(file)
    w.driver.dice._chances["enomem"] = 1.0
    assert w.touch(file, 3) is Fault.SIGBUS
    assert w.touch(file, 100) is Fault.SIGBUS  # EAUG
    other = w.driver.open()
    assert w.fails(other, 0x4008A400, w.pointer(w.secs().pack())) == "ENOMEM"
    with pytest.raises(NoEpc):
        w.machine.fault_vepc(w.caller, w.machine.create_vepc(8), 0)
    w.driver.dice._chances["enomem"] = 0.0
    assert w.touch(file, 3) is Fault.RESIDENT
    w.driver.dice._chances["enomem"] = 1.0
    assert w.touch(file, 3) is Fault.RESIDENT  # it is there: nothing to allocate


def test_an_ioctl_is_interrupted_or_told_to_try_again() -> None:
    dice = Dice(parse(["eintr=1"]), 1)
    with pytest.raises(Refused) as refused:
        dice.ioctl(0xC030A401)
    assert refused.value.errno == errno.EINTR
    dice.ioctl(0x4008A403)  # PROVISION never waits
    dice = Dice(parse(["eagain=1"]), 1)
    dice.ioctl(0xC030A401)
    with pytest.raises(Refused) as refused:
        dice.ioctl(0xC018A407)
    assert refused.value.errno == errno.EAGAIN


def test_a_store_without_room_keeps_pages_where_they_are() -> None:
    store = HostileStore(parse(["enospc=1"]), Dice(parse(["enospc=1"]), 1))
    assert not store.reserve(1, 0)
    assert not HostileStore(parse(["backing=4K"]), Dice(Plan(), 1)).reserve(1, 0)
    assert HostileStore(parse(["backing=64K"]), Dice(Plan(), 1)).reserve(1, 0)


def test_the_seed_follows_from_the_root_key_and_is_said() -> None:
    said: list[str] = []
    Driver(
        epc_pages=64, policy=epc.by_name("standard"), frames=DictFrames(), root_key=struct.pack("<I12x", 77),
        plan=parse(["enomem=0.5"]), log=said.append,
    )  # fmt: skip
    assert said == ["faults are injected; with --inject seed=77 they fall alike again"]
