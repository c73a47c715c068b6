"""The exceptions of epcgroup.

EpcgroupError
├── BadInput(ValueError)        your misuse: a value, a file, an option; says what would be right
├── MissingCapability           this machine lacks something; says what and how to get it
├── InternalError               our bug: an invariant does not hold
└── Refused(OSError)            the limit (or the driver) did its work; carries its errno
    ├── Busy                    EBUSY: not now; retry after background work
    ├── NoEpc                   ENOMEM: nothing reclaimable is left
    ├── Interrupted             ERESTARTSYS: a signal is pending for the caller
    ├── OutOfRange              ENOENT, EINVAL …: the page or group is not there
    ├── PageExists              EBUSY: that address has a page already
    ├── EnclaveDisabled         ENOMEM: the enclave lost its memory for good
    └── LoadFailed              EFAULT: a sealed page did not verify, or is lost
"""

from __future__ import annotations

import errno as _errno
import os
import shlex
import sys

ERESTARTSYS = 512  # kernel-internal; never seen by a program


def to_install(extra: str) -> str:
    """The command that installs an extra beside the epcgroup that runs, in whatever environment it is."""
    return f"{shlex.quote(sys.executable)} -m pip install 'epcgroup[{extra}]'"


def words_of(error: Exception) -> str:
    """What an error says to a person: its message, without the number that an OSError puts before it."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class EpcgroupError(Exception):
    """Root of everything epcgroup raises on purpose."""


class BadInput(EpcgroupError, ValueError):
    """A value given by the user cannot be used."""


class MissingCapability(EpcgroupError):
    """This machine lacks something that the command needs."""


class InternalError(EpcgroupError):
    """A bug in epcgroup: a state that must not be."""


class Refused(EpcgroupError, OSError):
    """An operation was refused with an errno, as the kernel would."""

    default_errno = _errno.EINVAL

    def __init__(self, message: str = "", errno: int | None = None) -> None:
        number = self.default_errno if errno is None else errno
        super().__init__(number, message or os.strerror(number))


class Busy(Refused):
    """EBUSY: cannot complete now; background work was queued, retry later."""

    default_errno = _errno.EBUSY


class NoEpc(Refused):
    """ENOMEM: over the limit (or machine full) and nothing is reclaimable."""

    default_errno = _errno.ENOMEM


class Interrupted(Refused):
    """ERESTARTSYS: a signal is pending for the caller."""

    default_errno = ERESTARTSYS


class OutOfRange(Refused):
    """The page, group or resource that was named is not there."""

    default_errno = _errno.EINVAL


class LoadFailed(Refused):
    """EFAULT: an evicted page did not verify (ELDU) or its contents are lost."""

    default_errno = _errno.EFAULT


class PageExists(Refused):
    """EBUSY: the enclave has a page at that address already."""

    default_errno = _errno.EBUSY


class EnclaveDisabled(Refused):
    """ENOMEM: the enclave was disabled for want of EPC; it can only be closed."""

    default_errno = _errno.ENOMEM
