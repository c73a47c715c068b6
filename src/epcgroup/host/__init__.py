"""Cgroups by their files, a kernel's or ours: it is one implementation, by path.

Find a tree with :func:`~.discover.find`, read and write it through
:class:`~.cgroup.Hierarchy`, wait with :mod:`.watch`; :mod:`.doctor` says what
a machine has and lacks.
"""

from epcgroup.host.cgroup import Hierarchy, View
from epcgroup.host.discover import find

__all__ = ["Hierarchy", "View", "find"]
