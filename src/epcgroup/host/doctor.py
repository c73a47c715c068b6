"""What this machine has, what each way of using epcgroup needs, what is missing.

A *face* is one way: ``run`` (programs on an emulated machine), ``serve`` (the
same with cgroup files mounted), ``kernel`` (real EPC cgroups of this kernel).
Every check is a fact with, where something is missing, the command that mends
it. Nothing is changed here but by :func:`fix`.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from epcgroup.errors import to_install
from epcgroup.host import mounts, placeholders
from epcgroup.host.cgroup import Hierarchy, View, unusable_part
from epcgroup.host.discover import CGROUP2, capacity, trees
from epcgroup.units import PAGE_SIZE, format_size

FACES = ("run", "serve", "kernel", "limits", "clients")
RUNTIMES = ("runc", "crun", "podman", "containerd", "cgexec", "qemu-system-x86_64")
SMALLEST = 6 * PAGE_SIZE  # an enclave that does anything: VA, SECS, TCS, SSA, code, data
_SYS_USERFAULTFD, _USER_MODE_ONLY = 323, 1
_FAN_CLASS_CONTENT, _FAN_CLOEXEC = 0x4, 0x1
_CRUN_THAT_KNOWS_MISC = (1, 18)


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing looked at. ``ok`` None: worth knowing, neither good nor bad."""

    face: str
    what: str
    ok: bool | None
    detail: str
    fix: str = ""


def examine() -> list[Fact]:
    """Every fact, by face."""
    facts: list[Fact] = []
    for look in (_run, _serve, _kernel, _limits, _runtimes):
        facts += look()
    return facts


def usable(facts: list[Fact], face: str) -> bool:
    """Whether nothing that the face needs is missing."""
    return all(fact.ok is not False for fact in facts if fact.face == face)


def fix() -> list[str]:
    """Take away mounts and device placeholders whose server is gone; what was done."""
    stale = [mount.point for mount in mounts.stale()]
    done = [f"unmounted {point}, whose server is gone" for point in stale if mounts.unmount(point, lazy=True)]
    gone = placeholders.remove(placeholders.stale())
    return done + [f"removed {path}, whose server is gone" for path in gone]


# -- programs on an emulated machine -----------------------------------------


def _run() -> Iterator[Fact]:
    machine = platform.machine()
    yield Fact(
        "run", "processor", machine == "x86_64", machine, "" if machine == "x86_64" else "SGX is x86-64"
    )
    scope = _text("/proc/sys/kernel/yama/ptrace_scope")
    yield Fact(
        "run",
        "ptrace",
        scope != "3",
        f"ptrace_scope {scope or 'absent'}",
        "sysctl kernel.yama.ptrace_scope=1",
    )
    error = _userfaultfd()
    limited = bool(error) and not _userfaultfd(_USER_MODE_ONLY)
    detail = (
        "for a program's own accesses; a system call that is given an evicted page fails with EFAULT"
        if limited
        else error or "available"
    )
    yield Fact(
        "run", "userfaultfd", None if limited else not error, detail,
        "run as root, or: sysctl vm.unprivileged_userfaultfd=1 (a container's seccomp profile must allow it)",
    )  # fmt: skip
    if os.geteuid() != 0:
        yield Fact(
            "run", "ordinary user", None,
            "programs get no privileges by set-user-ID; `attach` reaches processes of this user only, "
            "and `serve --system` nobody", "run as root",
        )  # fmt: skip


def _userfaultfd(flags: int = 0) -> str:
    """Why userfaultfd(2) is refused; empty when it is not."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | flags)
    if fd < 0:
        return os.strerror(ctypes.get_errno())
    os.close(fd)
    return ""


# -- with files mounted --------------------------------------------------------


def _serve() -> Iterator[Fact]:
    device = os.access("/dev/fuse", os.R_OK | os.W_OK)
    why = "usable" if device else ("not ours to open" if Path("/dev/fuse").exists() else "absent")
    yield Fact("serve", "/dev/fuse", device, why, "modprobe fuse; in a container: --device /dev/fuse")
    try:
        importlib.import_module("mfusepy")
        yield Fact("serve", "mfusepy", True, "and libfuse are there")
    except ImportError:
        yield Fact("serve", "mfusepy", False, "absent", to_install("serve"))
    except (OSError, RuntimeError) as error:  # the package without its library
        yield Fact("serve", "libfuse", False, str(error), "apt-get install fuse3")
    tool = shutil.which("fusermount3")
    needed = os.geteuid() != 0
    yield Fact(
        "serve", "fusermount3", None if tool is None and not needed else tool is not None,
        tool or "absent", "apt-get install fuse3",
    )  # fmt: skip
    for mount in mounts.mounts():
        if mount.type == mounts.TYPE:
            dead = mounts.is_dead(mount.point)
            detail = "its server is gone" if dead else "served"
            yield Fact("serve", mount.point, not dead, detail, "epcgroup doctor --fix")
    yield from _system()


def _system() -> Iterator[Fact]:
    """What `serve --system` needs, and what a killed one left."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.fanotify_init(_FAN_CLASS_CONTENT | _FAN_CLOEXEC, os.O_RDONLY)
    if fd < 0:
        held = f"opens cannot be held: {os.strerror(ctypes.get_errno())}"
    else:
        os.close(fd)
        held = "opens can be held"
    yield Fact("serve", "--system", None, held, "" if fd >= 0 else "run as root (CAP_SYS_ADMIN)")
    for path in placeholders.stale():
        yield Fact("serve", str(path), False, "a placeholder whose server is gone", "epcgroup doctor --fix")


# -- a real kernel's -------------------------------------------------------------


def _kernel() -> Iterator[Fact]:
    flags = _text("/proc/cpuinfo")
    sgx = " sgx " in f"{flags} ".replace("\n", " ")
    yield Fact(
        "kernel",
        "SGX processor",
        sgx,
        "present" if sgx else "absent",
        "a machine with SGX, enabled in its BIOS",
    )
    for name in ("enclave", "provision", "vepc"):
        path = Path(f"/dev/sgx_{name}")
        there = path.exists() and not placeholders.is_placeholder(path)
        wanted = there if name == "enclave" else (True if there else None)
        fix_it = "a kernel with CONFIG_X86_SGX; SGX on in the BIOS"
        yield Fact("kernel", f"/dev/sgx_{name}", wanted, "present" if there else "absent", fix_it)
    yield from _nodes()
    tree = next((mount for mount in trees() if mount.type == CGROUP2), None)
    if tree is None:
        yield Fact(
            "kernel", "cgroup v2", False, "not mounted", "boot with systemd.unified_cgroup_hierarchy=1"
        )
        return
    root = Path(tree.point)
    yield Fact("kernel", "cgroup v2", True, tree.point)
    controllers = _text(str(root / "cgroup.controllers")).split()
    yield Fact(
        "kernel", "misc controller", "misc" in controllers, " ".join(controllers) or "no controllers",
        "a kernel with CONFIG_CGROUP_MISC; in a container: the host delegates it",
    )  # fmt: skip
    resources = capacity(root)
    yield Fact(
        "kernel", "sgx_epc", "sgx_epc" in resources, " ".join(resources) or "no misc.capacity",
        "a kernel with the SGX EPC cgroup series; without: epcgroup serve",
    )  # fmt: skip
    if "misc" not in controllers:
        return
    sections = sum(epc_of_nodes().values())
    if sections and resources.get("sgx_epc", sections) != sections:
        yield Fact(
            "kernel", "capacity", None,
            f"misc.capacity says {format_size(resources['sgx_epc'])}, the sections {format_size(sections)}: "
            "node feature discovery counts sections, cgroups what may be used", "",
        )  # fmt: skip
    delegated = "misc" in _text(str(root / "cgroup.subtree_control")).split()
    yield Fact(
        "kernel", "misc below the root", delegated, "enabled" if delegated else "misc.max is nowhere",
        f"echo +misc > {root}/cgroup.subtree_control",
    )  # fmt: skip
    if _text("/proc/1/comm") == "systemd":
        yield Fact(
            "kernel", "systemd", None, "takes misc out of subtree_control again unless a unit delegates",
            "Delegate=yes in the unit of the runtime",
        )  # fmt: skip


def epc_of_nodes(nodes: Path = Path("/sys/devices/system/node")) -> dict[str, int]:
    """Bytes of EPC by NUMA node, as the SGX driver tells them; empty without one."""
    found = {}
    for file in sorted(nodes.glob("node*/x86/sgx_total_bytes")):
        text = _text(str(file))
        if text.isdigit():
            found[file.parent.parent.name] = int(text)
    return found


def _nodes() -> Iterator[Fact]:
    nodes = epc_of_nodes()
    if len(nodes) > 1:
        sizes = ", ".join(f"{name} {format_size(size)}" for name, size in nodes.items())
        yield Fact(
            "kernel", "EPC by node", None, f"{sizes}: limits and allocatable EPC count their sum; an enclave "
            "larger than a node's part reaches into another, a virtual machine gets one section", "",
        )  # fmt: skip


# -- limits that do not mean what they say -----------------------------------------


def _limits() -> Iterator[Fact]:
    for mount in trees():
        root = Path(mount.point)
        if "sgx_epc" not in capacity(root):
            continue
        views = Hierarchy(root).views()
        for view in views:
            for detail, fix_it in _doubts(view, root):
                yield Fact("limits", f"{mount.point}{view.path}", None, detail, fix_it)


def _doubts(view: View, root: Path) -> Iterator[tuple[str, str]]:
    """What an administrator may not have meant."""
    set_it = f"epcgroup set --root {root} {view.path} SIZE"
    if not view.enabled:
        parent = view.path.rpartition("/")[0]
        yield (
            "no misc.max: the parent does not enable misc",
            f"echo +misc > {root}{parent}/cgroup.subtree_control",
        )
    if unusable_part(view.max):
        yield f"a limit of {view.max} bytes is no whole number of pages; the rest is never used", set_it
    if view.max is not None and 0 < view.max < SMALLEST:
        yield f"a limit of {view.max} bytes is too small for any enclave (6 pages that stay)", set_it
    if view.events and view.max is not None and view.peak is not None and view.peak + PAGE_SIZE > view.max:
        slow = "below the working set all is 10 to 100 times slower"
        yield f"hit {view.events} times: {slow}, and nothing else says so", set_it
    if view.max is not None and view.effective is not None and view.effective < view.max:
        yield f"the limit of {view.effective_of} ({view.effective}) holds before its own ({view.max})", set_it


def _runtimes() -> Iterator[Fact]:
    for name in RUNTIMES:
        tool = shutil.which(name)
        if tool is None:
            continue
        version = _version(tool)
        hint = ""
        if name == "crun" and version_of(version) < _CRUN_THAT_KNOWS_MISC:
            hint = "it never enables misc: epcgroup serve --auto-delegate"
        yield Fact("clients", name, None, version or tool, hint)


def version_of(text: str) -> tuple[int, ...]:
    """The first dotted number in a text.

    >>> version_of("crun version 1.8.1-1")
    (1, 8, 1)
    """
    for word in text.replace("-", " ").split():
        parts = word.lstrip("v").split(".")
        if len(parts) > 1 and all(part.isdigit() for part in parts):
            return tuple(int(part) for part in parts)
    return ()


def _version(tool: str) -> str:
    try:
        done = subprocess.run(
            [tool, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.splitlines() or [""])[0].strip() if done.returncode == 0 else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
