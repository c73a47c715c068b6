"""A scrape of 10,000 cgroups: our writer against prometheus-client's, over HTTP at the end.

The first scrape writes every line; later ones keep those of cgroups that did not
change. The peer is a custom collector on prometheus-client with the same samples.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from epcgroup.observe import GroupView, Snapshot
from epcgroup.observe.metrics import FAMILIES, Metrics
from epcgroup.observe.scrape import Exporter

GROUPS = 10_000
LIMIT_MS = 200.0
failed = False


class Peer(Collector):
    """The same samples by prometheus-client."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        for family in FAMILIES:
            kind = GaugeMetricFamily if family.kind == "gauge" else CounterMetricFamily
            metric = kind(family.name, family.help, labels=["cgroup"])
            for group in self.snapshot.groups:
                value = family.value(group)
                if value is not None:
                    metric.add_metric([group.path], value)
            yield metric


class Machine:
    """A source of prepared snapshots."""

    name = "bench"

    def __init__(self, shots: Iterator[Snapshot]) -> None:
        self._shots = shots

    def snapshot(self) -> Snapshot:
        return next(self._shots)

    def events(self, after: int = 0) -> tuple[()]:  # noqa: ARG002
        return ()

    def set_max(self, path: str, limit: int | None) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to close."""


def machine(busy: float) -> Iterator[Snapshot]:
    """Snapshots of which ``busy`` of the cgroups changed since the one before."""
    groups = [
        GroupView(
            f"/kubepods.slice/pod{n // 4:05}/container-{n:05}", 64 << 20, n, n, 1, 1, n, n, n, 0.5, secs=1
        )
        for n in range(GROUPS)
    ]
    for moment in range(1, 1000):
        for n in range(int(busy * GROUPS)):
            groups[n] = replace(groups[n], current=moment, pages_in=moment * 7, stall_s=moment / 7)
        yield Snapshot(float(moment), "standard", 1 << 20, 1, tuple(groups))


def best(work: Callable[[], object], rounds: int = 3) -> float:
    """Milliseconds of the fastest of some rounds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1e3)
    return min(times)


def say(what: str, ours: float, peer: float, limit: float | None) -> None:
    """One line per figure."""
    global failed
    bound = "" if limit is None else f" (limit {limit:g} ms)"
    print(f"{what}: {ours:.0f} ms, prometheus-client {peer:.0f} ms: {ours / peer:.2f}×{bound}")
    failed |= limit is not None and ours > limit


def main() -> int:
    first = next(machine(0))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Peer(first))
    peer = best(lambda: generate_latest(registry))
    say(f"{GROUPS:,} cgroups, first scrape", best(lambda: Metrics().text(first)), peer, None)
    for busy in (0.01, 0.1, 1.0):
        shots, writer = machine(busy), Metrics()
        writer.text(next(shots))
        prepared = iter([next(shots) for _ in range(6)])
        ours = best(lambda shots=prepared, writer=writer: writer.text(next(shots)), 5)  # type: ignore[misc]
        say(f"later, {busy:.0%} of the cgroups changed", ours, peer, LIMIT_MS if busy < 1 else None)
    prepared = machine(0.1)
    exporter = Exporter(Machine(iter([next(prepared) for _ in range(7)])), Metrics(), ("127.0.0.1", 0))
    exporter.start()
    request = urllib.request.Request(exporter.url, headers={"Accept-Encoding": "gzip"})
    urllib.request.urlopen(request).read()
    say(
        "over HTTP, 10% changed",
        best(lambda: urllib.request.urlopen(request).read(), 5),
        peer,
        LIMIT_MS,
    )
    exporter.close()
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
