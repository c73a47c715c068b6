"""What being watched costs: paging throughput of the demo's batch with every view attached, and with none.

A served machine with the demo's three tenants: batch pages against its own limit as
fast as it can. Watched, `epcgroup top` (on a terminal of its own), `epcgroup exporter`
and the server's own metrics, each scraped once a second, and `epcgroup web` in a real
Chromium look on, all on this machine, none of them pinned. Three figures:

* The views' processor time, and the server's for their looks. Paging goes from one thread to
  the next, so it uses one processor at a time: even if every cycle of the views were
  taken from that one, paging keeps the rest. Noise of the machine hardly moves this; it decides.
* Loads a second, watched against not. Noise is larger than what is sought, so the views are attached once
  and stopped (SIGSTOP) and continued by turns: short windows, plain, watched, watched,
  plain and so on, so that what drifts hits both. Each pair of neighbours gives a ratio; the
  median is printed with the interval that holds the true one with 95 % (order statistics, no
  assumption on the noise), and only an interval that lies below the limit breaks it.
* Processor time of server and batch for a load, by the same pairs: whether being watched makes a load dearer.
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

from _server import EPCGROUP, TENANTS, listening, server, tenant, url, whole_cpu_s

LEAST = 0.95
ALONE_S = 15.0  # of watching without a pause
PAIRS = 50
WINDOW_S = 1.0  # each view looks once or twice
SETTLE_S = 0.1  # after a change
LONGEST_S = 2 * PAIRS * (WINDOW_S + SETTLE_S) + ALONE_S + 60


class Attached:
    """Views that look on together: the processes, and a scraper in this one."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.views: dict[str, list[int]] = {}  # pids
        self._urls = urls
        self._watching = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._scrape, daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """All of them look."""
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)
        self._watching.set()

    def stop(self) -> None:
        """None of them does."""
        self._watching.clear()
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def close(self) -> None:
        """Nobody is stopped any more."""
        self.go_on()
        self._ended.set()
        self._thread.join(30)

    def cpu_s(self) -> dict[str, float]:
        """Processor time of each of them so far."""
        return {name: sum(map(whole_cpu_s, pids)) for name, pids in self.views.items()}

    def _pids(self) -> list[int]:
        return [pid for pids in self.views.values() for pid in pids]

    def _scrape(self) -> None:
        while not self._ended.is_set():
            self._watching.wait()
            for at in self._urls:
                with urllib.request.urlopen(at, timeout=30) as answer:
                    answer.read()
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


class Bench:
    """A served machine that pages, and its views."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        from epcgroup.serve.places import Places
        from epcgroup.serve.sources import SocketSource

        started = stack.enter_context(server(directory, "--metrics", "0"))
        urls = [url(started)]
        for name in TENANTS:
            stack.enter_context(tenant(directory, name, LONGEST_S))
        exporter, at = stack.enter_context(listening("exporter", "--dir", str(directory), "--listen", "0"))
        page, address = stack.enter_context(listening("web", "--dir", str(directory), "--listen", "0"))
        self._source = SocketSource(Places(directory))
        stack.callback(self._source.close)
        terminal = stack.enter_context(top(directory))
        chromium = stack.enter_context(browser(address, directory / "chromium"))
        self._attached = Attached([*urls, at])
        stack.callback(self._attached.close)
        self._attached.views = {
            "top": [terminal], "exporter": [exporter.pid], "web": [page.pid], "Chromium": chromium
        }  # fmt: skip
        while self._loads()[1] < 20_000:  # its heap is filled
            time.sleep(0.2)
        members = [p.pid for p in self._source.snapshot().processes if p.group == "/batch"]
        self._paging = [started.pid, *members]

    def shares(self) -> dict[str, float]:
        """Processors that each view uses while it looks on."""
        self._attached.go_on()
        time.sleep(2)
        used, began = self._attached.cpu_s(), time.monotonic()
        time.sleep(ALONE_S)
        span = time.monotonic() - began
        return {name: (now - used[name]) / span for name, now in self._attached.cpu_s().items()}

    def pairs(self) -> Iterator[tuple[Window, Window]]:
        """Neighbours: plain and watched."""
        for number in range(PAIRS):
            order = (False, True) if number % 2 else (True, False)
            seen = {watched: self._window(watched=watched) for watched in order}
            yield seen[False], seen[True]

    def _window(self, *, watched: bool) -> Window:
        (self._attached.go_on if watched else self._attached.stop)()
        time.sleep(SETTLE_S)
        return Window(self._loads, self._paging)

    def _loads(self) -> tuple[float, int]:
        snapshot = self._source.snapshot()
        group = snapshot.group("/batch")
        return snapshot.at, 0 if group is None else group.pages_in


def watched(per_second: float) -> bool:
    """Whether the limit is kept; ``per_second``: of the server's processor, for all looks of a second."""
    folder = tempfile.TemporaryDirectory(prefix="epcgroup-bench-", ignore_cleanup_errors=True)
    with folder as name, contextlib.ExitStack() as stack:
        bench = Bench(Path(name), stack)
        shares = bench.shares()
        pairs = list(bench.pairs())
    kept = 1 - sum(shares.values()) - per_second
    each = ", ".join(f"{view} {share:.1%}" for view, share in shares.items())
    print(
        f"top, two exporters and a page in Chromium take at most {1 - kept:.1%} of the processor that pages "
        f"({each}, their looks {per_second:.2%}): {kept:.1%} is left (at least {LEAST:.0%})"
    )
    rates = [with_views.rate / plain.rate for plain, with_views in pairs]
    low, high = median_interval(rates)
    speed = statistics.median(plain.rate for plain, _ in pairs)
    print(
        f"batch watched: {statistics.median(rates):.1%} of unwatched, {speed:,.0f} loads/s "
        f"(at least {LEAST:.0%}); 95 % sure of {low:.1%} to {high:.1%}, {len(pairs)} pairs"
    )
    costs = [with_views.cost / plain.cost for plain, with_views in pairs]
    cheapest, dearest = median_interval(costs)
    cost = statistics.median(plain.cost for plain, _ in pairs) * 1e6
    print(
        f"processor time of server and batch for a load: {statistics.median(costs):.2f}× of unwatched, "
        f"{cost:.1f} µs; 95 % sure of {cheapest:.2f} to {dearest:.2f}"
    )
    return kept >= LEAST and high >= LEAST


def looks() -> float:
    """Processor seconds of the server for the looks of a second: three by its socket, one scrape."""
    from epcgroup.serve.places import Places
    from epcgroup.serve.sources import SocketSource

    costs = {}
    with (
        tempfile.TemporaryDirectory(prefix="epcgroup-bench-") as name,
        server(Path(name), "--metrics", "0") as one,
    ):
        metrics, source = url(one), SocketSource(Places(Path(name)))
        for what, look in (
            ("look by its socket", source.snapshot),
            ("scrape of its metrics", lambda: urllib.request.urlopen(metrics).read()),
        ):
            look()
            times, used = 300, whole_cpu_s(one.pid)
            for _ in range(times):
                look()
            costs[what] = (whole_cpu_s(one.pid) - used) / times
            print(f"a {what}: {costs[what] * 1e3:.2f} ms of the server's processor")
        source.close()
    return 3 * costs["look by its socket"] + costs["scrape of its metrics"]


def main() -> int:
    return 0 if watched(looks()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
