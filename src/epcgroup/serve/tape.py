"""A recording of a served machine, carried over its control socket.

    client → {"do": "record"}      server → {"enclaves", "pages": base64 of int32, "sizes", "lost"}

The first request begins, each further one takes what came since; the end of the
connection is the end of the recording.
"""

from __future__ import annotations

import base64
from array import array
from typing import TYPE_CHECKING, Any, Self

from epcgroup.errors import BadInput, Refused
from epcgroup.serve import wire
from epcgroup.serve.client import connect

if TYPE_CHECKING:
    from epcgroup.live.paging.recording import Seen
    from epcgroup.serve.places import Places

LONGEST = 1 << 28  # bytes of one message


def packed(seen: Seen) -> dict[str, Any]:
    """As a message."""
    return {
        "enclaves": base64.b64encode(seen.enclaves.tobytes()).decode(),
        "pages": base64.b64encode(seen.pages.tobytes()).decode(),
        "sizes": [[number, *what] for number, what in seen.sizes.items()],
        "lost": seen.lost,
    }


class Tape:
    """The client's end. Raises Refused when there is no server, or when it is recorded already."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._connection = connect(places)
        try:
            self._kept = self._ask()  # it begins now
        except Refused:
            self._connection.close()
            raise

    def take(
        self, *, all_: bool = False
    ) -> tuple[array[int], array[int], dict[int, tuple[int, str, str]], int]:
        """Enclaves and pages of what came since, sizes (see live.recording.Seen), how many were lost.

        Nothing while it is not worth it, unless ``all_``: the last time.
        """
        message = self._ask(all_=all_)
        columns = []
        for name in ("enclaves", "pages"):
            column = array("i")
            for part in (self._kept, message):
                column.frombytes(base64.b64decode(part[name]))
            columns.append(column)
        lost = self._kept["lost"] + message["lost"]
        self._kept = {"enclaves": "", "pages": "", "lost": 0}
        sizes = {number: (size, group, command) for number, size, group, command in message["sizes"]}
        return columns[0], columns[1], sizes, lost

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def _ask(self, *, all_: bool = False) -> dict[str, Any]:
        try:
            wire.send(self._connection, {"do": "record", "all": all_})
            received = wire.receive(self._connection, longest=LONGEST)
        except (OSError, BadInput) as error:
            raise Refused(f"the server at {self._places.directory} is gone ({error})") from error
        if received is None:
            raise Refused(f"the server at {self._places.directory} is gone")
        if "error" in received[0]:
            raise Refused(received[0]["error"])
        return received[0]
