"""The other end of the control socket: run a command inside a machine that serves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from epcgroup.errors import BadInput, Refused
from epcgroup.host.cgroup import normal
from epcgroup.programs import find_program, ignored
from epcgroup.serve import wire
from epcgroup.serve.places import Places

_FORWARDED = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGWINCH, signal.SIGALRM,
)  # fmt: skip


def connect(places: Places) -> socket.socket:
    """A connection to the server of these places. Raises Refused when there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(places.socket))
    except OSError as error:
        sock.close()
        raise Refused(
            f"no server answers at {places.socket} ({error.strerror or error}); "
            "start one: epcgroup serve --epc 128M"
        ) from error
    return sock


def where(places: Places) -> dict[str, Any]:
    """What the server says of itself: ``mount`` and ``pid``."""
    with connect(places) as sock:
        wire.send(sock, {"do": "where"})
        received = wire.receive(sock)
    if received is None:
        raise Refused("the server refused to answer")
    return received[0]


def execute(
    places: Places,
    group: str,
    argv: Sequence[str],
    *,
    create: bool = False,
    host_cgroup: bool = False,
    rlimits: bool = False,
) -> int:
    """Run a command in a cgroup of the machine as if it were run here; its wait status.

    Our standard descriptors, directory and environment become its own; signals
    to us go to it. ``host_cgroup``: it sees the host's /sys/fs/cgroup, not the
    machine's; ``rlimits``: a resource limit that may not be raised counts as raised.
    Raises BadInput, Refused when it cannot be started.
    """
    group = normal(group)
    program = find_program(argv[0])
    try:
        here = os.getcwd()  # noqa: PTH109 - a str, whatever bytes are in it
    except FileNotFoundError:
        raise BadInput("the current directory is gone; change to one that is there") from None
    request = {
        "do": "exec",
        "group": group,
        "create": create,
        "host_cgroup": host_cgroup,
        "rlimits": rlimits,
        "ignored": sorted(ignored),
        "argv": [str(Path(program).absolute()), *argv[1:]],
        "env": dict(os.environ),
        "cwd": here,
    }
    with connect(places) as sock, contextlib.ExitStack() as stack:
        wire.send(sock, request, [_standard(fd, stack) for fd in range(3)])
        answer = _answer(sock)
        if "error" in answer:
            raise Refused(answer["error"])
        _forward(sock)
        status = _answer(sock)["status"]
    return int(status)


def attach(places: Places, pid: int, group: str | None, *, create: bool = False) -> list[int]:
    """Have a running process, its threads and children join the machine; the processes that did.

    ``group`` None: where its cgroup.procs says, else the root. Raises BadInput, Refused.
    """
    group = None if group is None else normal(group)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise Refused(f"process {pid}: {error.strerror}", error.errno) from None
    try:
        with connect(places) as sock:
            wire.send(sock, {"do": "attach", "group": group, "create": create}, [pidfd])
            answer = _answer(sock)
    finally:
        os.close(pidfd)
    if "error" in answer:
        raise Refused(answer["error"])
    return list(answer["joined"])


def _standard(fd: int, stack: contextlib.ExitStack) -> int:
    """Our standard descriptor, /dev/null where it is closed."""
    try:
        os.fstat(fd)
    except OSError:
        return stack.enter_context(open(os.devnull, "r+b")).fileno()  # noqa: PTH123
    return fd


def _answer(sock: socket.socket) -> dict[str, Any]:
    try:
        received = wire.receive(sock)
    except OSError:
        received = None
    if received is None:
        raise Refused("the server is gone, and the command with it")
    return received[0]


def _forward(sock: socket.socket) -> None:
    """From now on our signals are the command's."""

    def send(number: int) -> None:
        with contextlib.suppress(OSError):
            wire.send(sock, {"signal": int(number)})

    def forward(number: int, _: FrameType | None) -> None:
        send(number)

    def suspend(_number: int, _: FrameType | None) -> None:
        send(signal.SIGSTOP)  # a background session ignores SIGTSTP
        os.kill(os.getpid(), signal.SIGSTOP)
        send(signal.SIGCONT)

    for number in _FORWARDED:
        if number not in ignored:
            signal.signal(number, forward)
    signal.signal(signal.SIGTSTP, suspend)
