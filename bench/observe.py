"""What being watched costs: paging throughput of the demo's batch with every view attached, and with none.

A served machine with the demo's three tenants: batch pages against its own limit as
fast as it can. Watched, `epcgroup top` (on a terminal of its own), `epcgroup exporter`
and the server's own metrics, each scraped once a second, and `epcgroup web` in a real
Chromium look on, all on this machine, none of them pinned.

A machine's noise is larger than what is sought, so one window of each kind decides
nothing. The views are attached once, and stopped (SIGSTOP) and continued by turns: short
windows, plain, watched, watched, plain and so on, so that what drifts hits both kinds.
Each pair of neighbours gives a ratio; the median counts, and is printed with the
interval that holds the true median with 95 % (order statistics, no assumption on
the noise). Beside it the processor time of server and batch for a load, by the
same pairs: what other processes do blurs it less.
"""

from __future__ import annotations

import contextlib
import math
import os
import pty
import signal
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from _server import EPCGROUP, TENANTS, listening, server, tenant, url

LEAST = 0.95
PAIRS = 70
WINDOW_S = 1.0  # each view looks once or twice
SETTLE_S = 0.1  # after a change
LONGEST_S = 2 * PAIRS * (WINDOW_S + SETTLE_S) + 60


class Attached:
    """Views that look on together: the processes, and a scraper in this one."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.pids: list[int] = []
        self.scrapes = 0
        self._urls = urls
        self._watching = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._scrape, daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """All of them look."""
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)
        self._watching.set()

    def stop(self) -> None:
        """None of them does."""
        self._watching.clear()
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def close(self) -> None:
        """Nobody is stopped any more."""
        self.go_on()
        self._ended.set()
        self._thread.join(30)

    def cpu_s(self) -> float:
        """Processor time of all of them so far."""
        return sum(map(cpu_s, self.pids))

    def _scrape(self) -> None:
        while not self._ended.is_set():
            self._watching.wait()
            for at in self._urls:
                with urllib.request.urlopen(at, timeout=30) as answer:
                    answer.read()
                self.scrapes += 1
            self._ended.wait(1.0)


@contextlib.contextmanager
def top(directory: Path) -> Iterator[int]:
    """`epcgroup top` on a pseudo terminal that somebody reads; its pid."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(EPCGROUP, [EPCGROUP, "top", "--dir", str(directory)])

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(fd, 1 << 16):
                pass

    threading.Thread(target=read, daemon=True).start()
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)


@contextlib.contextmanager
def browser(at: str, home: Path) -> Iterator[list[int]]:
    """Chromium that shows the page, live; the pids of its processes."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
                 "--disable-background-networking", "--disable-component-update", "--window-size=1280,860",
                 f"--user-data-dir={home}"):  # fmt: skip
        options.add_argument(word)
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        driver.get(at)
        while driver.execute_script("return document.getElementById('link').textContent") != "live":
            time.sleep(0.1)
        yield descendants(driver.service.process.pid)
    finally:
        driver.quit()


def descendants(pid: int) -> list[int]:
    """The processes below one."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(word) for file in children for word in file.read_text().split()]
    return found + [below for child in found for below in descendants(child)]


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, of its threads that live."""
    total = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total += int(file.read_text().split()[0])
    return total / 1e9


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The order statistics between which the median of what they are drawn from lies, with 95 %."""
    count, below, rank = len(values), 0.0, 0
    while below + math.comb(count, rank) / 2**count < 0.025:
        below += math.comb(count, rank) / 2**count
        rank += 1
    ordered = sorted(values)
    return ordered[max(rank - 1, 0)], ordered[min(count - rank, count - 1)]


class Window:
    """What batch did in a span of time: loads a second, processor seconds of server and batch for one."""

    def __init__(self, loads: Callable[[], tuple[float, int]], pids: Sequence[int]) -> None:
        then, before = loads()
        used = sum(map(cpu_s, pids))
        time.sleep(WINDOW_S)
        now, after = loads()
        self.rate = (after - before) / (now - then)
        self.cost = (sum(map(cpu_s, pids)) - used) / (after - before)


def windows(directory: Path) -> Iterator[tuple[Window, Window, float]]:
    """Pairs of neighbours, plain and watched; and what the views used of a processor meanwhile."""
    from epcgroup.serve.places import Places
    from epcgroup.serve.sources import SocketSource

    with contextlib.ExitStack() as stack:
        started = stack.enter_context(server(directory, "--metrics", "0"))
        urls = [url(started)]
        for name in TENANTS:
            stack.enter_context(tenant(directory, name, LONGEST_S))
        exporter, at = stack.enter_context(listening("exporter", "--dir", str(directory), "--listen", "0"))
        page, address = stack.enter_context(listening("web", "--dir", str(directory), "--listen", "0"))
        source = SocketSource(Places(directory))
        stack.callback(source.close)

        def loads() -> tuple[float, int]:
            snapshot = source.snapshot()
            group = snapshot.group("/batch")
            return snapshot.at, 0 if group is None else group.pages_in

        pid = stack.enter_context(top(directory))
        chromium = stack.enter_context(browser(address, directory / "chromium"))
        attached = Attached([*urls, at])
        stack.callback(attached.close)
        attached.pids = [exporter.pid, page.pid, pid, *chromium]
        while loads()[1] < 20_000:  # its heap is filled
            time.sleep(0.2)
        paging = [started.pid, *(p.pid for p in source.snapshot().processes if p.group == "/batch")]

        def window(watched: bool) -> Window:
            (attached.go_on if watched else attached.stop)()
            time.sleep(SETTLE_S)
            return Window(loads, paging)

        for number in range(PAIRS):
            used, began = attached.cpu_s(), time.monotonic()
            seen = {watched: window(watched) for watched in ((False, True) if number % 2 else (True, False))}
            share = (
                (attached.cpu_s() - used) / (time.monotonic() - began) * 2
            )  # half of the time they are stopped
            yield seen[False], seen[True], share


def throughput() -> bool:
    """Whether the limit is kept."""
    with tempfile.TemporaryDirectory(prefix="epcgroup-bench-", ignore_cleanup_errors=True) as name:
        pairs = list(windows(Path(name)))
    rates = [watched.rate / plain.rate for plain, watched, _ in pairs]
    costs = [watched.cost / plain.cost for plain, watched, _ in pairs]
    speed = statistics.median(plain.rate for plain, _, _ in pairs)
    each = statistics.median(plain.cost for plain, _, _ in pairs) * 1e6
    views = statistics.median(share for _, _, share in pairs)
    low, high = median_interval(rates)
    print(
        "batch watched by top, two exporters and a page in Chromium: "
        f"{statistics.median(rates):.1%} of unwatched, {speed:,.0f} loads/s (at least {LEAST:.0%}); "
        f"95 % sure of {low:.1%} to {high:.1%}, {len(pairs)} pairs"
    )
    low, high = median_interval(costs)
    print(
        f"processor time of server and batch for a load: {statistics.median(costs):.2f}× of unwatched, "
        f"{each:.1f} µs; 95 % sure of {low:.2f} to {high:.2f}; the views use {views:.1%} of a processor"
    )
    return statistics.median(rates) >= LEAST


def looks() -> bool:
    """What a look costs the server: milliseconds of its processor, which a busy machine cannot blur."""
    from epcgroup.serve.places import Places
    from epcgroup.serve.sources import SocketSource

    most, kept = 1e3 * (1 - LEAST), True
    with (
        tempfile.TemporaryDirectory(prefix="epcgroup-bench-") as name,
        server(Path(name), "--metrics", "0") as one,
    ):
        metrics, source = url(one), SocketSource(Places(Path(name)))
        for what, look in (
            ("a look by its socket", source.snapshot),
            ("a scrape of its metrics", lambda: urllib.request.urlopen(metrics).read()),
        ):
            look()
            times, used = 300, whole_cpu_s(one.pid)
            for _ in range(times):
                look()
            cost = (whole_cpu_s(one.pid) - used) / times * 1e3
            print(f"{what}: {cost:.2f} ms of the server's processor (limit {most:.0f} ms)")
            kept &= cost <= most
        source.close()
    return kept


def whole_cpu_s(pid: int) -> float:
    """Processor time of a process so far, of threads that ended too; in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    kept = [throughput(), looks()]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    raise SystemExit(main())
