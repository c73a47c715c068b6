"""Numbers of the user interface: ioctl commands and their arguments (spec 6.5)."""

from __future__ import annotations

import enum
import struct

PAGE_MEASURE = 1  # flag of ADD_PAGES
SECINFO_SIZE = 64
SIGSTRUCT_SIZE = 1808

MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE = 1, 2, 3
MAP_TYPE = 0xF
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4


class Ioctl(enum.IntEnum):
    CREATE = 0x4008A400
    ADD_PAGES = 0xC030A401
    INIT = 0x4008A402
    PROVISION = 0x4008A403
    RESTRICT_PERMISSIONS = 0xC028A405
    MODIFY_TYPES = 0xC028A406
    REMOVE_PAGES = 0xC018A407


class VepcIoctl(enum.IntEnum):
    REMOVE_ALL = 0xA404


POINTER = struct.Struct("<Q")
ADD_PAGES = struct.Struct("<QQQQQQ")  # src, offset, length, secinfo, flags, count
ADD_PAGES_COUNT_AT = 40
EDMM = struct.Struct("<QQQQQ")  # offset, length, permissions or type, result, count
REMOVE = struct.Struct("<QQQ")  # offset, length, count
