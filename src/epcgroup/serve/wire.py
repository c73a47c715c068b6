"""Messages between a client and the server: a length, JSON, and descriptors with the first.

Bytes that are no UTF-8 (in arguments, names, the environment) travel as lone
surrogates, as Python keeps them.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

from epcgroup.errors import BadInput

_LENGTH = struct.Struct("!I")
LONGEST = 1 << 24  # bytes; an environment is at most a few MB
_FDS = 8


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message; OSError when nobody is there."""
    body = json.dumps(message).encode()
    if fds:
        socket.send_fds(sock, [_LENGTH.pack(len(body))], list(fds))
        sock.sendall(body)
    else:
        sock.sendall(_LENGTH.pack(len(body)) + body)


def receive(sock: socket.socket, longest: int = LONGEST) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors (CLOEXEC), None at the end.

    Raises BadInput for what is no message, OSError when nobody is there any more; then nothing is left open.
    """
    head, fds = _head(sock)
    try:
        if not head:
            return None
        (length,) = _LENGTH.unpack(head + _exactly(sock, _LENGTH.size - len(head)))
        if length > longest:
            raise BadInput(f"a message of {length} bytes")
        message = json.loads(_exactly(sock, length))
        if not isinstance(message, dict):
            raise BadInput("a message that is no object")
    except (ValueError, EOFError, OSError) as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, OSError):
            raise
        raise BadInput(f"no message: {error}") from error
    return message, fds


def _head(sock: socket.socket) -> tuple[bytes, list[int]]:
    """The first bytes and what came with them (socket.recv_fds drops its flags, CLOEXEC with them)."""
    fds = array.array("i")
    room = socket.CMSG_LEN(_FDS * fds.itemsize)
    head, controls, _, _ = sock.recvmsg(_LENGTH.size, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in controls:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return head, list(fds)


def _exactly(sock: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = sock.recv(length - len(parts))
        if not part:
            raise EOFError("the connection ended in the middle of a message")
        parts += part
    return bytes(parts)
