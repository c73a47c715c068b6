"""SGX structures have the sizes and offsets of spec 6.7."""

from __future__ import annotations

import struct

import pytest

from epcgroup.errors import BadInput
from epcgroup.sgx.layouts import (
    ExInfo,
    GprSgx,
    KeyRequest,
    PageInfo,
    Pcmd,
    Report,
    SecInfo,
    Secs,
    SigStruct,
    TargetInfo,
    Tcs,
)


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (Secs, 4096),
        (Tcs, 4096),
        (SecInfo, 64),
        (PageInfo, 32),
        (Pcmd, 128),
        (SigStruct, 1808),
        (GprSgx, 184),
        (ExInfo, 16),
        (TargetInfo, 512),
        (Report, 432),
        (KeyRequest, 512),
    ],
)
def test_every_structure_has_its_architectural_size(layout, size):
    assert layout.size() == size


def test_secs_fields_lie_where_hardware_reads_them():
    raw = Secs(
        size_bytes=0x11,
        base=0x22,
        ssa_frame_size=0x33,
        miscselect=0x44,
        attributes=0x55,
        xfrm=0x66,
        mrenclave=b"e" * 32,
        mrsigner=b"s" * 32,
        config_id=b"c" * 64,
        isv_prod_id=0x77,
        isv_svn=0x88,
        config_svn=0x99,
    ).pack()
    assert struct.unpack_from("<QQII", raw, 0) == (0x11, 0x22, 0x33, 0x44)
    assert struct.unpack_from("<QQ", raw, 48) == (0x55, 0x66)
    assert (raw[64:96], raw[128:160], raw[192:256]) == (b"e" * 32, b"s" * 32, b"c" * 64)
    assert struct.unpack_from("<HHH", raw, 256) == (0x77, 0x88, 0x99)


def test_tcs_fields_lie_where_hardware_reads_them():
    raw = Tcs(flags=1, ossa=2, cssa=3, nssa=4, oentry=5, aep=6, ofs_base=7, ogs_base=8).pack()
    assert struct.unpack_from("<QQIIQQQQ", raw, 8) == (1, 2, 3, 4, 5, 6, 7, 8)


def test_sigstruct_fields_lie_where_hardware_reads_them():
    raw = SigStruct(
        date=0x20240131,
        modulus=b"m" * 384,
        signature=b"s" * 384,
        miscselect=9,
        attributes=0x11,
        attributes_mask=0x22,
        mrenclave=b"h" * 32,
        isv_prod_id=3,
        isv_svn=4,
        q1=b"1" * 384,
        q2=b"2" * 384,
    ).pack()
    assert struct.unpack_from("<QQII", raw, 0) == (0x000000E100000006, 0x10000, 0, 0x20240131)
    assert struct.unpack_from("<QQ", raw, 24) == (0x0000006000000101, 0x0000000100000060)
    assert raw[128:512] == b"m" * 384
    assert struct.unpack_from("<I", raw, 512) == (3,)
    assert raw[516:900] == b"s" * 384
    assert struct.unpack_from("<I", raw, 900) == (9,)
    assert struct.unpack_from("<Q", raw, 928) == (0x11,)
    assert struct.unpack_from("<Q", raw, 944) == (0x22,)
    assert raw[960:992] == b"h" * 32
    assert struct.unpack_from("<HH", raw, 1024) == (3, 4)
    assert (raw[1040:1424], raw[1424:]) == (b"1" * 384, b"2" * 384)


def test_report_mac_covers_everything_before_the_key_id():
    report = Report(*[0 if kind == "i" else b"" for kind in "bibiibbbiiibbbb"])
    raw = report.pack()
    assert len(raw) - 16 - 32 == Report.BODY


@pytest.mark.parametrize(("layout", "reserved"), [(Secs, 30), (Tcs, 100), (SecInfo, 20), (SigStruct, 1030)])
def test_a_reserved_byte_that_is_set_is_noticed(layout, reserved):
    raw = bytearray(layout.size())
    assert layout.canonical(bytes(raw))
    raw[reserved] = 1
    assert not layout.canonical(bytes(raw))


def test_a_structure_of_the_wrong_size_is_refused_by_name():
    with pytest.raises(BadInput, match="SecInfo takes 64 bytes, not 63"):
        SecInfo.unpack(bytes(63))


def test_gprsgx_keeps_the_notify_byte_in_its_last_reserved_byte():
    raw = GprSgx(exitinfo=0x80000306, aexnotify=1, fs_base=2, gs_base=3).pack()
    assert struct.unpack_from("<I", raw, 160) == (0x80000306,)
    assert raw[167] == 1
    assert struct.unpack_from("<QQ", raw, 168) == (2, 3)
