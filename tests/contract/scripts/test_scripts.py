"""Shell scripts as kernel people write them for EPC cgroups: the series' own, call by call.

Those scripts are the kernel's and stay outside this repository; docs/selftest.md says how they are run. These
make the same calls of the same tools in the same order, with a smaller enclave, and print what they
found. Turning swap off and on is left out: that is the host's.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.e2e.served import NEEDS, Served, served
from tests.programs.build import build

pytestmark = pytest.mark.needs(*NEEDS, "root", "gcc", "cgroup-tools")

#: Since 2024: sh and the files alone. The words that follow are the program.
WITH_FILES = r"""
root=/sys/fs/cgroup
[ -d "$root/" ] && [ ! -d "$root/kst" ] || exit 4
mkdir "$root/kst" && mkdir "$root/kst/parent" &&
mkdir "$root/kst/parent/small" && mkdir "$root/kst/large" || exit 1
echo "+misc" > $root/cgroup.subtree_control &&
echo "+memory" > $root/cgroup.subtree_control &&
echo "+misc" > $root/kst/cgroup.subtree_control &&
echo "+memory" > $root/kst/cgroup.subtree_control &&
echo "+misc" > $root/kst/parent/cgroup.subtree_control || exit 1
capacity=$(grep "sgx_epc" "$root/misc.capacity" | awk '{print $2}')
echo "sgx_epc $(( capacity / 2048 ))" > $root/kst/parent/misc.max &&
echo "sgx_epc $(( capacity / 16 ))" > $root/kst/large/misc.max || exit 4
join() { sh -c 'echo 0 > /sys/fs/cgroup/$1/cgroup.procs; shift; exec "$@"' sh "$@"; }
join kst/parent/small "$@" > /dev/null 2>&1 && echo "small succeeded" || echo "small failed"
pids=""
for i in 1 2; do ( join kst/large "$@" > /dev/null 2>&1 ) & pids="$pids $!"; done
for pid in $pids; do wait "$pid" && echo "large succeeded"; done
( join kst/large "$@" > /dev/null 2>&1 ) & victim=$!
kill $victim; wait $victim; echo "killed $?"
echo 1048576 > $root/kst/large/memory.max || exit 1
join kst/large "$@" > /dev/null 2>&1 && echo "memory succeeded" || echo "memory failed"
find $root -wholename "*/kst*/misc.max" -exec sh -c 'cat "$1"' _ {} \; | sort
until [ "$(grep '^sgx_epc' "$root/kst/misc.current" | awk '{print $2}')" -eq 0 ]; do sleep 0.1; done
rmdir $root/kst/large && rmdir $root/kst/parent/small && rmdir $root/kst/parent && rmdir $root/kst &&
echo "clean"
"""

#: Until then: bash and libcgroup's tools.
WITH_TOOLS = r"""
cgcreate -g misc:kst || exit 1
cgcreate -g misc:kst/test1; cgcreate -g misc:kst/test1/test3; cgcreate -g misc:kst/test2
[ ! -d "/sys/fs/cgroup/misc" ] && echo "version 2"
capacity=$(grep "sgx_epc" "/sys/fs/cgroup/misc.capacity" | awk '{print $2}')
echo "sgx_epc $(( capacity / 2048 ))" | tee /sys/fs/cgroup/kst/test1/misc.max
echo "sgx_epc $(( capacity / 16 ))" | tee /sys/fs/cgroup/kst/test2/misc.max
lscgroup | grep "kst/test1/test3$"
cgexec -g misc:kst/test1/test3 "$@" > /dev/null 2>&1
[[ $? -eq 0 ]] && echo "small succeeded" || echo "small failed"
pids=()
for i in {1..2}; do ( cgexec -g misc:kst/test2 "$@" > /dev/null 2>&1 ) & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" && echo "large succeeded"; done
nohup bash -c "cgexec -g misc:kst/test2 $*" > /dev/null 2>&1 && echo "nohup succeeded"
cgcreate -g memory:kst/test2 || exit 1
echo 1048576 > /sys/fs/cgroup/kst/test2/memory.max
cgexec -g memory:kst/test2 -g misc:kst/test2 "$@" > /dev/null 2>&1
[[ $? -eq 0 ]] && echo "memory succeeded" || echo "memory failed"
cgdelete -r -g misc:kst && echo "clean"
"""

CAPACITY = 16 << 20
HEAP = 3 << 8  # pages: three times `large`; 2048th parts of the capacity do not hold its metadata


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("scripts"), "--memory", epc="16M") as server:
        yield server


def said(machine: Served, shell: str, script: str) -> list[str]:
    program = (str(build() / "load"), "once", str(HEAP))
    done = machine.exec("/", shell, "-c", script, shell, *program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not machine.path("kst").exists()
    return done.stdout.splitlines()


def test_a_script_of_files_alone_finds_what_it_expects(machine: Served) -> None:
    assert said(machine, "sh", WITH_FILES) == [
        "small failed",
        "large succeeded",
        "large succeeded",
        "killed 143",
        "memory failed",
        f"sgx_epc {CAPACITY // 16}",
        f"sgx_epc {CAPACITY // 2048}",
        "sgx_epc max",
        "sgx_epc max",
        "clean",
    ]


def test_a_script_of_libcgroups_tools_finds_what_it_expects(machine: Served) -> None:
    assert said(machine, "bash", WITH_TOOLS) == [
        "version 2",
        f"sgx_epc {CAPACITY // 2048}",
        f"sgx_epc {CAPACITY // 16}",
        "memory,misc:/kst/test1/test3",
        "small failed",
        "large succeeded",
        "large succeeded",
        "nohup succeeded",
        "memory failed",
        "clean",
    ]
