"""MRENCLAVE agrees with an independent reading of spec 6.8."""

from __future__ import annotations

import hashlib
import random

from epcgroup.sgx.measure import Measurement


def reference(ssa_frame_size: int, size: int, pages: list[tuple[int, int, bytes | None]]) -> bytes:
    """MRENCLAVE by concatenating 64-byte records; None contents: not measured."""
    log = bytearray()

    def record(*parts: tuple[int, bytes]) -> None:
        block = bytearray(64)
        for at, data in parts:
            block[at : at + len(data)] = data
        log.extend(block)

    record(
        (0, (0x0045544145524345).to_bytes(8, "little")),
        (8, ssa_frame_size.to_bytes(4, "little")),
        (12, size.to_bytes(8, "little")),
    )
    for offset, flags, contents in pages:
        record(
            (0, (0x44444145).to_bytes(8, "little")),
            (8, offset.to_bytes(8, "little")),
            (16, flags.to_bytes(8, "little")),
        )
        for chunk in range(0, 4096 if contents is not None else 0, 256):
            record(
                (0, (0x00444E4554584545).to_bytes(8, "little")), (8, (offset + chunk).to_bytes(8, "little"))
            )
            log.extend(contents[chunk : chunk + 256])
    return hashlib.sha256(log).digest()


def test_mrenclave_agrees_with_an_independent_implementation():
    rng = random.Random(4)
    pages = [
        (i * 4096, rng.choice([0x203, 0x205, 0x100]), rng.choice([None, rng.randbytes(4096)]))
        for i in range(20)
    ]
    running = Measurement(2, 0x20000)
    for offset, flags, contents in pages:
        running.eadd(offset, flags)
        if contents is not None:
            running.eextend_page(offset, contents)
    assert running.digest() == reference(2, 0x20000, pages)


def test_measuring_a_page_at_once_equals_measuring_its_sixteen_chunks():
    page = random.Random(5).randbytes(4096)
    whole, chunks = Measurement(1, 0x2000), Measurement(1, 0x2000)
    whole.eextend_page(0x1000, page)
    for at in range(0, 4096, 256):
        chunks.eextend(0x1000 + at, page[at : at + 256])
    assert whole.digest() == chunks.digest()


def test_order_and_permissions_are_part_of_the_measurement():
    def build(*adds: tuple[int, int]) -> bytes:
        running = Measurement(1, 0x2000)
        for offset, flags in adds:
            running.eadd(offset, flags)
        return running.digest()

    assert build((0, 0x203), (4096, 0x203)) != build((4096, 0x203), (0, 0x203))
    assert build((0, 0x203)) != build((0, 0x207))
