"""What all tests share: their order, the recorded data, and what the machine must have.

No test is skipped. A machine that lacks something fails the test that needs
it, and the message says what to do: a suite that passes has run every promise.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import settings
from tests import beforehand

ROOT = Path(__file__).resolve().parent.parent

# Cheap and telling first.
ORDER = tuple(
    f"tests/{name}" for name in ("unit", "property", "conformance", "sim", "fuzz", "e2e", "soak", "contract")
)

settings.register_profile("epcgroup", deadline=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("epcgroup"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "epcgroup")


def pytest_configure() -> None:
    """The same surroundings for the programs that tests start, wherever the suite is started from."""
    # A background job of a script ignores SIGINT, and so would whatever is to be interrupted.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A suite under nohup ignores SIGHUP, and so would every command that is to be hung up.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Containers set this; each of a thousand interpreters would then compile all of epcgroup for itself.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


# -- order -------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by directory, and keep the order of files and lines within each."""

    def rank(item: pytest.Item) -> int:
        place = item.path.relative_to(ROOT).as_posix() if item.path.is_relative_to(ROOT) else ""
        ranks = [rank for rank, directory in enumerate(ORDER) if place.startswith(f"{directory}/")]
        return ranks[0] if ranks else len(ORDER)

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """What takes long to make is begun, unless the tests are only listed.

    Whatever has been started already, as the fuzzer's minute, has the second processor before.
    """
    paths = {
        item.path.relative_to(ROOT).as_posix() for item in session.items if item.path.is_relative_to(ROOT)
    }
    started = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    pipe = None if session.config.option.collectonly else beforehand.begin(paths, started)
    try:
        return (yield)
    finally:  # what is still being made is wanted by nobody any more
        if pipe is not None:
            os.close(pipe)


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path, None, None]:
    """Tests keep their machines' keys to themselves, not in the user's home."""
    before = os.environ.get("XDG_STATE_HOME")
    directory = tmp_path_factory.mktemp("state")
    os.environ["XDG_STATE_HOME"] = str(directory)
    yield directory
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before


# -- what the machine must have ----------------------------------------------


def _tool(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


def _userfaultfd() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK)  # userfaultfd on x86-64
    if descriptor < 0:
        return False
    os.close(descriptor)
    return True


def _ptrace() -> bool:
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return not scope.exists() or scope.read_text().strip() != "3"


def _installed(tool: str, package: str) -> tuple[Callable[[], bool], str]:
    return _tool(tool), f"run `make test`, which installs it, or: apt-get install {package}"


CAPABILITIES: dict[str, tuple[Callable[[], bool], str]] = {
    "x86-64": (lambda: os.uname().machine == "x86_64", "SGX programs are x86-64 programs"),
    "gcc": _installed("gcc", "gcc libc6-dev"),
    "make": (_tool("make"), "apt-get install make"),
    "qemu": _installed("qemu-system-x86_64", "--no-install-recommends qemu-system-x86"),
    "runc": _installed("runc", "runc"),
    "crun": _installed("crun", "crun"),
    "podman": _installed("podman", "podman"),
    "containerd": _installed("ctr", "containerd"),
    "busybox": _installed("busybox", "busybox-static"),
    "systemd-cgls": _installed("systemd-cgls", "systemd"),
    "valgrind": _installed("valgrind", "valgrind"),
    "sqlite3": _installed("sqlite3", "sqlite3"),
    "promtool": _installed("promtool", "prometheus"),
    "chromium": _installed("chromedriver", "chromium chromium-driver"),
    "strace": _installed("strace", "strace"),
    "gdb": _installed("gdb", "gdb"),
    "go": _installed("go", "golang-go"),
    "rustc": _installed("rustc", "rustc"),
    "userfaultfd": (
        _userfaultfd,
        "userfaultfd(2) is refused: run as root, or sysctl vm.unprivileged_userfaultfd=1; "
        "in a container also allow it in the seccomp profile",
    ),
    "fuse": (
        lambda: os.access("/dev/fuse", os.R_OK | os.W_OK) and shutil.which("fusermount3") is not None,
        "run `make test`, which installs it, or: apt-get install fuse3; a container needs /dev/fuse too",
    ),
    "cgroup2": (
        lambda: "\tcgroup2\n" in Path("/proc/filesystems").read_text(),
        "this kernel has no cgroup2, beside which our files are held",
    ),
    "two processors": (
        lambda: len(os.sched_getaffinity(0)) > 1,
        "with one processor, or one that is allowed, nothing is ever bound to it",
    ),
    "root": (lambda: os.geteuid() == 0, "this test mounts and changes users: run it as root"),
    "static-python": (
        lambda: any(Path("/usr/lib").glob("python3.*/config-*/libpython3.*-pic.a")),
        "run `make test`, which installs it, or: apt-get install libpython3-dev",
    ),
    "static-sqlite": (
        lambda: any(Path("/usr/lib").glob("*/libsqlite3.a")),
        "run `make test`, which installs it, or: apt-get install libsqlite3-dev",
    ),
    "cgroup-tools": _installed("cgset", "cgroup-tools"),
    "inotifywait": _installed("inotifywait", "inotify-tools"),
    "ptrace": (_ptrace, "tracing is off: sysctl kernel.yama.ptrace_scope=1"),
}


def need_capability(name: str) -> None:
    """Fail the running test, with advice, unless the machine has capability ``name``."""
    try:
        probe, advice = CAPABILITIES[name]
    except KeyError:
        known = ", ".join(sorted(CAPABILITIES))
        raise pytest.UsageError(f"no capability is called {name!r}; known are: {known}") from None
    if not probe():
        pytest.fail(f"this machine lacks {name}: {advice}", pytrace=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check ``@pytest.mark.needs("gcc", …)`` before any fixture does work."""
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            need_capability(name)


@pytest.fixture(scope="session")
def need() -> Callable[[str], None]:
    """``need("gcc")``: fails the test, with advice, where the machine lacks it."""
    return need_capability


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],  # noqa: ARG001 - pytest passes arguments by name
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip is a failure here; only an expected failure (xfail) is let through."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} wanted to be skipped; let it fail through need() instead"
    return report


# -- recorded data -----------------------------------------------------------


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The recorded observations: ``$EPCGROUP_GOLDEN``, else ``../shared/golden`` beside the checkout."""
    named = os.environ.get("EPCGROUP_GOLDEN")
    directory = Path(named) if named else ROOT.parent / "shared" / "golden"
    if not (directory / "misc_conformance.jsonl").is_file():
        pytest.fail(
            f"no recorded observations in {directory}: set EPCGROUP_GOLDEN to the directory "
            "that holds misc_conformance.jsonl and the epc_*.jsonl files",
            pytrace=False,
        )
    return directory


@pytest.fixture
def one_processor() -> Generator[None, None, None]:
    """Threads stay on one: a page that another one just wrote keeps its entry for a while."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)
