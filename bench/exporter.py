"""A scrape of 10,000 cgroups: our writer against prometheus-client's, and over HTTP from a real, busy server.

The first scrape writes every line; later ones keep those of cgroups that did not
change. The peer is a custom collector on prometheus-client with the same samples.

The real server holds 10,000 cgroups and a tenant that pages as fast as it can. It is
scraped from beside (`epcgroup exporter`) and from inside (`serve --metrics`): a first
time, with next to nothing changed, and with the limit of every cgroup written between
two scrapes. Medians count, the longest is printed.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from _server import listening, server, tenant, url, whole_cpu_s
from epcgroup.observe import GroupView, Snapshot
from epcgroup.observe.metrics import FAMILIES, Metrics

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
                value = getattr(group, family.field)
                if value is not None:
                    metric.add_metric([group.path], value)
            yield metric


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


def scraped(
    at: str, pids: Sequence[int], times: int, between: Callable[[], object] = lambda: None
) -> list[tuple[float, float]]:
    """Of some scrapes over HTTP, each after ``between``: milliseconds, and ``pids`` processor time."""
    took = []
    for _ in range(times):
        between()
        used, began = sum(map(whole_cpu_s, pids)), time.perf_counter()
        with urllib.request.urlopen(at, timeout=60) as answer:
            text = answer.read()
        lasted = time.perf_counter() - began
        took.append((lasted * 1e3, (sum(map(whole_cpu_s, pids)) - used) * 1e3))
        assert text.count(b"epc_cgroup_peak_bytes{") > GROUPS
    return took


def real(what: str, took: list[tuple[float, float]], peer: float) -> None:
    """A figure of the real server; processor time tells a slow scrape from a machine that is busy."""
    longest, used = max(took)[0], min(cpu for _, cpu in took)
    words = f"a busy server, {what} (longest {longest:.0f} ms, at best {used:.0f} ms of processor time)"
    say(words, statistics.median(wall for wall, _ in took), peer, LIMIT_MS)


def busy_server(peer: float) -> None:
    """Scrapes of a real server with a real tenant."""
    with tempfile.TemporaryDirectory(prefix="epcgroup-bench-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        tree = directory / "cgroup"
        started = stack.enter_context(server(directory, "--metrics", "0"))
        inside = url(started)
        stack.enter_context(tenant(directory, "batch", 220))
        groups = [tree / f"pod{number // 4:04}" / f"container{number:05}" for number in range(GROUPS)]
        for pod in {group.parent: None for group in groups}:
            pod.mkdir()
            (pod / "cgroup.subtree_control").write_text("+misc")
        for group in groups:
            group.mkdir()
        limits = iter(range(1, 1000))

        def change() -> None:
            limit = f"sgx_epc {next(limits) << 12}"
            for group in groups:
                (group / "misc.max").write_text(limit)

        pids = [started.pid]
        real("inside, the first scrape", scraped(inside, pids, 1), peer)
        real("inside, later", scraped(inside, pids, 9), peer)
        real("inside, all changed", scraped(inside, pids, 3, change), peer)
        firsts = []
        for _ in range(3):
            with listening("exporter", "--dir", name, "--listen", "0") as (exporter, beside):
                firsts += scraped(beside, [*pids, exporter.pid], 1)
        real("beside, the first scrape", firsts, peer)
        with listening("exporter", "--dir", name, "--listen", "0") as (exporter, beside):
            pids.append(exporter.pid)
            scraped(beside, pids, 1)
            real("beside, later", scraped(beside, pids, 9), peer)
            real("beside, all changed", scraped(beside, pids, 3, change), peer)


def main() -> int:
    first = next(machine(0))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Peer(first))
    peer = best(lambda: generate_latest(registry))
    say(f"{GROUPS:,} cgroups, first scrape", best(lambda: Metrics().text(first)), peer, LIMIT_MS)
    for busy in (0.01, 0.1, 1.0):
        shots, writer = machine(busy), Metrics()
        writer.text(next(shots))
        prepared = iter([next(shots) for _ in range(6)])
        ours = best(lambda shots=prepared, writer=writer: writer.text(next(shots)), 5)  # type: ignore[misc]
        say(f"later, {busy:.0%} of the cgroups changed", ours, peer, LIMIT_MS)
    busy_server(peer)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
