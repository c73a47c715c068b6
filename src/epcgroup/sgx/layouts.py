"""The bytes that SGX reads and writes: structures, numbers, bits.

Sources: spec 6.7 and the SDM chapters on SGX data structures. Every structure
is a frozen dataclass whose FORMAT lists its fields in order, with ``x`` for
reserved bytes. Reserved bytes are dropped by ``unpack`` and written as zeros by
``pack``; ``canonical(data)`` tells whether they were zero, which is what the
hardware demands nearly everywhere.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from epcgroup.errors import BadInput
from epcgroup.units import PAGE_SIZE

# SECINFO.flags and EPCM bits (SDM: SECINFO.FLAGS). The page type sits in bits 15:8.
R, W, X = 1, 2, 4
PENDING, MODIFIED, PR = 8, 16, 32
PROT_MASK = R | W | X
TYPE_SHIFT = 8
TYPE_MASK = 0xFF00


class PageType(enum.IntEnum):
    SECS = 0
    TCS = 1
    REG = 2
    VA = 3
    TRIM = 4


class Attribute(enum.IntFlag):
    INIT = 1 << 0
    DEBUG = 1 << 1
    MODE64BIT = 1 << 2
    PROVISIONKEY = 1 << 4
    EINITTOKENKEY = 1 << 5
    KSS = 1 << 7
    ASYNC_EXIT_NOTIFY = 1 << 10


#: Attributes any program may ask for; PROVISIONKEY needs the PROVISION ioctl.
UNPRIVILEGED_ATTRIBUTES = int(
    Attribute.DEBUG | Attribute.MODE64BIT | Attribute.KSS | Attribute.ASYNC_EXIT_NOTIFY
)
KNOWN_ATTRIBUTES = UNPRIVILEGED_ATTRIBUTES | int(
    Attribute.INIT | Attribute.PROVISIONKEY | Attribute.EINITTOKENKEY
)
MISC_EXINFO = 1  # MISCSELECT bit 0
XFRM_LEGACY = 3  # x87 and SSE: always on, in every enclave


class Enclu(enum.IntEnum):
    EREPORT = 0
    EGETKEY = 1
    EENTER = 2
    ERESUME = 3
    EEXIT = 4
    EACCEPT = 5
    EMODPE = 6
    EACCEPTCOPY = 7
    EDECCSSA = 9


class SgxError(enum.IntEnum):
    """What a leaf leaves in RAX."""

    SUCCESS = 0
    INVALID_SIG_STRUCT = 1
    INVALID_ATTRIBUTE = 2
    BLKSTATE = 3
    INVALID_MEASUREMENT = 4
    NOTBLOCKABLE = 5
    PG_INVLD = 6
    EPC_PAGE_CONFLICT = 7
    INVALID_SIGNATURE = 8
    MAC_COMPARE_FAIL = 9
    PAGE_NOT_BLOCKED = 10
    NOT_TRACKED = 11
    VA_SLOT_OCCUPIED = 12
    CHILD_PRESENT = 13
    ENCLAVE_ACT = 14
    ENTRYEPOCH_LOCKED = 15
    INVALID_EINITTOKEN = 16
    PREV_TRK_INCMPL = 17
    PG_IS_SECS = 18
    PAGE_ATTRIBUTES_MISMATCH = 19
    PAGE_NOT_MODIFIABLE = 20
    PAGE_NOT_DEBUGGABLE = 21
    INVALID_CPUSVN = 32
    INVALID_ISVSVN = 64
    UNMASKED_EVENT = 128
    INVALID_KEYNAME = 256


class KeyName(enum.IntEnum):
    EINITTOKEN = 0
    PROVISION = 1
    PROVISION_SEAL = 2
    REPORT = 3
    SEAL = 4


class KeyPolicy(enum.IntFlag):
    MRENCLAVE = 1
    MRSIGNER = 2
    NOISVPRODID = 4
    CONFIGID = 8
    ISVFAMILYID = 16
    ISVEXTPRODID = 32


def secinfo_flags(page_type: PageType, prot: int) -> int:
    """SECINFO.flags (and EPCM word) of a page of ``page_type`` with R/W/X ``prot``."""
    return (page_type << TYPE_SHIFT) | prot


class Layout:
    """A fixed structure in memory. Subclasses are frozen dataclasses."""

    __slots__: tuple[str, ...] = ()
    FORMAT: ClassVar[struct.Struct]

    @classmethod
    def size(cls) -> int:
        """Bytes the structure takes."""
        return cls.FORMAT.size

    def pack(self) -> bytes:
        """The structure as the hardware sees it, reserved bytes zero."""
        return self.FORMAT.pack(*[getattr(self, name) for name in self.__slots__])

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the structure. Raises BadInput when ``data`` has another size."""
        if len(data) != cls.FORMAT.size:
            raise BadInput(f"{cls.__name__} takes {cls.FORMAT.size} bytes, not {len(data)}")
        return cls(*cls.FORMAT.unpack(data))

    @classmethod
    def canonical(cls, data: bytes) -> bool:
        """Whether every reserved byte of ``data`` is zero."""
        return cls.unpack(data).pack() == data


@dataclass(frozen=True, slots=True)
class Secs(Layout):
    """SGX Enclave Control Structure: identity and geometry of one enclave."""

    FORMAT = struct.Struct("<QQII24xQQ32s32x32s32x64sHHH3834x")

    size_bytes: int
    base: int
    ssa_frame_size: int = 1  # pages
    miscselect: int = 0
    attributes: int = int(Attribute.MODE64BIT)
    xfrm: int = XFRM_LEGACY
    mrenclave: bytes = bytes(32)
    mrsigner: bytes = bytes(32)
    config_id: bytes = bytes(64)
    isv_prod_id: int = 0
    isv_svn: int = 0
    config_svn: int = 0


@dataclass(frozen=True, slots=True)
class Tcs(Layout):
    """Thread Control Structure: one page per thread that may be inside."""

    FORMAT = struct.Struct("<QQQIIQQQQII4024x")

    state: int = 0
    flags: int = 0  # bit 0 DBGOPTIN, bit 1 AEXNOTIFY
    ossa: int = 0  # offset of SSA frame 0 from the enclave's base
    cssa: int = 0
    nssa: int = 1
    oentry: int = 0
    aep: int = 0
    ofs_base: int = 0
    ogs_base: int = 0
    fs_limit: int = 0xFFFFFFFF
    gs_limit: int = 0xFFFFFFFF


TCS_DBGOPTIN, TCS_AEXNOTIFY = 1, 2
TCS_CSSA_OFFSET, TCS_AEP_OFFSET = 24, 40


@dataclass(frozen=True, slots=True)
class SecInfo(Layout):
    FORMAT = struct.Struct("<Q56x")

    flags: int

    @property
    def page_type(self) -> int:
        return (self.flags & TYPE_MASK) >> TYPE_SHIFT

    @property
    def prot(self) -> int:
        return self.flags & PROT_MASK


@dataclass(frozen=True, slots=True)
class PageInfo(Layout):
    """Operands of EADD, EWB, ELDU: linear address and three pointers."""

    FORMAT = struct.Struct("<QQQQ")

    addr: int
    contents: int
    metadata: int
    secs: int


@dataclass(frozen=True, slots=True)
class Pcmd(Layout):
    """Paging Crypto MetaData: what EWB leaves beside the ciphertext."""

    FORMAT = struct.Struct("<Q56xQ40x16s")

    secinfo_flags: int
    enclave_id: int
    mac: bytes


@dataclass(frozen=True, slots=True)
class SigStruct(Layout):
    """Enclave certificate, 1808 bytes. Big numbers are little endian."""

    FORMAT = struct.Struct("<16sII16sI84x384sI384sII4x16sQQQQ32s16x16sHH12x384s384s")
    HEADER1 = struct.pack("<QQ", 0x000000E100000006, 0x0000000000010000)
    HEADER2 = struct.pack("<QQ", 0x0000006000000101, 0x0000000100000060)

    header1: bytes = HEADER1
    vendor: int = 0
    date: int = 0  # BCD yyyymmdd
    header2: bytes = HEADER2
    swdefined: int = 0
    modulus: bytes = bytes(384)
    exponent: int = 3
    signature: bytes = bytes(384)
    miscselect: int = 0
    misc_mask: int = 0xFFFFFFFF
    isv_family_id: bytes = bytes(16)
    attributes: int = int(Attribute.MODE64BIT)
    xfrm: int = XFRM_LEGACY
    attributes_mask: int = 0xFFFFFFFFFFFFFFFF
    xfrm_mask: int = 0xFFFFFFFFFFFFFFFF
    mrenclave: bytes = bytes(32)
    isv_ext_prod_id: bytes = bytes(16)
    isv_prod_id: int = 0
    isv_svn: int = 0
    q1: bytes = bytes(384)
    q2: bytes = bytes(384)


@dataclass(frozen=True, slots=True)
class GprSgx(Layout):
    """Registers at an asynchronous exit; the last 184 bytes of an SSA frame."""

    FORMAT = struct.Struct("<20QI3xBQQ")

    rax: int = 0
    rcx: int = 0
    rdx: int = 0
    rbx: int = 0
    rsp: int = 0
    rbp: int = 0
    rsi: int = 0
    rdi: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rflags: int = 0
    rip: int = 0
    ursp: int = 0
    urbp: int = 0
    exitinfo: int = 0
    aexnotify: int = 0
    fs_base: int = 0
    gs_base: int = 0


GPRSGX_SIZE = 184
EXITINFO_VALID = 1 << 31
EXITINFO_HARDWARE, EXITINFO_SOFTWARE = 3 << 8, 6 << 8  # EXIT_TYPE, bits 10:8


@dataclass(frozen=True, slots=True)
class ExInfo(Layout):
    """Address and error code of #PF and #GP, right below GPRSGX (MISCSELECT bit 0)."""

    FORMAT = struct.Struct("<QI4x")

    maddr: int = 0
    errcd: int = 0


@dataclass(frozen=True, slots=True)
class TargetInfo(Layout):
    """Whom a report is for; 512 bytes, 512-aligned."""

    FORMAT = struct.Struct("<32sQQ2xHI8x64s384x")

    mrenclave: bytes
    attributes: int
    xfrm: int
    config_svn: int = 0
    miscselect: int = 0
    config_id: bytes = bytes(64)


@dataclass(frozen=True, slots=True)
class Report(Layout):
    """What EREPORT writes; 432 bytes, 512-aligned. The MAC covers bytes 0..383."""

    FORMAT = struct.Struct("<16sI12x16sQQ32s32x32s32x64sHHH42x16s64s32s16s")
    BODY = 384

    cpu_svn: bytes
    miscselect: int
    isv_ext_prod_id: bytes
    attributes: int
    xfrm: int
    mrenclave: bytes
    mrsigner: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes
    key_id: bytes
    mac: bytes = bytes(16)


@dataclass(frozen=True, slots=True)
class KeyRequest(Layout):
    """What EGETKEY is asked for; 512 bytes, 512-aligned."""

    FORMAT = struct.Struct("<HHH2x16sQQ32sIH434x")

    key_name: int
    key_policy: int = 0
    isv_svn: int = 0
    cpu_svn: bytes = bytes(16)
    attributes_mask: int = 0
    xfrm_mask: int = 0
    key_id: bytes = bytes(32)
    misc_mask: int = 0
    config_svn: int = 0


assert Secs.size() == Tcs.size() == PAGE_SIZE
