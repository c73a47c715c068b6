"""The text of a cgroup's files: what a read gives, what a write does.

``misc.*`` files are those of room ``misc``, byte for byte (spec 1.2, 1.3). The
``cgroup.*`` files follow kernel/cgroup: same text, same errno. Where a write
fails, an exception carries the errno (Refused, OutOfRange).

Not modelled: threaded mode (``cgroup.type`` refuses it as the kernel does where
a controller cannot be threaded) and the pressure files.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

from epcgroup.cgroupfs import names as core
from epcgroup.cgroupfs.access import Credentials
from epcgroup.cgroupfs.cgroup import NO_LIMIT, Cgroup
from epcgroup.cgroupfs.extra import Extra
from epcgroup.cgroupfs.tree import MISC, CgroupTree
from epcgroup.errors import OutOfRange, Refused
from epcgroup.misc import files as misc_files
from epcgroup.misc.tree import G
from epcgroup.units import PAGE_SIZE

#: Files of a mirrored cgroup2 of which a write concerns us too.
_SHARED = {"cgroup.procs", "cgroup.threads", "cgroup.subtree_control"}
_INT_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: its task id (which ``0`` in cgroup.procs stands for) and credentials."""

    tid: int
    who: Credentials


def names(tree: CgroupTree[G], cgroup: Cgroup[G]) -> list[str]:
    """The files of a cgroup's directory, sorted."""
    if tree.real is not None:
        found = {name for name in tree.real.files(cgroup.path) if not name.startswith("misc.")}
    else:
        found = set(core.EVERYWHERE)
        if cgroup is not tree.root:
            found |= core.BELOW_ROOT.keys()
    if cgroup.group is not None:
        found |= {f"misc.{name}" for name in misc_files.names(tree.misc, cgroup.group)}
        found |= {name for extra in tree.extras for name in extra.modes if extra.has(cgroup.group, name)}
    return sorted(found)


def exists(tree: CgroupTree[G], cgroup: Cgroup[G], name: str) -> bool:
    """Whether a cgroup's directory has a file of that name."""
    extra = extra_of(tree, name)
    if extra is not None:
        return cgroup.group is not None and extra.has(cgroup.group, name)
    if name.startswith("misc."):
        return cgroup.group is not None and name[5:] in misc_files.names(tree.misc, cgroup.group)
    if tree.real is not None:
        return tree.real.is_file(cgroup.path, name)
    return name in core.EVERYWHERE or (name in core.BELOW_ROOT and cgroup is not tree.root)


def extra_of(tree: CgroupTree[G], name: str) -> Extra[G] | None:
    """Who answers for a file of that name that is beyond the kernel's, if anybody."""
    return next((extra for extra in tree.extras if name in extra.modes), None)


def is_elsewhere(tree: CgroupTree[G], name: str) -> bool:
    """Whether a write to a file of that name is not the tree's business: use write_elsewhere."""
    if tree.real is not None and not name.startswith("misc."):
        return name not in _SHARED
    return extra_of(tree, name) is not None


def read(tree: CgroupTree[G], cgroup: Cgroup[G], name: str, reader: int = 0) -> bytes:
    """Contents of a file, as task ``reader`` counts processes (0: as we do).

    Raises OutOfRange (ENOENT: no such file here), Refused (EINVAL: not readable).
    """
    _must_exist(tree, cgroup, name)
    extra = extra_of(tree, name)
    if extra is not None and cgroup.group is not None:
        return extra.read(cgroup.group, name)
    if name.startswith("misc.") and cgroup.group is not None:
        return misc_files.read(tree.misc, cgroup.group, name[5:])
    if tree.real is not None:
        return _real_text(tree, cgroup, name, reader, tree.real.read(cgroup.path, name))
    return _core_text(tree, cgroup, name, reader).encode()


def write(tree: CgroupTree[G], cgroup: Cgroup[G], name: str, data: bytes, writer: Writer) -> int:
    """Write to a file; returns the number of bytes taken, which is all of them.

    Raises OutOfRange (ENOENT), Refused (E2BIG: more than a page; EINVAL: not
    writable, or not understood; and what the file's own rules refuse).
    """
    _must_exist(tree, cgroup, name)
    if not data:
        return 0
    if len(data) > PAGE_SIZE:
        raise Refused("more than 4096 bytes in one write", errno.E2BIG)
    if name.startswith("misc.") and cgroup.group is not None:
        done = misc_files.write(tree.misc, cgroup.group, name[5:], data)
        tree.touch(cgroup)
        return done
    handler = _WRITERS.get(name)
    if handler is None:
        raise Refused(f"{name} is read-only", errno.EINVAL)
    handler(tree, cgroup, misc_files.words(data), writer)
    return len(data)


def write_elsewhere(tree: CgroupTree[G], cgroup: Cgroup[G], name: str, data: bytes) -> int:
    """As write, to a file beyond the kernel's or to a real one. It may take long; do not hold the lock."""
    if tree.real is not None and not name.startswith("misc."):
        return tree.real.write(cgroup.path, name, data)
    if not data:
        return 0
    if len(data) > PAGE_SIZE:
        raise Refused("more than 4096 bytes in one write", errno.E2BIG)
    extra = extra_of(tree, name)
    if cgroup.group is None or extra is None:
        raise OutOfRange(f"no file {name} in {cgroup.path}", errno.ENOENT)
    extra.write(cgroup.group, name, data)
    return len(data)


def _must_exist(tree: CgroupTree[G], cgroup: Cgroup[G], name: str) -> None:
    if not exists(tree, cgroup, name):
        raise OutOfRange(f"no file {name} in {cgroup.path}", errno.ENOENT)


# -- reading -----------------------------------------------------------------


def _core_text(tree: CgroupTree[G], cgroup: Cgroup[G], name: str, reader: int) -> str:
    if name == "cgroup.controllers":
        return f"{' '.join(tree.controllers)}\n" if cgroup.group is not None else ""
    if name == "cgroup.subtree_control":
        return f"{' '.join(tree.controllers)}\n" if cgroup.delegates else ""
    if name == "cgroup.procs":
        return _lines(tree, reader, cgroup.members)
    if name == "cgroup.threads":
        return _lines(tree, reader, [tid for pid in cgroup.members for tid in tree.processes.threads(pid)])
    if name == "cgroup.events":
        return f"populated {int(cgroup.populated > 0)}\nfrozen {int(cgroup.frozen)}\n"
    if name == "cgroup.stat":
        return _stat(tree, cgroup)
    if name == "cgroup.freeze":
        return f"{int(cgroup.freeze)}\n"
    if name == "cgroup.type":
        return "domain\n"
    if name == "cgroup.kill":
        raise Refused("cgroup.kill can only be written", errno.EINVAL)
    limit = cgroup.max_depth if name == "cgroup.max.depth" else cgroup.max_descendants
    return "max\n" if limit == NO_LIMIT else f"{limit}\n"


def _lines(tree: CgroupTree[G], reader: int, tids: Iterable[int]) -> str:
    return "".join(f"{number}\n" for number in (tree.processes.shown(reader, tids) if reader else tids))


def _real_text(tree: CgroupTree[G], cgroup: Cgroup[G], name: str, reader: int, text: bytes) -> bytes:
    """What a real file says, and that misc is there; tasks as the reader counts them."""
    if name in ("cgroup.procs", "cgroup.threads"):
        return _lines(tree, reader, map(int, text.split())).encode()
    ours = {"cgroup.controllers": cgroup.group is not None, "cgroup.subtree_control": cgroup.delegates}
    if name not in ours:
        return text
    words = [word for word in text.decode().split() if word != MISC] + [MISC] * ours[name]
    return f"{' '.join(words)}\n".encode() if words else b""


def _stat(tree: CgroupTree[G], cgroup: Cgroup[G]) -> str:
    live, dying = f"nr_descendants {cgroup.descendants}\n", f"nr_dying_descendants {cgroup.dying}\n"
    if not tree.misc.rules.counts_subsystems:
        return live + dying
    return f"{live}nr_subsys_{MISC} {cgroup.groups}\n{dying}nr_dying_subsys_{MISC} {cgroup.dying_groups}\n"


# -- writing -----------------------------------------------------------------


def parse_int(text: bytes) -> int:
    """A number as the kernel's kstrtoint reads it, base by prefix.

    Raises Refused (EINVAL; ERANGE: beyond 32 bits).
    """
    negative = text[:1] == b"-"
    if negative and text[1:2] == b"+":
        raise Refused(f"{text!r} is not a number", errno.EINVAL)
    number = misc_files.parse_u64(text[1:] if negative else text)
    number = -number if negative else number
    if not -_INT_MAX - 1 <= number <= _INT_MAX:
        raise Refused(f"{text!r} does not fit 32 bits", errno.ERANGE)
    return number


def _write_control(tree: CgroupTree[G], cgroup: Cgroup[G], text: bytes, _: Writer) -> None:
    wanted: bool | None = None
    others = []
    for word in text.split(b" "):
        if not word:
            continue
        if tree.real is not None and word[1:] != MISC.encode():
            others.append(word)
            continue
        name = word[1:].decode(errors="replace")
        if word[:1] not in (b"+", b"-") or (name != MISC and name not in tree.controllers):
            raise Refused(f"{word!r}: there is only + and - {' '.join(tree.controllers)}", errno.EINVAL)
        if name == MISC:  # the others go along
            wanted = word[:1] == b"+"
    before = cgroup.delegates
    if wanted is not None:
        tree.control(cgroup, wanted)
    if tree.real is not None and others:
        try:
            tree.real.write(cgroup.path, "cgroup.subtree_control", b" ".join(others))
        except OSError:
            tree.control(cgroup, before)  # all of a write, or nothing
            raise


def _write_procs(tree: CgroupTree[G], cgroup: Cgroup[G], text: bytes, writer: Writer) -> None:
    tree.migrate(_task(tree, text, writer), cgroup, writer.who)


def _write_threads(tree: CgroupTree[G], cgroup: Cgroup[G], text: bytes, writer: Writer) -> None:
    """Threads of a process stay together where there is no threaded subtree."""
    task = _task(tree, text, writer)
    pid = tree.processes.leader(task)
    if pid is None:
        raise Refused("no such task", errno.ESRCH)
    if tree.processes.unmovable(pid):
        raise Refused("a thread of the kernel that stays where it is", errno.EINVAL)
    if tree.real is not None:
        tree.may_move(pid, cgroup, writer.who)
        tree.real.write(cgroup.path, "cgroup.threads", str(task).encode())
        return
    if tree.of(pid) is not cgroup:
        raise Refused(f"{cgroup.path} is not threaded", errno.EOPNOTSUPP)


def _task(tree: CgroupTree[G], text: bytes, writer: Writer) -> int:
    try:
        pid = parse_int(text)
    except Refused:
        pid = -1
    if pid < 0:
        raise Refused(f"{text!r} is no process id", errno.EINVAL)
    if pid == 0:
        return writer.tid
    return tree.processes.meant(writer.tid, pid) or -1


def _write_freeze(tree: CgroupTree[G], cgroup: Cgroup[G], text: bytes, _: Writer) -> None:
    number = parse_int(text)
    if number not in (0, 1):
        raise Refused("write 0 or 1", errno.ERANGE)
    tree.set_freeze(cgroup, bool(number))


def _write_kill(tree: CgroupTree[G], cgroup: Cgroup[G], text: bytes, _: Writer) -> None:
    if parse_int(text) != 1:
        raise Refused("write 1", errno.ERANGE)
    for level in cgroup.subtree():
        for pid in list(level.members):
            tree.processes.kill(pid)


def _write_type(_tree: CgroupTree[G], _cgroup: Cgroup[G], text: bytes, _: Writer) -> None:
    if text != b"threaded":
        raise Refused("write threaded", errno.EINVAL)
    raise Refused("the misc controller has no threaded mode", errno.EOPNOTSUPP)


def _limit(text: bytes) -> int:
    number = NO_LIMIT if text == b"max" else parse_int(text)
    if number < 0:
        raise Refused("a limit cannot be negative", errno.ERANGE)
    return number


def _write_depth(tree: CgroupTree[G], cgroup: Cgroup[G], text: bytes, _: Writer) -> None:
    cgroup.max_depth = _limit(text)
    tree.touch(cgroup)


def _write_descendants(tree: CgroupTree[G], cgroup: Cgroup[G], text: bytes, _: Writer) -> None:
    cgroup.max_descendants = _limit(text)
    tree.touch(cgroup)


_WRITERS = {
    "cgroup.subtree_control": _write_control,
    "cgroup.procs": _write_procs,
    "cgroup.threads": _write_threads,
    "cgroup.freeze": _write_freeze,
    "cgroup.kill": _write_kill,
    "cgroup.type": _write_type,
    "cgroup.max.depth": _write_depth,
    "cgroup.max.descendants": _write_descendants,
}
