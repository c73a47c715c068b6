"""What must be refused is refused, with the documented error, and nothing is ever silently wrong."""

from __future__ import annotations

import signal

import pytest
from tests.e2e.machine import NEEDS, Ended, expect_case, run

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

EPC = 256
CASES = [
    "flipped_byte",
    "wrong_measurement",
    "wrong_signature",
    "wrong_q1",
    "changed_after_signing",
    "another_modulus",
    "wrong_exponent",
    "wrong_header",
    "wrong_vendor",
    "attributes_differ",
    "xfrm_differs",
    "unknown_attribute",
    "provision_without_the_right",
    "odd_size",
    "reserved_secs_byte",
    "odd_base",
    "xfrm_without_x87",
    "reserved_secinfo_bit",
    "pending_secinfo_bit",
    "write_without_read",
    "tcs_with_permissions",
    "page_type_zero",
    "va_page",
    "trim_page",
]


@pytest.mark.parametrize("case", CASES)
def test_a_bad_enclave_is_refused(case: str) -> None:
    expect_case("negative", case, EPC)


@pytest.mark.parametrize(
    ("limit", "step"),
    [(1, "create"), (2, "add")],
    ids=["no room for the SECS", "no room for a page"],
)
def test_a_limit_below_va_secs_and_one_page_is_enomem(limit: int, step: str) -> None:
    """An enclave needs a VA page, its SECS and one page of its own; none of them can give way."""
    ended = run("load", "once", 50, epc=EPC, limit=limit)
    assert ended.output == f"{step}: Cannot allocate memory\n", ended.errors[-3000:]
    assert ended.status == 4
    assert ended.report is not None
    assert ended.report["groups"][-1]["current"] == 0


# The heap is far larger than the EPC, so the attacked page was evicted when it is touched. The image and each
# thread's stack, TCS and SSA pages come before the heap.
HEAP, VICTIM = 200, 150
PAGE_INDEX = 1 + 2 * (4 + 1 + 2) + VICTIM
# A page can be replayed only once there are two copies: it is loaded, changed and evicted once more before.
ATTACKS = {"tamper": 0, "mac-fail": 0, "replay": 1}


def touch(attack: str | None, changes: int, *where: str) -> Ended:
    """Touch the page after the attack; where "outside", by the host, else by the enclave."""
    options = () if attack is None else ("--inject", f"{attack}@{PAGE_INDEX}")
    ended = run("load", "touch", HEAP, VICTIM, changes, *where, epc=64, options=options)
    assert f"touching page {PAGE_INDEX} of the enclave\n" in ended.output, (
        f"{ended.output}\n{ended.errors[-3000:]}"
    )
    return ended


@pytest.mark.usefixtures("enclu")
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacked_ciphertext_is_a_sigbus_outside(attack: str) -> None:
    """The host's own access to the page kills it: never zeros, never old contents."""
    ended = touch(attack, ATTACKS[attack], "outside")
    assert ended.status == -signal.SIGBUS, f"{ended.output}\n{ended.errors[-3000:]}"
    assert f"page {PAGE_INDEX:#x} cannot be loaded" in ended.errors


@pytest.mark.usefixtures("enclu")
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacked_ciphertext_is_an_exception_inside(attack: str) -> None:
    """Inside, the vDSO call returns with a page fault at that page."""
    ended = touch(attack, ATTACKS[attack])
    assert ended.status == 5, f"{ended.output}\n{ended.errors[-3000:]}"
    assert "exception: vector 14" in ended.output
    assert f"page {VICTIM}\n" in ended.output
    assert f"page {PAGE_INDEX:#x} cannot be loaded" in ended.errors


@pytest.mark.usefixtures("enclu")
@pytest.mark.parametrize("changes", ATTACKS.values())
@pytest.mark.parametrize("where", [(), ("outside",)], ids=["inside", "outside"])
def test_without_an_attack_the_same_run_is_right(changes: int, where: tuple[str, ...]) -> None:
    ended = touch(None, changes, *where)
    assert ended.status == 0, f"{ended.output}\n{ended.errors[-3000:]}"
