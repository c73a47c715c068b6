"""EGETKEY and the MAC of EREPORT: keys from one root.

Real processors fuse a root into each chip. Here the caller gives one 128-bit
root per host; it must be stored if sealed files are to open again. A key is
AES-CMAC(root, SHA-256 of the length-prefixed fields that it depends on): any
stable derivation will do, since no enclave can know the real one.
What each key depends on: SDM, EGETKEY, table of key derivation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.cmac import CMAC

from epcgroup.errors import BadInput
from epcgroup.sgx.enclave import EnclaveState
from epcgroup.sgx.layouts import (
    Attribute,
    KeyName,
    KeyPolicy,
    KeyRequest,
    SgxError,
    TargetInfo,
)

#: Attributes that always enter a derivation, whatever the mask says.
_ALWAYS = int(Attribute.INIT | Attribute.DEBUG)
_KSS_POLICIES = KeyPolicy.CONFIGID | KeyPolicy.ISVFAMILYID | KeyPolicy.ISVEXTPRODID | KeyPolicy.NOISVPRODID
_KNOWN_POLICIES = _KSS_POLICIES | KeyPolicy.MRENCLAVE | KeyPolicy.MRSIGNER


def cmac(key: bytes, data: bytes) -> bytes:
    """AES-128-CMAC (RFC 4493)."""
    mac = CMAC(AES128(key))
    mac.update(data)
    return mac.finalize()


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


class KeyRoot:
    """The secret from which all keys of one host come."""

    __slots__ = ("_root",)

    def __init__(self, root: bytes) -> None:
        if len(root) != 16:
            raise BadInput(f"a key root is 16 bytes, not {len(root)}")
        self._root = root

    def derive(self, fields: Iterable[bytes]) -> bytes:
        """16 bytes that depend on every field, its length and place."""
        text = b"".join(_number(len(field)) + field for field in fields)
        return cmac(self._root, hashlib.sha256(text).digest())

    def report_key(self, target: TargetInfo, cpu_svn: bytes, key_id: bytes) -> bytes:
        """The key with which ``target`` verifies reports made for it."""
        return self.derive(
            (
                b"REPORT",
                target.mrenclave,
                _number(target.attributes),
                _number(target.xfrm),
                _number(target.miscselect),
                target.config_id,
                _number(target.config_svn),
                cpu_svn,
                key_id,
            )
        )

    def get(self, state: EnclaveState, request: KeyRequest) -> tuple[SgxError, bytes]:
        """The key ``request`` asks for, or why the enclave may not have it."""
        secs, cpu_svn = state.secs, state.platform.cpu_svn
        if request.key_name == KeyName.REPORT:
            target = TargetInfo(
                secs.mrenclave,
                secs.attributes,
                secs.xfrm,
                secs.config_svn,
                secs.miscselect,
                secs.config_id,
            )
            return SgxError.SUCCESS, self.report_key(target, cpu_svn, request.key_id)
        needed = {
            KeyName.EINITTOKEN: Attribute.EINITTOKENKEY,
            KeyName.PROVISION: Attribute.PROVISIONKEY,
            KeyName.PROVISION_SEAL: Attribute.PROVISIONKEY,
            KeyName.SEAL: Attribute(0),
        }
        if request.key_name not in needed:
            return SgxError.INVALID_KEYNAME, b""
        attribute = needed[KeyName(request.key_name)]
        if attribute and not secs.attributes & attribute:
            return SgxError.INVALID_ATTRIBUTE, b""
        if int.from_bytes(request.cpu_svn, "little") > int.from_bytes(cpu_svn, "little"):
            return SgxError.INVALID_CPUSVN, b""
        if request.isv_svn > secs.isv_svn or request.config_svn > secs.config_svn:
            return SgxError.INVALID_ISVSVN, b""
        return SgxError.SUCCESS, self.derive(_fields(state, request))


def is_legal(state: EnclaveState, request: KeyRequest) -> bool:
    """Whether KEYPOLICY and CONFIGSVN are such as this enclave may use (else #GP)."""
    if request.key_policy & ~int(_KNOWN_POLICIES):
        return False
    if state.secs.attributes & Attribute.KSS:
        return True
    return not request.key_policy & int(_KSS_POLICIES) and not request.config_svn


def _fields(state: EnclaveState, request: KeyRequest) -> list[bytes]:
    """What PROVISION, PROVISION_SEAL, SEAL and EINITTOKEN keys depend on.

    Only sealing keys know a policy and only SEAL can be the enclave's own: the
    others are keys of the signer. Masks enter where a key must not be had
    by asking for less. Provisioning keys do not depend on KEYID.
    """
    secs, name = state.secs, KeyName(request.key_name)
    policy = request.key_policy if name in (KeyName.SEAL, KeyName.PROVISION_SEAL) else 0
    own = name is KeyName.SEAL and policy & KeyPolicy.MRENCLAVE
    signer = name is not KeyName.SEAL or policy & KeyPolicy.MRSIGNER
    masked = name is not KeyName.EINITTOKEN
    identified = name in (KeyName.SEAL, KeyName.EINITTOKEN)
    return [
        name.name.encode(),
        _number(policy),
        secs.mrenclave if own else b"",
        secs.mrsigner if signer else b"",
        b"" if policy & KeyPolicy.NOISVPRODID else _number(secs.isv_prod_id),
        state.isv_family_id if policy & KeyPolicy.ISVFAMILYID else b"",
        state.isv_ext_prod_id if policy & KeyPolicy.ISVEXTPRODID else b"",
        secs.config_id + _number(request.config_svn) if policy & KeyPolicy.CONFIGID else b"",
        _number(request.isv_svn),
        request.cpu_svn,
        _number(secs.attributes & (request.attributes_mask | _ALWAYS)),
        _number(secs.xfrm & request.xfrm_mask),
        _number(secs.miscselect & request.misc_mask),
        _number(request.attributes_mask) + _number(request.xfrm_mask) if masked else b"",
        _number(request.misc_mask) if masked else b"",
        request.key_id if identified else b"",
    ]
