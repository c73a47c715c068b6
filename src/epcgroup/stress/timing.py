"""How long a machine takes for an enclave: to build it, to touch a page, to bring one back.

Everything is timed from outside, by the wall clock, as a program would notice it.
What is derived from that, and how, is the cost model's business (``sim.calibrate``).
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from epcgroup.errors import Refused
from epcgroup.sgx.sign import SigningKey
from epcgroup.stress.code import Call, Mode
from epcgroup.stress.device import Enclave
from epcgroup.stress.enter import Door
from epcgroup.stress.image import Image

_ECALL = 4096  # pages touched by one


@dataclass(frozen=True, slots=True)
class Timing:
    """One enclave: pages of EPC that it needs, seconds to build it, ns a touch in each pass over it."""

    pages: int
    build_s: float
    passes_ns: tuple[float, ...]


def time_enclaves(heaps: list[int], rounds: int, passes: int = 2) -> Iterator[tuple[int, Timing]]:
    """Build an enclave of each size (pages of heap) and touch all of it, ``rounds`` times.

    Gives (number of the size, timing) as they come. Raises NoEpc, Refused,
    MissingCapability as ``Enclave`` does.
    """
    images = [Image(threads=1, heap_pages=heap, measured=True) for heap in heaps]
    key = SigningKey.generate()
    signed = [image.certificate(key) for image in images]
    for _ in range(rounds):
        for number, (image, certificate) in enumerate(zip(images, signed, strict=True)):
            yield number, _time(image, certificate, passes)


def _time(image: Image, certificate: bytes, passes: int) -> Timing:
    versions = array("Q", bytes(8 * image.heap_pages))
    with Enclave(image) as enclave:
        began = time.perf_counter()
        enclave.build(certificate)
        built = time.perf_counter() - began
        door = Door(enclave, 0)
        call = Call(versions=versions.buffer_info()[0], seed=1, write=True)
        call.mode, call.first, call.length = Mode.ORDER, 0, image.heap_pages
        each = []
        for _ in range(passes):
            began = time.perf_counter()
            for first in range(0, image.heap_pages, _ECALL):
                call.state, call.count = first, min(_ECALL, image.heap_pages - first)
                door.call(call)
            each.append((time.perf_counter() - began) / image.heap_pages * 1e9)
        if call.mismatches or call.refused:
            raise Refused(f"{call.mismatches} pages did not hold what was written: these times mean nothing")
    used = image.pages + 1  # and the SECS
    return Timing(used + -(-used // 512), built, tuple(each))
