"""The enclave mappings of an address space, held against a page-by-page model."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from epcgroup.live.paging.mm import AddressSpace, EnclaveVma
from epcgroup.units import PAGE_SIZE

PAGES = 24
ranges = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 8)).map(
    lambda r: (r[0], min(r[0] + r[1], PAGES))
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("map"), ranges, st.integers(0, 1), st.integers(0, 7)),
        st.tuples(st.just("unmap"), ranges),
        st.tuples(st.just("protect"), ranges, st.integers(0, 7)),
    ),
    max_size=30,
)


class SetDevice(SimpleNamespace):
    """Hashable, as a Device is."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


@given(operations)
def test_mappings_are_what_a_page_table_would_say(script: list[Any]) -> None:
    devices: list[Any] = [SetDevice(mms=set(), base=0), SetDevice(mms=set(), base=0)]
    space = AddressSpace(1)
    model: dict[int, tuple[int, int]] = {}  # page → (device, protection)
    for op, (first, last), *rest in script:
        start, end = first * PAGE_SIZE, last * PAGE_SIZE
        if op == "map":
            which, prot = rest
            space.map(EnclaveVma(start, end, devices[which], prot, prot))
            model.update(dict.fromkeys(range(first, last), (which, prot)))
        elif op == "unmap":
            space.unmap(start, end)
            for page in range(first, last):
                model.pop(page, None)
        else:
            space.protect(start, end, prot=rest[0])
            for page in range(first, last):
                if page in model:
                    model[page] = (model[page][0], rest[0])
        for page in range(PAGES):
            vma = space.find(page * PAGE_SIZE + 17)
            assert (vma is None) == (page not in model)
            if vma is not None:
                assert (devices.index(vma.device), vma.prot) == model[page]
        for which, device in enumerate(devices):
            assert (space in device.mms) == any(found == which for found, _ in model.values())
    vmas = list(space)
    assert all(before.end <= after.start for before, after in itertools.pairwise(vmas))
    assert not any(before.continued_by(after) for before, after in itertools.pairwise(vmas))


def test_a_forked_address_space_maps_the_same_and_is_counted_with_the_device() -> None:
    device: Any = SetDevice(mms=set(), base=0, guest=None)
    parent = AddressSpace(1)
    parent.map(EnclaveVma(0, PAGE_SIZE, device, 3, 3))
    child = parent.forked(2)
    child.unmap(0, PAGE_SIZE)
    assert parent.find(0) is not None
    assert device.mms == {parent}


def test_a_forked_address_space_lacks_what_is_kept_from_children() -> None:
    """MADV_DONTFORK of a part."""
    device: Any = SetDevice(mms=set(), base=0, guest=None)
    parent = AddressSpace(1)
    parent.map(EnclaveVma(0, 4 * PAGE_SIZE, device, 3, 3))
    parent.keep_from_children(PAGE_SIZE, 2 * PAGE_SIZE)
    parent.protect(0, 4 * PAGE_SIZE, prot=1)
    child = parent.forked(2)
    assert [child.find(page * PAGE_SIZE) is not None for page in range(4)] == [True, False, True, True]
    assert parent.find(PAGE_SIZE) is not None


def test_a_forked_address_space_has_no_virtual_epc() -> None:
    """VM_DONTCOPY: the kernel does not copy that mapping either."""
    device: Any = SetDevice(mms=set(), base=0, guest=object())
    parent = AddressSpace(1)
    parent.map(EnclaveVma(0, PAGE_SIZE, device, 3, 3, 7 * PAGE_SIZE))
    assert parent.forked(2).find(0) is None
    assert device.mms == {parent}


def test_a_mapping_of_virtual_epc_that_is_cut_shows_the_same_pages() -> None:
    device: Any = SetDevice(mms=set(), base=0, guest=object())
    space = AddressSpace(1)
    start, offset = 16 * PAGE_SIZE, 100 * PAGE_SIZE
    space.map(EnclaveVma(start, start + 8 * PAGE_SIZE, device, 3, 3, offset - start))
    space.unmap(start, start + 3 * PAGE_SIZE)
    vma = space.find(start + 3 * PAGE_SIZE)
    assert vma is not None
    assert vma.index(start + 3 * PAGE_SIZE + 5) == 103


def test_an_address_space_that_ends_is_forgotten_by_its_devices() -> None:
    device: Any = SetDevice(mms=set(), base=0)
    space = AddressSpace(1)
    space.map(EnclaveVma(0, PAGE_SIZE, device, 3, 3))
    space.close()
    assert not device.mms
    assert not space.alive
