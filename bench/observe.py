"""What being watched costs: paging throughput of the demo's batch with everything attached, and with nothing.

A served machine with the demo's three tenants: batch pages against its own limit as
fast as it can. Watched, `epcgroup top` (on a terminal of its own, once a second) and
`epcgroup exporter` look on from other processes, and that and the server's own
metrics are scraped once a second. Windows of both kinds alternate in one run of
batch, so that what else the machine does hits both; the median of pairs counts.

And a scrape of a real server with 10,000 cgroups, through its socket.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

EPCGROUP = str(Path(sys.executable).parent / "epcgroup")
LEAST = 0.95
SCRAPE_MS = 200.0
PAIRS = 6
WINDOW_S = 3.0
GROUPS = 10_000
TENANTS = {
    "web": ("9M", "zipf", "20000"),
    "neighbour": ("12M", "random", "20000"),
    "batch": ("48M", "random", None),
}

failed = False


@contextlib.contextmanager
def process(words: list[str], **how: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, text=True, **how) as started:  # type: ignore[call-overload]
        try:
            yield started
        finally:
            if started.poll() is None:
                started.send_signal(signal.SIGTERM)
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()


def said(started: subprocess.Popen[str], words: str) -> str:
    """The line of its stderr that has these words."""
    assert started.stderr is not None
    for line in started.stderr:
        if words in line:
            return line
    raise SystemExit(f"it never said {words!r}")


def drain(started: subprocess.Popen[str]) -> None:
    """Read what it says from now on, so that it never waits for us."""
    assert started.stderr is not None
    threading.Thread(target=started.stderr.read, daemon=True).start()


@contextlib.contextmanager
def top(directory: Path) -> Iterator[None]:
    """`epcgroup top` on a pseudo terminal that somebody reads."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(EPCGROUP, [EPCGROUP, "top", "--dir", str(directory)])
    alive = True

    def read() -> None:
        while alive:
            with contextlib.suppress(OSError):
                os.read(fd, 1 << 16)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield
    finally:
        alive = False
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)


@contextlib.contextmanager
def scraped(urls: list[str]) -> Iterator[None]:
    """Each URL once a second."""
    end = threading.Event()

    def scrape() -> None:
        while not end.wait(1.0):
            for url in urls:
                with urllib.request.urlopen(url, timeout=30) as answer:
                    answer.read()

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(30)


@contextlib.contextmanager
def watching(directory: Path, urls: list[str]) -> Iterator[None]:
    """Everything attached."""
    with top(directory), scraped(urls):
        time.sleep(2)  # top has drawn its first screen
        yield


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pairs() -> Iterator[tuple[float, float]]:
    """Pages loaded a second by batch: unwatched, then watched."""
    from epcgroup.serve.places import Places
    from epcgroup.serve.sources import SocketSource

    with tempfile.TemporaryDirectory(prefix="epcgroup-bench-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        words = [EPCGROUP, "serve", "--dir", name, "--epc", "64M", "--metrics", "0"]
        server = stack.enter_context(process(words, stderr=subprocess.PIPE))
        said(server, "serving")
        urls = [url(server)]
        for tenant in TENANTS:
            (directory / "cgroup" / tenant).mkdir()
            (directory / "cgroup" / tenant / "misc.max").write_text(f"sgx_epc {16 << 20}")
            stack.enter_context(process(stress(name, tenant, 170), stdout=subprocess.DEVNULL))
        words = [EPCGROUP, "exporter", "--dir", name, "--listen", "0"]
        urls.append(url(stack.enter_context(process(words, stderr=subprocess.PIPE))))
        source = SocketSource(Places(directory))
        stack.callback(source.close)

        def loaded() -> tuple[float, int]:
            snapshot = source.snapshot()
            group = snapshot.group("/batch")
            return snapshot.at, group.pages_in if group is not None else 0

        def rate() -> float:
            then, before = loaded()
            time.sleep(WINDOW_S)
            now, after = loaded()
            return (after - before) / (now - then)

        while loaded()[1] < 20_000:  # its heap is filled
            time.sleep(0.2)
        for _ in range(PAIRS):
            unwatched = rate()
            with watching(directory, urls):
                yield unwatched, rate()


def url(started: subprocess.Popen[str]) -> str:
    """Where an exporter says that it is."""
    found = re.search(r"http://\S+", said(started, "http://"))
    assert found is not None
    drain(started)
    return found[0]


def stress(directory: str, tenant: str, seconds: float) -> list[str]:
    """The command that is a tenant."""
    heap, pattern, rate = TENANTS[tenant]
    words = [EPCGROUP, "exec", "--dir", directory, "-g", tenant, "--", EPCGROUP, "stress", "--report", "json"]
    words += ["--heap", heap, "--pattern", pattern, "--seconds", str(seconds)]
    return words if rate is None else [*words, "--rate", rate]


def looks() -> Iterator[tuple[str, float]]:
    """What a look costs the server: milliseconds of its processor, which a busy machine cannot blur."""
    from epcgroup.serve.places import Places
    from epcgroup.serve.sources import SocketSource

    with tempfile.TemporaryDirectory(prefix="epcgroup-bench-") as name:
        words = [EPCGROUP, "serve", "--dir", name, "--epc", "64M", "--metrics", "0"]
        with process(words, stderr=subprocess.PIPE) as server:
            said(server, "serving")
            metrics, source = url(server), SocketSource(Places(Path(name)))

            def cost(look: Callable[[], object], times: int = 300) -> float:
                look()
                used = cpu_s(server.pid)
                for _ in range(times):
                    look()
                return (cpu_s(server.pid) - used) / times * 1e3

            yield "a look by its socket", cost(source.snapshot)
            yield "a scrape of its metrics", cost(lambda: urllib.request.urlopen(metrics).read())
            source.close()


def scrape_many() -> float:
    """Milliseconds of a scrape of a server with 10,000 cgroups from beside it; the best after the first."""
    from epcgroup.observe.metrics import Metrics
    from epcgroup.serve.places import Places
    from epcgroup.serve.sources import SocketSource

    with tempfile.TemporaryDirectory(prefix="epcgroup-bench-") as name:
        words = [EPCGROUP, "serve", "--dir", name, "--epc", "64M"]
        with process(words, stderr=subprocess.PIPE) as server:
            said(server, "serving")
            drain(server)
            for number in range(GROUPS):
                (Path(name) / "cgroup" / f"pod{number:05}").mkdir()
            source, writer = SocketSource(Places(Path(name))), Metrics()
            took = []
            for _ in range(6):
                began = time.perf_counter()
                writer.text(source.snapshot()).encode()
                took.append((time.perf_counter() - began) * 1e3)
            source.close()
    return min(took[1:])


def main() -> int:
    global failed
    measured = list(pairs())
    ratio = statistics.median(watched / plain for plain, watched in measured)
    speed = statistics.median(plain for plain, _ in measured)
    each = ", ".join(f"{watched / plain:.2f}" for plain, watched in measured)
    print(
        f"batch watched by top and two exporters: {ratio:.1%} of unwatched, {speed:,.0f} loads/s "
        f"(at least {LEAST:.0%}); pairs {each}"
    )
    failed |= ratio < LEAST
    most = 1e3 * (1 - LEAST)
    for what, cost in looks():
        print(f"{what}: {cost:.2f} ms of the server's processor (limit {most:.0f} ms)")
        failed |= cost > most
    took = scrape_many()
    print(
        f"a scrape of {GROUPS:,} cgroups of a server, from beside it: {took:.0f} ms (limit {SCRAPE_MS:g} ms)"
    )
    failed |= took > SCRAPE_MS
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
