"""The stress enclave before it is loaded: pages, measurement, certificate."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epcgroup.errors import BadInput
from epcgroup.sgx.layouts import SgxError, SigStruct, Tcs
from epcgroup.sgx.sign import SigningKey, verify
from epcgroup.stress.code import CODE, HEAP_FIELDS
from epcgroup.stress.image import Image

PAGE = 4096


@given(threads=st.integers(1, 16), heap=st.integers(16, 5000))
def test_segments_cover_every_page_once_and_in_order(threads: int, heap: int) -> None:
    image = Image(threads, heap)
    offset = 0
    for segment in image.segments():
        assert segment.offset == offset
        assert len(segment.contents) in (0, segment.length)
        offset += segment.length
    assert offset == image.pages * PAGE == image.heap + heap * PAGE
    assert image.size >= offset
    assert image.size & (image.size - 1) == 0
    assert image.size < 2 * offset


def test_code_page_is_told_where_the_heap_is() -> None:
    image = Image(threads=3, heap_pages=77)
    code = next(image.segments()).contents
    assert struct.unpack_from("<QQ", code, HEAP_FIELDS) == (image.heap, 77)
    assert code[HEAP_FIELDS + 16 : len(CODE)] == CODE[HEAP_FIELDS + 16 :]
    assert code[len(CODE) :] == bytes(PAGE - len(CODE))


def test_every_thread_has_a_tcs_whose_ssa_is_the_next_page() -> None:
    image = Image(threads=2, heap_pages=2)
    pages = {segment.offset: segment for segment in image.segments()}
    for thread in range(2):
        at = image.tcs(thread)
        tcs = Tcs.unpack(pages[at].contents)
        assert (tcs.ossa, tcs.nssa, tcs.oentry) == (at + PAGE, 1, 0)
        assert pages[at].flags == 0x100
        assert pages[at + PAGE].flags == 0x203


def test_measurement_is_that_of_the_records_written_out_by_hand() -> None:
    image = Image(threads=1, heap_pages=1)
    records = [struct.pack("<QIQ44x", 0x0045544145524345, 1, 4 * PAGE)]
    code, tcs, ssa, heap = image.segments()
    for page, flags in ((code, 0x205), (tcs, 0x100), (ssa, 0x203), (heap, 0x203)):
        records.append(struct.pack("<QQQ40x", 0x44444145, page.offset, flags))
        if page is not heap:
            contents = page.contents or bytes(PAGE)
            for at in range(0, PAGE, 256):
                records.append(struct.pack("<QQ48x", 0x00444E4554584545, page.offset + at))
                records.append(contents[at : at + 256])
    assert image.measure() == hashlib.sha256(b"".join(records)).digest()


def test_certificate_verifies_and_names_the_measurement(signing_key: SigningKey) -> None:
    image = Image(threads=1, heap_pages=4)
    certificate = image.certificate(signing_key)
    assert verify(certificate) == SgxError.SUCCESS
    assert SigStruct.unpack(certificate).mrenclave == image.measure()


@pytest.mark.parametrize(("threads", "heap"), [(0, 10), (257, 1000), (4, 3), (1, 0), (1, (1 << 24) + 1)])
def test_impossible_geometry_is_bad_input(threads: int, heap: int) -> None:
    with pytest.raises(BadInput):
        Image(threads, heap)
