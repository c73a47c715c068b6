"""Who is told that a misc.events file changed, and how often (spec 1.6).

Every counted event announces a change of one or two files in every counting
group. Under thrashing that is thousands a second, so the kernel lets through at
most one announcement per file in a window of about 10 ms and defers a later one
to the window's end: changes are merged, the last is never lost (MISC-51).

Both parts are pure: time comes in as an argument, and whoever owns a clock asks
``due`` when to call ``expire``.
"""

from __future__ import annotations

from collections.abc import Callable

from epcgroup.misc.tree import G, Group, Tree

WINDOW_S = 0.01


class RateLimiter:
    """One file's announcements: at most one a window, the last one never lost."""

    __slots__ = ("_open_until", "due", "window_s")

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self.window_s = window_s
        self.due: float | None = None  # when the deferred announcement is to be made
        self._open_until = float("-inf")

    def changed(self, now: float) -> bool:
        """The file changed; True: announce it now, False: deferred to ``due``."""
        if self.due is not None:
            return False
        if now < self._open_until:
            self.due = self._open_until
            return False
        self._open_until = now + self.window_s
        return True

    def expire(self, now: float) -> bool:
        """True when a deferred announcement is due: make it now."""
        if self.due is None or now < self.due:
            return False
        self.due = None
        self._open_until = now + self.window_s
        return True


Listener = Callable[[Group, str], None]


class Subscriptions:
    """Listeners by group and file; install it with ``Subscriptions(tree)``."""

    def __init__(self, tree: Tree[G]) -> None:
        self._listeners: dict[tuple[Group, str], list[Listener]] = {}
        tree.notify = self._tell

    def subscribe(self, group: Group, file: str, listener: Listener) -> Callable[[], None]:
        """Call ``listener(group, file)`` at every change; returns the way to stop it."""
        listeners = self._listeners.setdefault((group, file), [])
        listeners.append(listener)
        return lambda: listeners.remove(listener)

    def _tell(self, group: Group, file: str) -> None:
        for listener in list(self._listeners.get((group, file), ())):
            listener(group, file)
