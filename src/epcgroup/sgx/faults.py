"""How an SGX instruction ends when it does not succeed.

A leaf either leaves a code in RAX (an ordinary result), or faults as any
instruction does: #GP for operands that can never be right, #PF for a page that
is missing or that the EPCM forbids. Error-code bits: SDM, page-fault exception.
"""

from __future__ import annotations

from dataclasses import dataclass

from epcgroup.errors import EpcgroupError

PF_P, PF_W, PF_U, PF_I, PF_SGX = 1, 2, 4, 16, 0x8000
#: What a touch of a page the EPCM forbids reports: present, user, SGX.
EPCM_VIOLATION = PF_P | PF_U | PF_SGX

VECTOR_DB, VECTOR_BP, VECTOR_UD, VECTOR_GP, VECTOR_PF = 1, 3, 6, 13, 14


class LeafFault(EpcgroupError):
    """An SGX leaf faulted."""

    vector = 0


class GeneralProtection(LeafFault):
    """#GP(0): an operand that can never be right."""

    vector = VECTOR_GP


class PageFault(LeafFault):
    """#PF at ``addr`` with error code ``code``."""

    vector = VECTOR_PF

    def __init__(self, addr: int, code: int) -> None:
        super().__init__(f"#PF at {addr:#x}, error code {code:#x}")
        self.addr = addr
        self.code = code


@dataclass(frozen=True, slots=True)
class Result:
    """An instruction that completed with a code: RAX and the status flags, all clear but ZF."""

    rax: int = 0

    @property
    def zf(self) -> bool:
        """Set exactly when RAX holds an error."""
        return self.rax != 0


def epcm_code(access: str) -> int:
    """Error code of an EPCM violation by a ``"r"``, ``"w"`` or ``"x"`` access."""
    return EPCM_VIOLATION | (PF_W if access == "w" else PF_I if access == "x" else 0)
