"""INIT: its checks in order, with real signatures and measurements (spec 6.5)."""

from __future__ import annotations

import pytest

from epcgroup.driver import Ioctl
from epcgroup.sgx.layouts import Attribute

INIT = Ioctl.INIT
PROVISION = int(Attribute.PROVISIONKEY | Attribute.MODE64BIT)

pytestmark = pytest.mark.parametrize("default_policy", ["v5", "v17", "standard"])


def test_a_certified_enclave_starts_and_knows_its_signer(world):
    w = world()
    file = w.build()
    assert file.initialised
    assert file.enclave.initialised
    assert any(file.state.secs.mrsigner)


def test_an_enclave_starts_once_and_only_after_create(world):
    w = world()
    assert w.fails(w.driver.open(), INIT, 0xBAD) == "EINVAL"
    assert w.fails(w.build(), INIT, 0xBAD) == "EINVAL"


def test_unreadable_arguments_are_efault(world):
    w = world()
    file = w.build(init=False)
    assert w.fails(file, INIT, 0xBAD000) == "EFAULT"
    assert w.fails(file, INIT, w.mem.put((0xBAD000).to_bytes(8, "little"))) == "EFAULT"


def test_a_foreign_vendor_is_einval_before_the_attributes_are_looked_at(world):
    w = world()
    file = w.build(init=False, attributes=PROVISION)
    assert w.fails(file, INIT, w.init_arg(file, vendor=5)) == "EINVAL"


@pytest.mark.parametrize("attribute", [Attribute.PROVISIONKEY, Attribute.EINITTOKENKEY])
def test_a_privileged_attribute_is_eacces_before_the_certificate_is_checked(world, attribute):
    w = world()
    file = w.build(init=False, attributes=int(Attribute.MODE64BIT | attribute))
    assert w.fails(file, INIT, w.init_arg(file, mrenclave=bytes(32))) == "EACCES"


@pytest.mark.parametrize(
    "change", [{"attributes": 4 | 8}, {"attributes": 5}, {"xfrm": 0x10007}, {"miscselect": 2}]
)
def test_a_certificate_that_insists_on_the_impossible_is_einval(world, change):
    w = world()
    file = w.build(init=False)
    assert w.fails(file, INIT, w.init_arg(file, mrenclave=bytes(32), **change)) == "EINVAL"


@pytest.mark.parametrize(
    "change",
    [
        {"mrenclave": bytes(32)},
        {"attributes": int(Attribute.MODE64BIT | Attribute.DEBUG)},
        {"xfrm": 3},
        {"miscselect": 1},
        {"isv_family_id": b"f" * 16},
    ],
)
def test_a_certificate_for_something_else_is_eperm(world, change):
    w = world()
    file = w.build(init=False)
    assert w.fails(file, INIT, w.init_arg(file, **change)) == "EPERM"
    assert not file.initialised
    assert w.ioctl(file, INIT, w.init_arg(file)) == 0  # nothing was harmed


@pytest.mark.parametrize("at", [0, 44, 128, 512, 516, 908, 1039, 1040, 1424])
def test_a_flipped_bit_in_the_certificate_is_eperm(world, at):
    w = world()
    file = w.build(init=False)
    pointer = w.init_arg(file)
    raw_at = int.from_bytes(w.mem.read(pointer, 8), "little") + at
    w.mem.write(raw_at, bytes([w.mem.read(raw_at, 1)[0] ^ 1]))
    assert w.fails(file, INIT, pointer) == "EPERM"
    assert any("EINIT refused" in line for line in w.log)


def test_a_flipped_byte_of_a_measured_page_is_eperm(world):
    w = world()
    good, bad = w.create(), w.create()
    w.add(good, b"A" * 4096)
    w.add(bad, b"A" * 4095 + b"B")
    assert w.fails(bad, INIT, w.init_arg(good)) == "EPERM"
    assert w.ioctl(good, INIT, w.init_arg(good)) == 0


def test_the_provision_device_unlocks_the_provisioning_attribute(world):
    w = world()
    file = w.build(init=False, attributes=PROVISION)
    w.mem.provision.add(7)

    def argument(fd: int) -> int:
        return w.mem.put(fd.to_bytes(8, "little"))

    assert w.fails(file, Ioctl.PROVISION, 0xBAD000) == "EFAULT"
    assert w.fails(file, Ioctl.PROVISION, argument(8)) == "EINVAL"
    assert w.fails(file, INIT, w.init_arg(file)) == "EACCES"
    assert w.ioctl(file, Ioctl.PROVISION, argument(7)) == 0
    assert w.ioctl(file, INIT, w.init_arg(file)) == 0


def test_provision_works_in_any_state(world):
    w = world()
    w.mem.provision.add(7)
    for file in (w.driver.open(), w.create(), w.build()):
        assert w.ioctl(file, Ioctl.PROVISION, w.mem.put((7).to_bytes(8, "little"))) == 0
