#!/bin/sh
# Run a static SGX program in a runc container that may use so much EPC, and show what its cgroup says.
# Nothing is fetched: the container's image is the program. Run it as root inside a machine:
#
#     epcgroup serve --epc 64M &
#     epcgroup exec --ignore-rlimits -- examples/containers/limited.sh 16777216 ./my-sgx-program ARG ...
set -eu
[ $# -ge 2 ] || { echo "usage: limited.sh BYTES PROGRAM [ARG ...]" >&2; exit 2; }
limit=$1 program=$2
shift 2
bundle=$(mktemp -d)
trap 'rm -rf "$bundle"' EXIT
mkdir -p "$bundle/rootfs/proc" "$bundle/rootfs/sys" "$bundle/rootfs/dev"
cp "$program" "$bundle/rootfs/program"

arguments='"/program"'
for word; do
    arguments="$arguments, \"$word\""
done
cat > "$bundle/config.json" << EOF
{
  "ociVersion": "1.0.2",
  "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": [$arguments]},
  "root": {"path": "rootfs"},
  "mounts": [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
  ],
  "linux": {
    "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
    "cgroupsPath": "/example/limited",
    "resources": {"unified": {"misc.max": "sgx_epc $limit"}}
  }
}
EOF

id=limited-$$
show() {
    for file in "$@"; do
        echo "$file $(cat /sys/fs/cgroup/example/limited/$file)"
    done
}
runc create -b "$bundle" "$id"
show misc.max misc.current
runc start "$id"
until runc state "$id" | grep -q '"status": "stopped"'; do
    sleep 0.2
done
show misc.peak misc.events
runc delete "$id"
