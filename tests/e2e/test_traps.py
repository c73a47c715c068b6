"""What real runtimes demand of the machine beyond the kernel's selftest, one small program per demand.

The programs are tests/programs/cases/*.c; each case is described there. Every machine here has less EPC
than the enclaves have pages, so that all of it also happens to pages that were evicted meanwhile.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from tests.e2e.machine import ENCLU, EPCGROUP, NEEDS, ahead, all_cases, cases, expect_case, programs, run

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(300)]

EPC = 128  # pages
CASES = {
    "basics": (
        "cpuid", "proc_cpuinfo", "enter_vdso", "enter_bare", "heap", "untouched_heap_is_zero", "two_enclaves",
        "threads",
        "busy_tcs_is_gp", "not_a_tcs", "nested_entry", "nested_entry_needs_a_frame",
    ),
    "processes": (
        "fork_shares", "child_outlives_parent", "exec_with_an_enclave", "first_thread_ends",
        "close_while_mapped", "dup_and_many",
    ),
    "keys": (
        "report", "keys", "bad_operands",
    ),
    "leaves": (
        "accept_copy", "accept_copy_refuses", "operand_on_a_hole", "status_flags", "nothing_to_accept",
        "new_tcs", "dbgoptin_in_the_image", "offered", "edeccssa_at_0", "edeccssa", "aex_notify",
        "aex_notify_on_both_sides", "kss_report", "kss_keys", "kss_fields_without_kss", "provisioning",
    ),
    "gramine": (
        "with_edmm", "lazily", "without_edmm", "raw_clone_threads", "own_aep", "local_attestation",
    ),
    "gramine_host": (
        "outer_stack", "profiler", "woken_by_sigcont", "late_threads", "not_accepted", "memory_behind",
        "one_after_the_other",
    ),
    "sdk": (
        "start_up", "many_tcs", "many_mprotects", "edmm_library", "edmm_permissions", "segments",
        "reached_by_mappings",
    ),
    "handlers": (
        "ocalls", "exceptions", "what_the_handler_returns", "room_on_the_stack", "interrupted", "one_enclu",
        "lost",
    ),
    "t1_sigill": (
        "blocked_bare", "blocked_vdso", "all_blocked", "blocked_before_load", "ignored", "handled",
        "pending", "masked_on_the_way", "in_handler", "in_handler_all_blocked", "in_handler_four_threads",
        "disposition_race", "real_sigill_kills", "exceptions_kill",
    ),
    "t2_epcm": (
        "pending_read", "pending_write", "accept_first", "restricted_write", "trimmed", "mapping_refuses",
        "unmapped", "threads_all_blocked", "signal_at_the_aep", "sent_signals_still_arrive",
    ),
    "t3_state": (
        "across_page_faults", "across_timer_signals", "across_faults_frame_of_4", "with_all_of_xcr0",
        "frame_of_1", "frame_of_4", "rewritten_registers", "rewritten_xstate_bv", "xstate_outside_xfrm",
        "xsave_header_tail", "outside_is_initial", "two_levels", "exinfo",
    ),
    "t4_exec": (
        "call_works", "no_x_faults", "no_x_before_accept", "again_and_again", "neighbours_keep_x",
        "no_r_faults", "no_r_survives_eviction", "x_survives_eviction", "straddling_instruction",
        "straddling_eviction", "added_page", "executing_a_hole", "mapping_without_exec",
        "restricted_while_evicted", "removed_and_added_again", "bad_restrictions",
    ),
    "t5_mapping": (
        "probes", "legacy_ioctls", "device_names", "mapped_before_create", "unmapped_below",
        "old_mapping_takes_new_pages", "trial_mapping", "permissions", "read_implies_exec", "remapped",
        "huge_and_sparse", "descriptor_survives_dup_and_close", "populated", "mlocked",
        "mlockall_beside_an_enclave", "mlockall_before", "replaced_under_a_thread", "not_dumped",
    ),
    "advice": (
        "advised", "advised_by_a_list", "not_inherited", "remapped_pages", "synced", "not_sealed",
    ),
    "descriptor": (
        "opened_in_odd_ways", "calls_on_the_descriptor", "foreign_ioctls",
    ),
    "circumvent": (
        "ring_of_calls", "pipes", "read_by_another", "map_files", "user_dispatch", "no_vdso",
        "no_stack_pointer", "other_abis", "limits", "described_wrongly", "elsewhere", "kernels_own_writes",
        "secret_source",
    ),
    "interrupted": (
        "made_again", "not_made_again",
    ),
    "t6_syscall": (
        "syscall_vdso", "syscall_bare", "fatal_syscalls", "ud2", "divide_by_zero", "in_instruction",
        "out_instruction", "int_80", "illegal_instructions", "int3", "floating_point", "alignment_check",
        "bare_signals", "rdtsc_runs", "range_is_free_afterwards",
    ),
    "debugger": (
        "heap_resident_and_evicted", "dbgoptin", "rest_of_a_tcs", "read_only_code", "production_enclave",
        "nothing_there", "large_and_crossing", "by_position", "other_uses", "names", "threads_and_children",
        "from_another_process",
    ),
    "tracing": (
        "traceme", "traceme_during_the_wait", "exec_stops", "supervisor", "attach",
        "attach_to_another_parents", "debugger_is_killed", "tracee_is_killed", "two_deep",
    ),
    "tracing_events": (
        "signals_come_to_the_debugger_first", "sigchld", "interrupted_waits", "waitid_tells_the_same",
        "events", "events_of_a_seized", "seize",
    ),
    "tracing_registers": (
        "watchpoint", "registers", "enclave_memory", "production_enclave", "stop_inside",
        "replaced_instructions",
    ),
    "tracing_steps": (
        "breakpoints", "system_calls", "steps", "one_thread_of_two", "among_page_faults",
        "among_traps",
    ),
    "vdso_ways": (
        "by_dynamic", "by_sections", "same_function", "clock_still_works", "bad_arguments",
        "nothing_to_resume",
    ),
    "vdso_weak": (
        "by_weak_symbol",
    ),
    "dlopener": (
        "in_one_thread", "in_many_threads",
    ),
}  # fmt: skip
ALL = [(program, case) for program, cases in CASES.items() for case in cases]
STATIC = (
    "basics-static",
    "basics-fixed",
    *(f"{p}-static" for p in ("processes", "t1_sigill", "t3_state", "t6_syscall")),
)


BLOCKED = ("env", "--block-signal")
STATE = "t3_state"


@pytest.fixture(scope="module", autouse=True)
def _two_at_a_time(request: pytest.FixtureRequest) -> Iterator[None]:
    runs = {
        "test_case": lambda program, enclu, case: cases(program, EPC, (), enclu),  # noqa: ARG005
        "test_a_static_binary_is_served_alike": lambda program, enclu: cases(program, EPC, (), enclu),
        "test_signals_blocked_in_the_inherited_mask": lambda program, enclu: cases(
            program, EPC, BLOCKED, enclu
        ),
        "test_register_state_on_small_and_large_machines": lambda pages, enclu: cases(
            STATE, pages, (), enclu
        ),
    }
    with ahead(request, runs):
        yield


def passed(program: str) -> dict[str, str]:
    """What a program without a failure reports."""
    return dict.fromkeys(CASES[program], "ok")


@pytest.mark.parametrize("enclu", ENCLU)
@pytest.mark.parametrize(("program", "case"), ALL, ids=[f"{program}-{case}" for program, case in ALL])
def test_case(program: str, case: str, enclu: str) -> None:
    expect_case(program, case, EPC, enclu)


@pytest.mark.parametrize("program", CASES)
def test_no_case_is_forgotten(program: str) -> None:
    """What a program runs is what is listed here."""
    assert set(all_cases(program, EPC, enclu=ENCLU[0]).cases) == set(CASES[program])


@pytest.mark.parametrize("enclu", ENCLU)
@pytest.mark.parametrize("program", STATIC)
def test_a_static_binary_is_served_alike(program: str, enclu: str) -> None:
    """No dynamic linker, no shared libc: everything happens at the system call."""
    ended = all_cases(program, EPC, enclu=enclu)
    assert ended.cases == passed(program.rpartition("-")[0]), ended.errors[-3000:]
    assert ended.status == 0


@pytest.mark.parametrize("enclu", ENCLU)
@pytest.mark.parametrize("program", ["basics", "t1_sigill", "t2_epcm", "t6_syscall"])
def test_signals_blocked_in_the_inherited_mask(program: str, enclu: str) -> None:
    """A launcher may hand down a mask that blocks everything a trap could be answered with."""
    ended = all_cases(program, EPC, BLOCKED, enclu)
    assert ended.cases == passed(program), ended.errors[-3000:]


@pytest.mark.parametrize("enclu", ENCLU)
@pytest.mark.parametrize("pages", [24, 4096])
def test_register_state_on_small_and_large_machines(pages: int, enclu: str) -> None:
    ended = all_cases(STATE, pages, enclu=enclu)
    assert ended.cases == passed(STATE), ended.errors[-3000:]


def test_a_processor_with_more_than_xfrm_is_told_of_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """XCR0 is the host's inside as well; an XSAVE of everything stores more than the enclave declared."""
    monkeypatch.setenv("EPCGROUP_DEBUG", "1")
    ended = run(EPCGROUP, "stress", "--heap", "64K", "--passes", "1", epc=EPC)
    assert " has XFRM 0x3, but this machine has 0x" in ended.errors


def test_a_debugger_is_told_why_it_cannot_attach() -> None:
    """Once, however often it tries; one debugs the process already."""
    ended = run("tracing", "attach", epc=EPC)
    assert ended.cases == {"attach": "ok"}, ended.errors
    assert ended.errors.count("tracing cannot trace tracing (EPERM): tracing debugs it already") == 1


def test_the_loader_measures_and_signs_right() -> None:
    """Its own SHA-256, CMAC, RSA and division agree with known answers and another library's."""
    program = str(programs() / "sums")
    known = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert known.stdout == "ok sha256\nok cmac\n"
    signed = subprocess.run([program, "sigstruct"], capture_output=True, timeout=60, check=True).stdout

    def number(offset: int) -> int:
        return int.from_bytes(signed[offset : offset + 384], "little")

    modulus, signature = number(128), number(516)
    key = rsa.RSAPublicNumbers(3, modulus).public_key()
    body = signed[:128] + signed[900:1028]
    key.verify(signature.to_bytes(384, "big"), body, padding.PKCS1v15(), hashes.SHA256())
    quotient, rest = divmod(signature * signature, modulus)
    assert number(1040) == quotient
    assert number(1424) == signature * rest // modulus


def test_the_programs_do_not_pass_without_the_machine() -> None:
    """Outside `epcgroup run` there is no SGX here: our passes mean something."""
    done = subprocess.run(
        [str(programs() / "basics"), "enter_vdso"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert done.stdout.startswith("not ok enter_vdso: ")
