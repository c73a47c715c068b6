"""Why an enclave died or was slow, in words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from epcgroup.cli import main
from epcgroup.errors import BadInput
from epcgroup.observe import why
from epcgroup.observe.model import Event
from epcgroup.observe.store import Point

T0 = time.time() - 1000
MIB = 1 << 20
BEGAN = Event(1, T0, "began", group="/pods/a", enclave=3, pid=812, command="signer")
ENDED = Event(9, T0 + 60, "ended", group="/pods/a", enclave=3, pid=812, command="signer")


def point(at: float, some_s: float, pages: int = 0, current: int | None = 4 * MIB) -> Point:
    return Point(
        T0 + at, 4 * MIB, current, 4 * MIB, 4 * MIB, 0, pages, pages, pages, 0, some_s, some_s, some_s
    )


def answer(
    target: str, *events: Event, points: Sequence[Point] = (), at: float | None = None, span: float = 300
) -> str:
    question = why.ask(target, events, at, span, T0 + 100)
    return "\n".join(why.explain(question, events, lambda _path, _begin, _end: points))


def test_a_disabled_enclave_is_told_with_the_limit_that_cost_its_memory() -> None:
    lost = Event(5, T0 + 50, "disabled", "/pods/a", 3, 812, "signer", limit=4 * MIB, current=5 * MIB)
    said = answer("3", BEGAN, lost, ENDED)
    assert "enclave 3 (signer, pid 812, cgroup /pods/a) lived from" in said
    assert "lost its memory for good" in said
    assert "(5M in use, limit 4M)" in said


def test_touches_that_failed_refused_ioctls_and_signals_are_told_with_their_reasons() -> None:
    events = [
        Event(
            3, T0 + 9, "refused", "/pods/a", 3, 812, errno="EPERM", reason="INIT: EINIT: INVALID_SIGNATURE"
        ),
        Event(
            4,
            T0 + 10,
            "failed",
            "/pods/a",
            3,
            812,
            reason="page 0x64 cannot be loaded",
            count=3,
            until=T0 + 11,
        ),
        Event(5, T0 + 12, "killed", "/pods/a", None, 812, "signer", reason="process 812 was ended by SIGBUS"),
        Event(6, T0 + 13, "killed", "/pods/a", None, 99, "other", reason="process 99 was ended by SIGKILL"),
    ]
    said = answer("3", BEGAN, *events, ENDED)
    assert "refused with EPERM: INIT: EINIT: INVALID_SIGNATURE" in said
    assert "failed with SIGBUS (3 times until" in said
    assert "page 0x64 cannot be loaded" in said
    assert "ended by SIGBUS" in said
    assert "SIGKILL" not in said, "another process's end is not this enclave's"
    whole = answer("/pods", BEGAN, *events, ENDED)
    assert "SIGKILL" in whole
    assert "the memory of enclave 3" in whole


def test_an_enclave_that_just_ended_is_not_blamed_on_epc() -> None:
    said = answer("3", BEGAN, ENDED, points=[point(0, 0), point(60, 0)])
    assert "Nothing about EPC ended it" in said
    assert "EPC did not slow it down" in said


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/pods/a", "/pods/a hit its limit of 4M 7 times and used up to 4M: what it touches does not fit."),
        ("/pods", "/pods, above it, hit its limit of 4M 7 times: its members together want more."),
        ("/", "The machine itself was full 7 times"),
    ],
)
def test_slowness_is_a_share_of_time_and_names_whose_limit_it_was(path: str, words: str) -> None:
    hit = Event(5, T0 + 20, "limit", path, count=7, until=T0 + 30, limit=4 * MIB)
    points = [point(0, 0), point(20, 0), point(30, 9, 5000), point(50, 10, 6000)]
    said = answer("3", BEGAN, hit, ENDED, points=points)
    assert "waited for pages 20% of the time, at worst 90%" in said
    assert "6,000 pages loaded, 6,000 evicted" in said
    assert words in said


def test_a_gap_in_history_and_a_restarted_counter_are_not_counted() -> None:
    points = [point(0, 50, 900), point(10, 50, 900, current=None), point(30, 0, 0), point(40, 5, 10)]
    assert "25% of the time, at worst 50%" in answer("/pods/a", points=points)


def test_limits_that_were_set_on_the_way_to_the_root_are_told() -> None:
    events = [
        Event(2, T0 + 5, "set", "/pods", limit=8 * MIB, current=10 * MIB),
        Event(3, T0 + 6, "set", "/pods/b", limit=MIB),
    ]
    said = answer("3", BEGAN, *events, ENDED)
    assert "the limit of /pods was set to 8M, with 10M in use." in said
    assert "/pods/b" not in said


def test_the_latest_life_before_the_moment_is_meant() -> None:
    again = Event(12, T0 + 90, "began", group="/new", enclave=3, pid=900, command="later")
    assert "/new" in answer("3", BEGAN, ENDED, again)
    assert "/pods/a" in answer("3", BEGAN, ENDED, again, at=T0 + 30, span=10)


def test_a_log_alone_tells_bursts_and_hits() -> None:
    burst = Event(2, T0 + 5, "burst", "/pods/a", count=900, until=T0 + 7)
    assert "900 pages of /pods were evicted in bursts." in answer("pods", burst, span=1000)
    assert "No limit was hit" in answer("/quiet", burst)


def test_an_unknown_enclave_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(BadInput, match="nothing is known of enclave 4; the last ones are: 3"):
        answer("4", BEGAN)


def test_times_are_read_as_people_write_them() -> None:
    now = time.mktime((2026, 11, 26, 13, 0, 0, 0, 0, -1))
    assert time.localtime(why.moment("12:03", now))[:5] == (2026, 11, 26, 12, 3)
    assert time.localtime(why.moment("14:00:05", now))[:6] == (2026, 11, 25, 14, 0, 5)
    assert why.moment("1800000000", now) == 1.8e9
    assert time.localtime(why.moment("2026-11-20T01:02", now))[:5] == (2026, 11, 20, 1, 2)
    for text in ("noon", "nan", "inf"):
        with pytest.raises(BadInput, match=f"--at '{text}': write a time as"):
            why.moment(text, now)


@pytest.mark.parametrize("span", ["nan", "inf", "-1", "0"])
def test_a_span_is_a_number_of_seconds(span: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["why", "/a", "--span", span]) == 2
    assert f"--span {span}: a number of seconds above 0" in capsys.readouterr().err


def test_an_unknown_cgroup_is_refused_with_those_that_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    event = '{"version": 1, "number": 1, "at": 1.0, "kind": "limit", "group": "/a/b"}\n'
    (log := tmp_path / "log").write_text(event)
    assert main.main(["why", "c", "--log", str(log)]) == 2
    assert "nothing is known of cgroup /c; events were in /a/b\n" in capsys.readouterr().err
