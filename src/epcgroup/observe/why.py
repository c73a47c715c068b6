"""Why did my enclave die, why was it slow: answered in words, from events and history.

Three causes can be told apart, because the machine says whose limit refused a
charge: the cgroup's own limit, one above it, or the machine itself being full
(which is the root's limit). What slows a program is the time it waits for pages;
what kills it is a touch that nothing can serve. Everything said here is in the
log or the history; where they are silent, so are we.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from epcgroup.errors import BadInput
from epcgroup.observe import model
from epcgroup.observe.model import Event
from epcgroup.observe.store import Point
from epcgroup.units import format_size

_SLOW = 0.01  # of the time spent waiting; less is not worth a word
PointsOf = Callable[[str, float, float], Sequence[Point]]


@dataclass(frozen=True, slots=True)
class Question:
    """An enclave (by number) or a cgroup, and the span of time that is asked about."""

    enclave: int | None
    group: str
    begin: float
    end: float
    began: Event | None = None
    ended: Event | None = None


def ancestors(path: str) -> list[str]:
    """A cgroup and those above it, the root last.

    >>> ancestors("/a/b")
    ['/a/b', '/a', '/']
    """
    found = []
    while path != "/":
        found.append(path)
        path = path.rpartition("/")[0] or "/"
    return [*found, "/"]


def ask(target: str, events: Sequence[Event], at: float | None, span: float, now: float) -> Question:
    """What ``target`` (a number or a path) means, between ``at`` − ``span`` and ``at`` + ``span``.

    Without ``at``: an enclave's whole life, a cgroup's last ``span`` seconds.
    Raises BadInput when nothing is known of it.
    """
    begin, end = (now - span, now) if at is None else (at - span, at + span)
    begin = max(begin, 0.0)  # virtual time begins there
    if not target.isdecimal():
        path = "/" + "/".join(part for part in target.split("/") if part)
        return Question(None, path, begin, end)
    number = int(target)
    begun = [e for e in events if e.kind == model.BEGAN and e.enclave is not None]
    lives = [e for e in begun if e.enclave == number and (at is None or e.at <= end)]
    if not lives:
        known = sorted({e.enclave or 0 for e in begun})
        some = ", ".join(map(str, known[-10:])) or "none"
        raise BadInput(f"nothing is known of enclave {number}; the last ones are: {some}")
    began = lives[-1]
    ended = next(
        (e for e in events if e.enclave == number and e.kind == model.ENDED and e.at >= began.at), None
    )
    if at is None:
        begin, end = began.at, now
    last = end if ended is None else min(end, max(ended.at, began.at) + 1.0)
    return Question(number, began.group, max(begin, began.at), last, began, ended)


def explain(question: Question, events: Sequence[Event], points_of: PointsOf) -> list[str]:
    """The answer, a sentence or two a line."""
    inside = [e for e in events if (e.until or e.at) >= question.begin and e.at <= question.end]
    inside.sort(key=lambda event: event.at)  # they come in the order in which they were noticed
    points = points_of(question.group, question.begin, question.end)
    return [
        *_life(question),
        *_deaths(question, inside),
        *_slowness(question, inside, points),
        *_changes(question, inside),
    ]


def _life(question: Question) -> Iterator[str]:
    began, ended = question.began, question.ended
    if began is None:
        yield f"cgroup {question.group}, {clock(question.begin)} to {clock(question.end)}:"
        return
    who = f"enclave {question.enclave} ({began.command}, pid {began.pid}, cgroup {question.group})"
    if ended is None:
        yield f"{who} lives since {clock(began.at)}."
    else:
        yield f"{who} lived from {clock(began.at)} to {clock(ended.at)}."


def _deaths(question: Question, events: Sequence[Event]) -> Iterator[str]:
    """What was lost, refused and killed."""
    pids = {question.began.pid} if question.began is not None else set()
    said = False
    for event in events:
        if question.enclave is not None:
            mine = event.enclave == question.enclave or (event.enclave is None and event.pid in pids)
        else:
            mine = question.group in ancestors(event.group)
        if not mine:
            continue
        sentence = _death(event, question)
        if sentence:
            said = True
            yield f"{clock(event.at)}  {sentence}"
    if question.ended is not None and not said:
        yield "Nothing about EPC ended it: no memory was lost, no touch failed, no ioctl was refused."


def _death(event: Event, question: Question) -> str:
    it = "it" if question.enclave is not None else f"enclave {event.enclave} ({event.command}, {event.group})"
    often = "" if event.count == 1 else f" ({event.count:,} times until {clock(event.until or event.at)})"
    match event.kind:
        case model.DISABLED:
            limit = "" if event.limit is None else f", limit {format_size(event.limit)}"
            use = "" if event.current is None else f" ({format_size(event.current)} in use{limit})"
            unsaid = (
                f"{event.group} or a cgroup above was over its limit{use}, and nothing of it could be evicted"
            )
            reason = event.reason or unsaid
            return f"{it} lost its memory for good: {reason}. From then on each touch of it is a SIGBUS."
        case model.FAILED:
            whose = "its memory" if question.enclave is not None else f"the memory of {it}"
            return f"a touch of {whose} failed with SIGBUS{often}: {event.reason}."
        case model.REFUSED:
            who = f" for {event.command} (pid {event.pid}, {event.group})"
            who = "" if question.enclave is not None else who
            return f"an ioctl was refused with {event.errno}{who}{often}: {event.reason}."
        case model.KILLED:
            return f"{event.reason} ({event.command})."
    return ""


def _slowness(question: Question, events: Sequence[Event], points: Sequence[Point]) -> Iterator[str]:
    """How long it waited for pages, and whose limit made it wait."""
    hits = dict.fromkeys(ancestors(question.group), 0)
    limits: dict[str, int | None] = {}
    for event in events:
        if event.kind == model.LIMIT and event.group in hits:
            hits[event.group] += event.count
            limits[event.group] = event.limit
    share, worst, loaded, evicted = _waiting(points)
    if share is None:
        evicted = sum(
            e.count for e in events if e.kind == model.BURST and question.group in ancestors(e.group)
        )
        if evicted:
            yield f"{evicted:,} pages of {question.group} were evicted in bursts."
        elif not any(hits.values()):
            yield "No limit was hit in that time, and no pages were evicted in numbers."
    elif share < _SLOW and not loaded:
        yield "It did not wait for pages: EPC did not slow it down."
    else:
        at_worst = "" if worst is None else f", at worst {worst[1]:.0%} ({clock(worst[0])})"
        yield (
            f"{question.group} waited for pages {_percent(share)} of the time{at_worst}: "
            f"{loaded:,} pages loaded, {evicted:,} evicted."
        )
    for path, count in hits.items():
        if count:
            yield _whose(path, count, limits.get(path), question, points)


def _whose(path: str, count: int, limit: int | None, question: Question, points: Sequence[Point]) -> str:
    if path == "/":
        return (
            f"The machine itself was full {count:,} times: more EPC would help, or tighter limits on others."
        )
    size = "its limit" if limit is None else f"its limit of {format_size(limit)}"
    if path != question.group:
        return (
            f"{path}, above it, hit {size} {count:,} times: its members together want more. "
            f"Raise it (epcgroup set {path} SIZE) or limit the greedy one."
        )
    high = max((point.high for point in points), default=0)
    used = f" and used up to {format_size(high)}" if high else ""
    return (
        f"{path} hit {size} {count:,} times{used}: what it touches does not fit. "
        f"Raise it (epcgroup set {path} SIZE) or give its enclaves smaller heaps."
    )


def _changes(question: Question, events: Sequence[Event]) -> Iterator[str]:
    """Limits that were set on the way to the root."""
    for event in events:
        if event.kind == model.SET and event.group in ancestors(question.group):
            limit = "max" if event.limit is None else format_size(event.limit)
            use = "" if event.current is None else f", with {format_size(event.current)} in use"
            yield f"{clock(event.at)}  the limit of {event.group} was set to {limit}{use}."


def _waiting(
    points: Sequence[Point],
) -> tuple[float | None, tuple[float, float] | None, int, int]:
    """(share of the time some process waited, worst moment and its share, pages in, pages out).

    A simulation tells only the time of all threads together: where nothing waited more, that.
    """
    steps = [
        (before, after)
        for before, after in pairwise(points)
        if before.current is not None and after.some_s >= before.some_s and after.at > before.at
    ]
    if not steps:
        return None, None, 0, 0
    told = any(after.some_s for _, after in steps)
    waits = [
        (after.some_s - before.some_s) if told else (after.stall_s - before.stall_s)
        for before, after in steps
    ]
    spans = [after.at - before.at for before, after in steps]
    shares = [
        (after.at, min(wait / span, 1.0)) for (_, after), wait, span in zip(steps, waits, spans, strict=True)
    ]
    worst = max(shares, key=lambda share: share[1])
    loaded = sum(after.pages_in - before.pages_in for before, after in steps)
    evicted = sum(after.pages_out - before.pages_out for before, after in steps)
    return min(sum(waits) / sum(spans), 1.0), (worst if worst[1] >= _SLOW else None), loaded, evicted


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= _SLOW else "less than 1 %"


def clock(at: float) -> str:
    """Local time of day; the date too when it is not today's. Virtual time in seconds."""
    if at < 1e8:
        return f"{at:.3f} s"
    then = time.localtime(at)
    return time.strftime("%H:%M:%S" if then[:3] == time.localtime()[:3] else "%Y-%m-%d %H:%M:%S", then)


def moment(text: str, now: float) -> float:
    """``12:03``, ``12:03:20`` (the last such moment), a date and time, or seconds since 1970.

    Raises BadInput for anything else.
    """
    import datetime

    for form in ("%H:%M", "%H:%M:%S"):
        try:
            clock = datetime.datetime.strptime(text, form).time()
        except ValueError:
            continue
        today = datetime.datetime.fromtimestamp(now)
        at = datetime.datetime.combine(today, clock).timestamp()
        return at if at <= now else at - 24 * 3600
    with contextlib.suppress(ValueError):
        if math.isfinite(at := float(text)):
            return at
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise BadInput(f"--at {text!r}: write a time as 12:03, 12:03:20 or 2026-11-26T12:03") from None
