"""What a command of `epcgroup exec` is told about its cgroups and mounts, and what it makes of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.served import EPCGROUP, NEEDS, Served, served

pytestmark = [pytest.mark.needs(*NEEDS, "root", "gcc"), pytest.mark.timeout(240)]

# clone3(CLONE_INTO_CGROUP | CLONE_VFORK) of the cgroup at argv[1]; the child shows where it is.
INTO_CGROUP = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <stdio.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int fd = open(argv[argc - 1], O_RDONLY | O_DIRECTORY);
	struct clone_args a = { .flags = CLONE_INTO_CGROUP | CLONE_VFORK, .exit_signal = 17, .cgroup = fd };
	long pid = syscall(SYS_clone3, &a, sizeof a);

	if (pid == 0) {
		execlp("cat", "cat", "/proc/self/cgroup", NULL);
		_exit(9);
	}
	if (pid < 0 || waitpid(pid, NULL, 0) != pid)
		return 8;
	printf("%d\n", a.flags == (CLONE_INTO_CGROUP | CLONE_VFORK));
	return 0;
}
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("view")) as machine:
        for name in ("a", "b", "a/inner"):
            machine.path(name).mkdir()
        yield machine


def shell(machine: Served, group: str, script: str) -> list[str]:
    """Lines that a shell in the cgroup printed."""
    done = machine.exec(group, "sh", "-ec", script)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_tree_is_the_one_cgroup2(machine: Served) -> None:
    script = "stat -f -c %T /sys/fs/cgroup; awk '/ cgroup2? /{print $2, $3}' /proc/mounts; cat /proc/cgroups"
    kind, mount, head, misc = shell(machine, "a", script)
    assert (kind, mount) == ("cgroup2fs", "/sys/fs/cgroup cgroup2")
    assert (head[0], misc.split("\t")) == ("#", ["misc", "0", "4", "1"])


@pytest.mark.parametrize(
    "name", ["/proc/self/cgroup", "/proc/thread-self/cgroup", "/proc/$$/cgroup", "/proc/$$/task/$$/cgroup"]
)
def test_every_name_of_the_file_says_where_a_process_is(machine: Served, name: str) -> None:
    assert shell(machine, "a/inner", f"cat {name}") == ["0::/a/inner"]


def test_relative_names_and_copies_of_descriptors_say_the_same(machine: Served) -> None:
    script = "cd /proc/self; cat cgroup; exec 7< mountinfo; grep -c ' cgroup2 ' /proc/self/fd/7"
    assert shell(machine, "b", script) == ["0::/b", "1"]


def test_a_process_of_the_host_is_in_the_root(machine: Served) -> None:
    assert shell(machine, "a", "cat /proc/1/cgroup; cat /proc/4194305/cgroup || echo gone") == [
        "0::/",
        "gone",
    ]


def test_other_file_systems_say_what_they_are(machine: Served, tmp_path: Path) -> None:
    real = os.statvfs(tmp_path)
    said = shell(machine, "a", f"stat -f -c %b {tmp_path}; stat -f -c %T /proc /proc/self/mounts")
    assert said == [str(real.f_blocks), "proc", "proc"]


def test_a_cgroup_namespace_begins_where_its_maker_is(machine: Served, tmp_path: Path) -> None:
    """As cgroup_namespaces(7) has it: own path, a path outside, a fresh mount, its line in mountinfo."""
    point = tmp_path / "point"
    point.mkdir()
    script = (
        f"cat /proc/self/cgroup /proc/1/cgroup; mount -t cgroup2 -o ro,nosuid none {point}; "
        f"ls -d {point}/misc.max {point}/inner; grep {point} /proc/self/mountinfo | cut -d ' ' -f 4,6; "
        f"mkdir {point}/x || echo read-only"
    )
    (tmp_path / "script").write_text(script)
    said = shell(machine, "a", f"unshare --cgroup --mount sh {tmp_path}/script 2> {tmp_path}/errors")
    assert said[:4] == ["0::/", "0::/..", f"{point}/inner", f"{point}/misc.max"]
    assert said[4].startswith("/ ro,nosuid")
    assert said[-1] == "read-only"


def test_a_mount_in_the_machine_is_there_for_the_next_command_and_not_for_the_host(
    machine: Served, tmp_path: Path
) -> None:
    """While a program of the machine lives; then it goes."""
    with subprocess.Popen(machine.argv("a", "sleep", "600")) as keeper:
        shell(machine, "a", f"mount -t tmpfs none {tmp_path}; touch {tmp_path}/here")
        assert shell(machine, "b", f"ls {tmp_path}") == ["here"]
        assert list(tmp_path.iterdir()) == []
        keeper.terminate()
    assert shell(machine, "b", f"ls {tmp_path}") == []


def test_clone_into_a_cgroup_starts_the_child_there(machine: Served, tmp_path: Path) -> None:
    (tmp_path / "into.c").write_text(INTO_CGROUP)
    subprocess.run(["gcc", "-o", tmp_path / "into", tmp_path / "into.c"], check=True)
    assert shell(machine, "a", f"{tmp_path}/into /sys/fs/cgroup/b") == ["0::/b", "1"]
    assert machine.exec("a", str(tmp_path / "into"), str(tmp_path)).returncode == 8


def test_a_directory_that_is_not_in_the_machine_is_named(machine: Served) -> None:
    """The command would start where the client is; the host's own cgroups are not there."""
    outside = next(path for path in Path("/sys/fs/cgroup").iterdir() if path.is_dir())
    done = machine.exec("a", "true", cwd=outside)
    assert (done.returncode, done.stderr) == (126, f"epcgroup: {outside}: No such file or directory\n")


def test_with_host_cgroup_all_is_the_hosts(machine: Served) -> None:
    words = [EPCGROUP, "exec", "--dir", str(machine.directory), "--host-cgroup", "--", sys.executable, "-c"]
    script = "import os; print(os.stat('/sys/fs/cgroup').st_dev, open('/proc/self/cgroup').read(), end='')"
    said = subprocess.run([*words, script], capture_output=True, text=True, check=True).stdout
    assert said == f"{os.stat('/sys/fs/cgroup').st_dev} {Path('/proc/self/cgroup').read_text()}"


def test_a_set_user_id_program_keeps_its_rights(machine: Served, tmp_path: Path) -> None:
    """As newuidmap needs them; a tracer without privileges cannot leave them."""
    (tmp_path / "who.c").write_text(
        '#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf("%d\\n", geteuid()); return 0; }\n'
    )
    subprocess.run(["gcc", "-o", tmp_path / "who", tmp_path / "who.c"], check=True)
    (tmp_path / "who").chmod(0o4755)
    for parent in tmp_path.parents:
        if "pytest" in str(parent):
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    drop = "import os, sys; os.setgid(65534); os.setuid(65534); os.execv(sys.argv[1], sys.argv[1:])"
    done = machine.exec("a", sys.executable, "-c", drop, str(tmp_path / "who"))
    assert done.stdout == "0\n", done.stderr


def test_a_tree_that_is_mounted_at_the_usual_place_needs_no_other(tmp_path: Path) -> None:
    """`serve --mount /sys/fs/cgroup`, here in a mount namespace of its own."""
    script = f"""
    {EPCGROUP} serve --dir {tmp_path} --epc 4M --mount /sys/fs/cgroup 2> /dev/null &
    until [ -S {tmp_path}/control ]; do sleep 0.05; done
    {EPCGROUP} exec --dir {tmp_path} -g a/b --create -- sh -c '
        cat /proc/self/cgroup /sys/fs/cgroup/misc.capacity; stat -f -c %T /sys/fs/cgroup
        grep -c " /sys/fs/cgroup.* - cgroup2 " /proc/self/mountinfo'
    kill $!; wait $!; stat -f -c %T /sys/fs/cgroup
    """
    words = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=150, check=True)
    before = subprocess.run(
        ["stat", "-f", "-c", "%T", "/sys/fs/cgroup"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "0::/a/b",
        f"sgx_epc {4 << 20}",
        "cgroup2fs",
        "1",
        before.stdout.strip(),
    ]
