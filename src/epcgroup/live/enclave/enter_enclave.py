"""enter_enclave.S, assembled: position-independent code, and the places in it."""

from __future__ import annotations

#: Assemble enter_enclave.S and copy its .text here; a test compares the two.
CODE = bytes.fromhex(
    "f30f1efa554889e55389c8488b5d108d48fe83f901775cb91b00000048837ccb2000754fffc975f4"
    "488b1b488d0d050000000f1f4400000f01d7488b5d10c743080400000031c0fc48837b1800750648"
    "8b5df8c9c3488b43184889e14883e4f04883ec08534889cbffd04889dc85c07f9aebdcb8eaffffff"
    "ebd5488b5d1089430866897b0c6689730e4889531031c0ebb6"
)

#: Offset of five bytes without effect just before the ENCLU, for a jump.
JUMP = 0x32
#: Offset of the ENCLU instruction, which is also the AEP of every entry.
ENCLU = 0x37
#: Offset of the code that reports an exception at the ENCLU to the caller.
FIXUP = 0x7A

#: The instruction at ENCLU.
ENCLU_INSN = b"\x0f\x01\xd7"
