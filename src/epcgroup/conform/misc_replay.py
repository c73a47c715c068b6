"""Replaying operations on the misc controller under one variant's rules."""

from __future__ import annotations

import errno
from typing import Any

from epcgroup.errors import BadInput, Refused
from epcgroup.misc import Group, Rules, Tree, files, try_charge, uncharge

Result = int | list[Any]


class MiscReplay:
    """One misc controller, and the charges that the operations hold."""

    def __init__(self, rules: Rules) -> None:
        self.tree = Tree(rules, Group)
        self._held: dict[Any, tuple[Group, int, int]] = {}

    def run(self, op: list[Any]) -> Result:
        """Result of one operation as recorded: a number, ``[0, text]``, ``[r, "WARN"]``."""
        handler = getattr(self, f"_op_{op[0]}", None)
        if handler is None:
            raise BadInput(f"unknown operation {op[0]!r}")
        underflows = self.tree.underflows
        try:
            result: Result = handler(*op[1:])
        except Refused as refusal:
            result = [-_number(refusal), ""] if op[0] == "read" else -_number(refusal)
        except (TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"operation {op!r}: {error}") from None
        while self.tree.release_next():
            pass
        return [result, "WARN"] if self.tree.underflows != underflows else result

    def _op_cap(self, resource: str | int, amount: int) -> int:
        number = self._resource(resource)
        if not 0 <= number < len(self.tree.capacity):
            return -errno.EINVAL
        self.tree.capacity[number] = amount
        return 0

    def _op_mkdir(self, path: str) -> int:
        self.tree.mkdir(path)
        return 0

    def _op_rmdir(self, path: str) -> int:
        self.tree.rmdir(path)
        return 0

    def _op_write(self, path: str, file: str, text: str) -> int:
        return files.write(self.tree, self.tree.lookup(path), file, text.encode("latin-1"))

    def _op_read(self, path: str, file: str) -> list[Any]:
        return [0, files.read(self.tree, self.tree.lookup(path), file).decode("latin-1")]

    def _op_charge(self, path: str, resource: str | int, amount: int, handle: Any) -> int:
        group, number = self.tree.lookup(path), self._resource(resource)
        if try_charge(self.tree, group, number, amount) is not None:
            return -errno.EBUSY
        self.tree.pin(group)
        self._held[handle] = (group, number, amount)
        return 0

    def _op_uncharge(self, handle: Any) -> int:
        if handle not in self._held:
            return -errno.ENOENT
        group, number, amount = self._held.pop(handle)
        uncharge(self.tree, group, number, amount)
        self.tree.unpin(group)
        return 0

    def _op_uncharge_raw(self, path: str, resource: str | int, amount: int) -> int:
        uncharge(self.tree, self.tree.lookup(path), self._resource(resource), amount)
        return 0

    def _op_total(self, resource: str) -> int:
        number = self._resource(resource)
        return self.tree.root.usage[number] if 0 <= number < len(self.tree.capacity) else 0

    def _resource(self, resource: str | int) -> int:
        return resource if isinstance(resource, int) else self.tree.resource(resource)


def _number(refusal: Refused) -> int:
    assert refusal.errno is not None
    return refusal.errno
