"""A server of an ordinary user: its tree is the user's, and inotify works there too."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("x86-64", "ptrace", "fuse", "root", "inotifywait")

#: Started as root because a checkout may lie where only root can read; from `drop` on it is the user.
SCRIPT = """
import contextlib, ctypes, importlib, io, json, os, pkgutil, signal, subprocess, sys, time
import mfusepy
import epcgroup.cgroupfs.fuse, epcgroup.live.rootkey, epcgroup.observe, epcgroup.serve.server
from epcgroup.cli.main import main

for package in (epcgroup.observe, epcgroup.serve):  # and what they load when it is needed
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(["serve", "--help"])  # every command is loaded
directory = sys.argv[1]
mount = directory + "/cgroup"
os.environ["XDG_STATE_HOME"] = directory  # for the root key
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is its own again
server = os.fork()
if not server:
    os._exit(main(["serve", "--dir", directory, "--epc", "4M"]))
while not os.path.ismount(mount):
    if os.waitpid(server, os.WNOHANG)[0]:
        sys.exit("the server ended")
    time.sleep(0.02)
os.mkdir(mount + "/a")
file = mount + "/a/cgroup.events"
words = ["inotifywait", "-q", "-t", "60", "-e", "modify", file]
watch = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
while not any("inotify wd:" in open(info.path).read() for info in os.scandir(f"/proc/{watch.pid}/fdinfo")):
    time.sleep(0.02)
told = {}
with open(mount + "/a/misc.max", "w") as limit:
    limit.write("sgx_epc 8192")
told["max"] = open(mount + "/a/misc.max").read()
with open(mount + "/a/cgroup.procs", "w") as procs:
    procs.write("0")
told["inotify"] = watch.communicate()[0]
time.sleep(0.3)
told["mode"] = os.stat(file).st_mode
try:
    os.open(file, os.O_WRONLY)
except OSError as error:
    told["open"] = error.errno
with open(mount + "/cgroup.procs", "w") as procs:
    procs.write("0")
os.kill(server, signal.SIGTERM)
told["status"] = os.waitpid(server, 0)[1]
told["mounted"] = os.path.ismount(mount)
print(json.dumps(told))
"""


def test_a_user_serves_a_tree_of_its_own_and_inotify_works_there(tmp_path: Path) -> None:
    """In a mount namespace where /dev/fuse is everybody's, as it is on most systems."""
    node = tmp_path / "fuse"
    os.mknod(node, stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
    node.chmod(0o666)
    directory = tmp_path / "server"
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    for parent in directory.parents:
        if "pytest" in str(parent):
            parent.chmod(parent.stat().st_mode | 0o011)
    shell = 'mount --bind "$1" /dev/fuse && exec "$2" -I -c "$3" "$4"'
    words = ["unshare", "-m", "--propagation", "private", "sh", "-c", shell, "sh"]
    done = subprocess.run(
        [*words, str(node), sys.executable, SCRIPT, str(directory)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["max"] == "sgx_epc 8192\n"
    assert "MODIFY" in told["inotify"]
    assert stat.S_IMODE(told["mode"]) == 0o444
    assert told["open"] == 13
    assert (told["status"], told["mounted"]) == (0, False)
