"""Snapshots and events as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from epcgroup.errors import BadInput
from epcgroup.observe import EnclaveView, GroupView, Snapshot, codec
from epcgroup.observe.model import PAGING, Event, NodeView, ProcessView, ThreadView

HOSTILE = "/a\x1b[2J<b>&\udcff\n" + "x" * 4096
SNAPSHOT = Snapshot(
    1.5,
    "v5",
    100,
    40,
    groups=(GroupView("/", None, 9, 9), GroupView(HOSTILE, 2**64 - 1, 9, 9, stall_s=0.25, secs=1, va=2)),
    enclaves=(EnclaveView(3, 7, "prog", HOSTILE, 1 << 20, 5, 6, 1, 2, ended=True, ended_s=1.25),),
    processes=(ProcessView(7, "prog", HOSTILE, (ThreadView(8, 3, 4, 0.5), ThreadView(9))),),
    nodes=(NodeView(0, 60, 40), NodeView(1, 40, 0)),
    started=1e9,
    knows=frozenset({PAGING}),
)


def sent(message: object) -> dict[str, object]:
    """What arrives of it at the other end of a wire."""
    arrived: dict[str, object] = json.loads(json.dumps(message))
    return arrived


def test_a_snapshot_comes_back_as_it_went_with_any_name() -> None:
    assert codec.snapshot_from_json(sent(codec.snapshot_to_json(SNAPSHOT))) == SNAPSHOT


def test_fields_of_a_newer_program_are_ignored_and_missing_ones_have_their_defaults() -> None:
    data = sent(codec.snapshot_to_json(SNAPSHOT))
    data["groups"] = [{"path": "/", "limit": None, "current": 1, "peak": 2, "colour": "red"}]
    data["moon"] = "full"
    del data["processes"]
    read = codec.snapshot_from_json(data)
    assert read.groups == (GroupView("/", None, 1, 2),)
    assert read.processes == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version 2; this program reads 1"),
        ({"version": None}, "version None"),
        ({"groups": None}, "no snapshot"),
        ({"groups": [{"limit": 3}]}, "no snapshot"),
        ({"enclaves": [3]}, "no snapshot"),
    ],
)
def test_what_is_no_snapshot_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        codec.snapshot_from_json({**sent(codec.snapshot_to_json(SNAPSHOT)), **change})


def test_an_event_says_only_what_is_not_the_default() -> None:
    event = Event(4, 2.5, "refused", group=HOSTILE, errno="EINVAL", reason="because")
    assert "count" not in codec.event_to_json(event)
    assert codec.event_from_json(json.loads(codec.event_line(event))) == event
    assert "\n" not in codec.event_line(event)


def test_a_follower_sees_what_the_differ_was_shown() -> None:
    differ, follower = codec.Differ(), codec.Follower()
    shown = SNAPSHOT
    assert follower.apply(sent(differ.delta(shown, []))) == (shown, [])
    event = Event(1, 2.0, "limit", group="/b")
    steps = [
        (shown, []),
        (replace(shown, groups=(*shown.groups, GroupView("/b", 5, 1, 1))), [event]),
        (replace(shown, groups=(shown.groups[0], GroupView("/b", 5, 2, 2))), []),
        (replace(shown, groups=(), enclaves=()), []),
        (shown, []),
    ]
    for snapshot, events in steps:
        assert follower.apply(sent(differ.delta(snapshot, events))) == (snapshot, events)


def test_of_an_idle_cgroup_nothing_is_sent() -> None:
    groups = tuple(GroupView(f"/g{n}", None, n, n) for n in range(1000))
    differ = codec.Differ()
    differ.delta(Snapshot(1.0, "v5", 1, 1, groups), [])
    busy = (*groups[:-1], replace(groups[-1], pages_in=1))
    message = differ.delta(Snapshot(2.0, "v5", 1, 1, busy), [])
    assert len(message["rows"]) == 1
    assert "order" not in message
    assert len(json.dumps(message)) < 1000


def test_what_is_no_message_is_refused() -> None:
    message = sent(codec.Differ().delta(SNAPSHOT, []))
    for change in ({"rows": [[1]]}, {"order": ["/nowhere"]}, {"events": [{}]}, {"version": 9}):
        with pytest.raises(BadInput):
            codec.Follower().apply({**message, **change})
