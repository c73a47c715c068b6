"""containerd and its runc shim, unmodified, through ctr: daemon, shims, containers live in the machine."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from tests.contract.containers import (
    HOLD,
    LIMIT,
    NEEDS_ALL,
    ONCE,
    config,
    inside,
    make_rootfs,
    nothing_left,
    run,
    watch,
    watch_for,
)
from tests.e2e.served import Served, eventually, served

pytestmark = [pytest.mark.needs(*NEEDS_ALL, "containerd", "runc"), pytest.mark.timeout(300)]

IMAGE = "localhost/sgx:latest"
CONFIG = """\
version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{0}/socket"
[ttrpc]
  address = "{0}/ttrpc"
"""


@dataclass
class Containerd:
    """A daemon that runs in a machine."""

    machine: Served
    directory: Path
    rootfs: Path

    def command(self, *words: str) -> tuple[str, ...]:
        """The command line of its client."""
        return ("ctr", "--address", f"{self.directory}/socket", *words)

    def run(self, *words: str) -> str:
        """Run the client to its end; what it printed."""
        return run(self.machine, *self.command(*words))


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    directory = tmp_path_factory.mktemp("containerd")
    rootfs = make_rootfs(tmp_path_factory.mktemp("image"))
    (directory / "config.toml").write_text(CONFIG.format(directory))
    with served(directory / "machine") as machine, (directory / "log").open("w") as log:
        for group in ("pods", "pods/limited"):
            machine.path(group).mkdir()
            machine.write(f"{group}/cgroup.subtree_control", "+misc")
        words = inside(machine, "containerd", "--config", str(directory / "config.toml"))
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as daemon:
            client = Containerd(machine, directory, rootfs)
            eventually((directory / "socket").exists)
            yield client
            daemon.terminate()
        assert daemon.returncode in (0, -signal.SIGTERM)


def image(rootfs: Path) -> bytes:
    """An OCI image layout in an archive: one layer, its configuration, a manifest, an index."""
    layer = BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.add(rootfs, ".")
    blobs: list[bytes] = [layer.getvalue()]
    kind = "application/vnd.oci.image"

    def add(blob: bytes, media: str) -> dict[str, Any]:
        blobs.append(blob)
        return {"mediaType": f"{kind}.{media}", "digest": digest(blob), "size": len(blob)}

    described = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(blobs[0])]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": add(json.dumps(described).encode(), "config.v1+json"),
        "layers": [{"mediaType": f"{kind}.layer.v1.tar", "digest": digest(blobs[0]), "size": len(blobs[0])}],
    }
    entry = add(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"io.containerd.image.name": IMAGE}
    files = {f"blobs/sha256/{digest(blob)[7:]}": blob for blob in blobs}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    whole = BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, BytesIO(content))
    return whole.getvalue()


def digest(blob: bytes) -> str:
    """As OCI writes it."""
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def test_a_container_holds_the_limit_of_its_specification(containerd: Containerd, tmp_path: Path) -> None:
    machine = containerd.machine
    specification = config(*ONCE, cgroup="/pods/a")
    specification["root"]["path"] = str(containerd.rootfs)
    (tmp_path / "spec.json").write_text(json.dumps(specification))
    with nothing_left(machine, "pods/a"):
        words = containerd.command("run", "--rm", "--config", str(tmp_path / "spec.json"), "a")
        done, seen = watch(machine, "pods/a", inside(machine, *words))
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr
    seen.the_limit_held()


def test_a_container_of_an_image_holds_the_limit_of_its_pod(containerd: Containerd, tmp_path: Path) -> None:
    """The limit stands in the parent, as a pod's does; the container's own is "max"."""
    machine = containerd.machine
    (tmp_path / "image.tar").write_bytes(image(containerd.rootfs))
    containerd.run("image", "import", "--snapshotter", "native", str(tmp_path / "image.tar"))
    machine.write("pods/limited/misc.max", f"sgx_epc {LIMIT}")
    # The tree has no cpu controller, which ctr's default share would need.
    options = ("--snapshotter", "native", "--cpu-shares", "0", "--cgroup", "/pods/limited/b")
    with nothing_left(machine, "pods/limited/b"):
        containerd.run("run", "-d", *options, IMAGE, "b", *HOLD)
        seen = watch_for(machine, "pods/limited")
        inside_it = machine.read("pods/limited/b/cgroup.procs").split()
        assert inside_it == containerd.run("task", "ls").splitlines()[1].split()[1:2]
        containerd.run("task", "kill", "-s", "KILL", "b")
        eventually(lambda: "STOPPED" in containerd.run("task", "ls"))
        containerd.run("container", "rm", "b")
    seen.the_limit_held()
