"""Makes container runtimes and cgroup tools take our tree for the kernel's cgroup2.

The problem. A FUSE mount says so: statfs gives 0x65735546, mountinfo ``fuse.…``,
and no mount option can change it. Almost every client of cgroup v2 looks for
0x63677270, or for a mount of type ``cgroup2``, at /sys/fs/cgroup, and goes no
further when it finds something else. And where a cgroup is named by an open
directory (bpf, clone3), the kernel wants one of its own.

What is done, for programs started by `epcgroup exec` and all their descendants:

* they live in a mount namespace in which the tree lies over /sys/fs/cgroup
  (`namespace`); the host keeps its own;
* the calls by which they ask are answered (`calls`): statfs and fstatfs of the
  tree; opens of ``mountinfo``, ``mounts``, ``cgroup`` of a process; bpf on one of its
  directories; mount and fsopen of a fresh ``cgroup2``; clone3 into a cgroup;
* the text of those files is made in `texts`.

By whom. The tracer of `live` stops these programs anyway, follows every fork,
and already stops every open; a few more call numbers in its filter are all this
costs a program that never makes them. The alternative is seccomp's user
notification: a second supervisor with its own channel, of which there can be
only one in a chain of filters, so that a container whose own configuration asks
for one (OCI ``listenerPath``) could not run; and a second thread that answers calls of
a thread the tracer may have stopped. It gains nothing where a tracer is there.

What is asked is answered from what the kernel says where possible: a call is
let run, and its result corrected if it is about our tree. So no path is resolved
twice (symbolic links, chroots, other mount namespaces), and nothing that a
program changes meanwhile can mislead us. It is no security boundary: a program
can find out that it is being told stories.
"""

from epcgroup.serve.notifier.calls import Notifier
from epcgroup.serve.notifier.namespace import MACHINE_ROOT, MountNamespace

__all__ = ["MACHINE_ROOT", "MountNamespace", "Notifier"]
