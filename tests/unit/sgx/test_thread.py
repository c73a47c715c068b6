"""Threads enter, leave, are interrupted and resume; all state is in the SSA."""

from __future__ import annotations

import random
import struct

import pytest

from epcgroup.sgx import leaves, thread, xstate
from epcgroup.sgx.faults import GeneralProtection, PageFault
from epcgroup.sgx.layouts import Attribute, ExInfo, GprSgx, Tcs
from epcgroup.sgx.platform import Platform
from epcgroup.sgx.thread import GENERAL, Registers

BASE, TCS_AT, FRAME = 0x100000, 0x100000, 0x104000  # SSA frame 0; frames of two pages
GPR = FRAME + 0x2000 - 184
AEP = 0x400100


def xstate_of(seed: int, components: int = 7, length: int = 832) -> bytes:
    """A register state as the kernel gives it, software bytes filled in."""
    area = bytearray(random.Random(seed).randbytes(length))
    area[24:32] = struct.pack("<II", 0x1F80, 0xFFFF)
    area[464:576] = struct.pack("<Q", 7) + bytes(40) + struct.pack("<Q", components) + bytes(56)
    return bytes(area)


@pytest.fixture
def enclave(build):
    return build()


@pytest.fixture
def outside():
    return Registers(
        rbx=TCS_AT, rcx=AEP, rip=0x400000, rsp=0x7000, rbp=0x7100, rdi=1, fs_base=0xF5, gs_base=0x65
    )


def inside_registers() -> Registers:
    regs = Registers(**{name: 0x1000 + i for i, name in enumerate(GENERAL)})
    regs.rip, regs.rflags, regs.fs_base, regs.gs_base = BASE + 0x1500, 0x246, BASE + 0x2008, BASE + 0x3008
    return regs


def cssa(enclave) -> int:
    return Tcs.unpack(enclave[1].tcs_read(TCS_AT)).cssa


def test_eenter_starts_at_the_entry_with_the_enclaves_segments(enclave, outside):
    thread.eenter(*enclave, outside)
    assert (outside.rip, outside.rax, outside.rcx) == (BASE + 0x1234, 0, 0x400003)
    assert (outside.fs_base, outside.gs_base) == (BASE + 0x2000, BASE + 0x3000)
    assert (outside.rsp, outside.rbp, outside.rdi) == (0x7000, 0x7100, 1)
    gpr = GprSgx.unpack(enclave[1].read(GPR, 184))
    assert (gpr.ursp, gpr.urbp) == (0x7000, 0x7100)
    assert Tcs.unpack(enclave[1].tcs_read(TCS_AT)).aep == AEP


def test_eexit_gives_the_untrusted_segments_back(enclave, outside):
    entry = thread.eenter(*enclave, outside)
    outside.rbx = 0x400200
    thread.eexit(enclave[0], outside, entry)
    assert (outside.rip, outside.rcx, outside.fs_base, outside.gs_base) == (0x400200, AEP, 0xF5, 0x65)
    assert not enclave[0].busy


def test_a_busy_tcs_admits_nobody_else(enclave, outside):
    second = Registers(rbx=TCS_AT, rcx=AEP)
    thread.eenter(*enclave, outside)
    with pytest.raises(GeneralProtection, match="busy"):
        thread.eenter(*enclave, second)
    with pytest.raises(GeneralProtection, match="busy"):
        thread.eresume(*enclave, second, xstate_of(1))


@pytest.mark.parametrize("tcs", [TCS_AT + 8, 0x1000, BASE + 0x20000])
def test_a_misplaced_tcs_is_a_general_protection(enclave, tcs):
    with pytest.raises(GeneralProtection):
        thread.eenter(*enclave, Registers(rbx=tcs, rcx=AEP))


def test_a_regular_page_or_a_hole_as_tcs_is_a_page_fault(enclave):
    for tcs in (BASE + 0x1000, BASE + 0x1F000):
        with pytest.raises(PageFault):
            thread.eenter(*enclave, Registers(rbx=tcs, rcx=AEP))


def test_entry_wants_a_canonical_aep_and_an_initialised_enclave(enclave, build):
    with pytest.raises(GeneralProtection, match="canonical"):
        thread.eenter(*enclave, Registers(rbx=TCS_AT, rcx=1 << 47))
    with pytest.raises(GeneralProtection, match="not initialised"):
        thread.eenter(*build(initialise=False), Registers(rbx=TCS_AT, rcx=AEP))


def test_an_ssa_frame_that_cannot_be_written_faults_and_changes_nothing(enclave, outside):
    leaves.emodpr(enclave[0], 5, 1)
    with pytest.raises(PageFault) as fault:
        thread.eenter(*enclave, outside)
    assert (fault.value.addr, fault.value.code) == (0x105000, 0x8007)
    assert outside.rip == 0x400000
    assert not enclave[0].busy


def interrupted(enclave, outside, **why):
    """Enter, run a little, be interrupted; the registers outside and their state."""
    entry = thread.eenter(*enclave, outside)
    regs = inside_registers()
    state = thread.asynchronous_exit(*enclave, regs, xstate_of(1), entry, **why)
    return regs, state


def test_an_exit_leaves_the_synthetic_state_at_the_aep(enclave, outside):
    regs, state = interrupted(enclave, outside)
    assert (regs.rax, regs.rbx, regs.rcx, regs.rip) == (3, TCS_AT, AEP, AEP)
    assert (regs.rsp, regs.rbp, regs.fs_base, regs.gs_base) == (0x7000, 0x7100, 0xF5, 0x65)
    assert [getattr(regs, name) for name in GENERAL[6:]] == [0] * 10
    assert state == xstate.initial(832)
    assert cssa(enclave) == 1
    assert not enclave[0].busy


def test_resume_restores_every_register_from_the_frame(enclave, outside):
    regs, state = interrupted(enclave, outside)
    _, inner = thread.eresume(*enclave, regs, state)
    assert regs == inside_registers()
    assert inner[:464] == xstate_of(1)[:464]
    assert inner[576:] == xstate_of(1)[576:]
    assert inner[512:520] == struct.pack("<Q", 7)
    assert cssa(enclave) == 0


def test_what_a_handler_writes_into_the_frame_is_what_resumes(enclave, outside):
    regs, state = interrupted(enclave, outside)
    memory = enclave[1]
    memory.write(GPR + 136, struct.pack("<Q", BASE + 0x1999))  # rip
    memory.write(FRAME + 160, b"XMM0" * 4)
    _, inner = thread.eresume(*enclave, regs, state)
    assert regs.rip == BASE + 0x1999
    assert inner[160:176] == b"XMM0" * 4


def test_the_frame_holds_no_software_bytes_and_only_components_of_xfrm(build, outside):
    enclave = build(xfrm=3)
    interrupted(enclave, outside)
    area = enclave[1].read(FRAME, 832)
    assert area[:464] == xstate_of(1)[:464]
    assert area[464:512] == bytes(48)
    assert struct.unpack_from("<Q", area, 512) == (3,)
    assert area[576:] == bytes(256)


def test_components_outside_xfrm_stay_with_the_thread(build, outside):
    enclave = build(xfrm=3)
    regs, _ = interrupted(enclave, outside)
    host = xstate_of(2)
    _, inner = thread.eresume(*enclave, regs, host)
    assert inner[576:] == host[576:]
    assert inner[512:520] == struct.pack("<Q", 7)


@pytest.mark.parametrize("at", [520, 528, 575])
def test_resume_refuses_a_header_that_xrstor_would_refuse(enclave, outside, at):
    regs, state = interrupted(enclave, outside)
    enclave[1].write(FRAME + at, b"\1")
    with pytest.raises(GeneralProtection):
        thread.eresume(*enclave, regs, state)


def test_resume_refuses_components_outside_xfrm_and_bad_mxcsr(build, outside):
    enclave = build(xfrm=3)
    regs, state = interrupted(enclave, outside)
    enclave[1].write(FRAME + 512, b"\7")
    with pytest.raises(GeneralProtection, match="outside XFRM"):
        thread.eresume(*enclave, regs, state)
    enclave[1].write(FRAME + 512, b"\3")
    enclave[1].write(FRAME + 24, b"\xff" * 4)
    with pytest.raises(GeneralProtection, match="MXCSR"):
        thread.eresume(*enclave, regs, state)


def test_mxcsr_is_restored_even_when_sse_is_not_in_use(enclave, outside):
    regs, state = interrupted(enclave, outside)
    enclave[1].write(FRAME + 512, b"\1")
    enclave[1].write(FRAME + 24, struct.pack("<I", 0x3F80))
    _, inner = thread.eresume(*enclave, regs, state)
    assert struct.unpack_from("<I", inner, 24) == (0x3F80,)
    assert inner[512] & 2
    assert inner[160:416] == bytes(256)


def test_nested_entries_use_one_frame_each_up_to_nssa(enclave, outside):
    regs, state = interrupted(enclave, outside)
    regs.rcx = AEP
    nested = thread.eenter(*enclave, regs)
    assert regs.rax == 1
    thread.asynchronous_exit(*enclave, regs, xstate_of(3), nested)
    assert cssa(enclave) == 2
    with pytest.raises(GeneralProtection, match="no free SSA frame"):
        thread.eenter(*enclave, Registers(rbx=TCS_AT, rcx=AEP))
    thread.eresume(*enclave, regs, state)
    assert cssa(enclave) == 1


def test_nothing_to_resume_is_a_general_protection(enclave, outside):
    with pytest.raises(GeneralProtection, match="CSSA 0"):
        thread.eresume(*enclave, outside, xstate_of(1))


def exit_info(enclave) -> int:
    return GprSgx.unpack(enclave[1].read(GPR, 184)).exitinfo


@pytest.mark.parametrize("vector", [0, 1, 3, 5, 6, 16, 17, 19])
def test_exceptions_that_are_always_reported(build, outside, vector):
    enclave = build(miscselect=0)
    interrupted(enclave, outside, vector=vector)
    assert exit_info(enclave) == 0x80000000 | (0x600 if vector == 3 else 0x300) | vector


@pytest.mark.parametrize("vector", [13, 14])
def test_page_and_protection_faults_are_reported_only_with_exinfo(build, outside, vector):
    without, with_exinfo = build(miscselect=0), build(miscselect=1)
    interrupted(without, Registers(rbx=TCS_AT, rcx=AEP), vector=vector, addr=0x102345, error_code=0x8007)
    assert exit_info(without) == 0
    interrupted(with_exinfo, outside, vector=vector, addr=0x102345, error_code=0x8007)
    assert exit_info(with_exinfo) == 0x80000300 | vector
    written = ExInfo.unpack(with_exinfo[1].read(GPR - 16, 16))
    assert written == ExInfo(0x102345 if vector == 14 else 0, 0x8007)


def test_an_interrupt_reports_nothing(enclave, outside):
    interrupted(enclave, outside)
    assert exit_info(enclave) == 0


def test_the_frame_ends_where_ssaframesize_says(build, outside):
    enclave = build(ssa_frame_size=3)
    interrupted(enclave, outside)
    gpr = GprSgx.unpack(enclave[1].read(FRAME + 0x3000 - 184, 184))
    assert gpr.rip == BASE + 0x1500


def test_flags_that_belong_to_the_system_are_not_restored_from_the_frame(enclave, outside):
    regs, state = interrupted(enclave, outside)
    enclave[1].write(GPR + 128, struct.pack("<Q", 0x3346))  # TF and IOPL set by the enclave
    thread.eresume(*enclave, regs, state)
    assert not regs.rflags & 0x3100


def test_edeccssa_gives_up_a_frame_and_faults_at_zero(enclave, outside):
    regs, _ = interrupted(enclave, outside)
    entry = thread.eenter(*enclave, regs)
    thread.edeccssa(*enclave, entry)
    assert cssa(enclave) == 0
    with pytest.raises(GeneralProtection):
        thread.edeccssa(*enclave, entry)


def test_with_aex_notify_a_resume_enters_the_handler(build, outside):
    notify = Tcs(flags=2, ossa=0x4000, nssa=2, oentry=0x1234)
    attributes = int(Attribute.MODE64BIT | Attribute.ASYNC_EXIT_NOTIFY)
    enclave = build(tcs=notify, attributes=attributes)
    enclave[1].write(GPR + 167, b"\1")
    regs, state = interrupted(enclave, outside)
    thread.eresume(*enclave, regs, state)
    assert (regs.rip, regs.rax) == (BASE + 0x1234, 1)
    assert cssa(enclave) == 1


@pytest.mark.parametrize("leaf", [thread.eenter, lambda *a: thread.eresume(*a, xstate_of(1))])
def test_every_tcs_of_an_enclave_with_aex_notify_says_so_unless_it_is_debugged(build, outside, leaf):
    attributes = int(Attribute.MODE64BIT | Attribute.ASYNC_EXIT_NOTIFY)
    state, memory = build(tcs=Tcs(ossa=0x4000, nssa=2), attributes=attributes)
    with pytest.raises(GeneralProtection, match="AEXNOTIFY"):
        leaf(state, memory, outside)
    memory.tcs_write(TCS_AT, 8, b"\1")
    thread.eenter(state, memory, outside)


def test_a_large_component_needs_a_larger_frame(build):
    wide = Platform(xfrm=0x207, components={2: (576, 256), 9: (2688, 8)})
    assert wide.xsave_size(0x207) == 2696
    assert wide.xsave_size(7) == 832
    assert Platform(components={17: (2752, 64), 18: (2816, 8192)}).min_ssa_pages(0x60003, 1) == 3
    assert build(platform=wide, xfrm=0x207)
