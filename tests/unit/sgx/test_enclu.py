"""ENCLU leaves other than entry and exit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from epcgroup.sgx import enclu, leaves
from epcgroup.sgx.epcm import describe
from epcgroup.sgx.faults import GeneralProtection, PageFault
from epcgroup.sgx.keys import KeyRoot, cmac
from epcgroup.sgx.layouts import (
    Attribute,
    KeyName,
    KeyPolicy,
    KeyRequest,
    PageType,
    Report,
    SecInfo,
    SgxError,
    TargetInfo,
    Tcs,
)

PROVISIONER = int(Attribute.MODE64BIT | Attribute.PROVISIONKEY)
INFO, DATA = 0x101000, 0x102000  # pages of the enclave that hold operands
KEYS = KeyRoot(b"r" * 16)


@pytest.fixture
def enclave(build):
    return build()


def accept(enclave, page, flags):
    state, memory = enclave
    memory.write(INFO, SecInfo(flags).pack())
    return enclu.eaccept(state, memory, INFO, page)


def test_eaccept_of_an_augmented_page_makes_it_usable(enclave):
    page = enclave[1].augment(20)
    assert accept(enclave, page, 0x20B) == enclu.Result(0)
    enclave[1].write(page, b"mine")
    assert enclave[1].read(page, 4) == b"mine"


@pytest.mark.parametrize("flags", [0x209, 0x20F, 0x223, 0x410, 0x110])
def test_eaccept_refuses_what_is_not_so(enclave, flags):
    result = accept(enclave, enclave[1].augment(20), flags)
    assert (result.rax, result.zf) == (SgxError.PAGE_ATTRIBUTES_MISMATCH, True)
    assert describe(enclave[0].epcm[20]) == "REG rw- PENDING"


def test_eaccept_of_restricted_permissions_and_of_a_trim(enclave):
    leaves.emodpr(enclave[0], 3, 1)
    assert accept(enclave, 0x103000, 0x221).rax == 0
    leaves.emodt(enclave[0], 3, PageType.TRIM)
    assert accept(enclave, 0x103000, 0x410).rax == 0
    assert describe(enclave[0].epcm[3]) == "TRIM ---"


@pytest.mark.parametrize("flags", [0x203, 0x21B, 0x233, 0x40B, 0x418, 0x400, 0x130, 0x008])
def test_eaccept_of_what_the_driver_never_makes_is_a_general_protection(enclave, flags):
    with pytest.raises(GeneralProtection):
        accept(enclave, enclave[1].augment(20), flags)


def test_pr_is_cleared_but_not_compared(enclave):
    assert accept(enclave, enclave[1].augment(20), 0x22B).rax == 0
    assert describe(enclave[0].epcm[20]) == "REG rw-"


@pytest.mark.parametrize(
    ("fields", "good"),
    [
        ({}, True),
        ({"cssa": 1}, True),
        ({"nssa": 0}, False),
        ({"cssa": 2}, False),
        ({"aep": 1}, False),
        ({"state": 1}, False),
        ({"flags": 1}, False),
        ({"flags": 2}, False),
        ({"ossa": 0x4010}, False),
    ],
)
def test_a_page_becomes_a_tcs_only_in_its_first_state(enclave, fields, good):
    state, memory = enclave
    memory.write(0x103000, replace(Tcs(ossa=0x4000, nssa=2), **fields).pack())
    leaves.emodt(state, 3, PageType.TCS)
    if good:
        assert accept(enclave, 0x103000, 0x110).rax == 0
        assert describe(state.epcm[3]) == "TCS ---"
    else:
        with pytest.raises(GeneralProtection):
            accept(enclave, 0x103000, 0x110)


def test_operands_fault_in_the_order_alignment_then_presence(enclave):
    state, memory = enclave
    for info, page in [(INFO + 1, DATA), (INFO, DATA + 1), (0x1000, DATA), (INFO, 0x1000), (INFO, 0x120000)]:
        with pytest.raises(GeneralProtection):
            enclu.eaccept(state, memory, info, page)
    with pytest.raises(PageFault) as missing:
        enclu.eaccept(state, memory, 0x119000, DATA)
    assert missing.value.addr == 0x119000


def test_reserved_bits_of_secinfo_are_a_general_protection(enclave):
    for flags in (0x240 | 0xB, 0x1020B, 0x00B, 0x30B):
        with pytest.raises(GeneralProtection):
            accept(enclave, DATA, flags)
    enclave[1].write(INFO + 63, b"\1")
    with pytest.raises(GeneralProtection):
        accept_raw(enclave)


def accept_raw(enclave):
    return enclu.eaccept(*enclave, INFO, DATA)


def test_a_secinfo_on_a_pending_page_faults_with_the_sgx_bit(enclave):
    state, memory = enclave
    with pytest.raises(PageFault) as fault:
        enclu.eaccept(state, memory, memory.augment(20), DATA)
    assert fault.value.code == 0x8005


def test_emodpe_adds_permissions_at_once(enclave):
    state, memory = enclave
    memory.write(INFO, SecInfo(0x204).pack())
    enclu.emodpe(state, memory, INFO, DATA)
    assert describe(state.epcm[2]) == "REG rwx"
    memory.write(INFO, SecInfo(0x202).pack())
    enclu.emodpe(state, memory, INFO, DATA)
    state.epcm[3] = 0x200
    with pytest.raises(GeneralProtection):
        enclu.emodpe(state, memory, INFO, 0x103000)


def test_emodpe_faults_on_a_pending_page_and_on_a_tcs(enclave):
    state, memory = enclave
    memory.write(INFO, SecInfo(0x203).pack())
    for page in (memory.augment(20), 0x100000):
        with pytest.raises(PageFault):
            enclu.emodpe(state, memory, INFO, page)


def test_eacceptcopy_fills_the_page_and_sets_its_permissions(enclave):
    state, memory = enclave
    page = memory.augment(20)
    memory.write(DATA, b"code" * 1024)
    memory.write(INFO, SecInfo(0x205).pack())
    assert enclu.eacceptcopy(state, memory, INFO, page, DATA).rax == 0
    assert describe(state.epcm[20]) == "REG r-x"
    assert memory.read(page, 4096) == b"code" * 1024
    assert enclu.eacceptcopy(state, memory, INFO, page, DATA).rax == SgxError.PAGE_ATTRIBUTES_MISMATCH


def test_eacceptcopy_from_a_pending_page_faults(enclave):
    state, memory = enclave
    memory.write(INFO, SecInfo(0x203).pack())
    source = memory.augment(21)
    with pytest.raises(PageFault) as fault:
        enclu.eacceptcopy(state, memory, INFO, memory.augment(20), source)
    assert fault.value.addr == source


def report_for(enclave, target: TargetInfo, data: bytes = b"d" * 64) -> Report:
    state, memory = enclave
    memory.write(DATA, target.pack())
    memory.write(DATA + 512, data)
    enclu.ereport(state, memory, KEYS, DATA, DATA + 512, DATA + 1024)
    return Report.unpack(memory.read(DATA + 1024, 432))


def key_for(enclave, request: KeyRequest) -> tuple[int, bytes]:
    state, memory = enclave
    memory.write(DATA, request.pack())
    result = enclu.egetkey(state, memory, KEYS, DATA, DATA + 512)
    return result.rax, memory.read(DATA + 512, 16)


def target_of(state) -> TargetInfo:
    secs = state.secs
    return TargetInfo(
        secs.mrenclave, secs.attributes, secs.xfrm, secs.config_svn, secs.miscselect, secs.config_id
    )


def test_a_report_tells_who_made_it_and_its_target_can_verify_it(build):
    maker, target = build(), build(ssa_frame_size=3)
    report = report_for(maker, target_of(target[0]))
    assert report.mrenclave == maker[0].secs.mrenclave
    assert report.attributes == Attribute.INIT | Attribute.MODE64BIT
    assert (report.isv_prod_id, report.isv_svn, report.report_data) == (5, 3, b"d" * 64)
    error, key = key_for(target, KeyRequest(KeyName.REPORT, key_id=report.key_id))
    assert error == 0
    assert cmac(key, report.pack()[:384]) == report.mac


def test_a_report_for_one_enclave_does_not_verify_in_another(build):
    maker, target, third = build(), build(ssa_frame_size=3), build(ssa_frame_size=4)
    report = report_for(maker, target_of(target[0]))
    _, key = key_for(third, KeyRequest(KeyName.REPORT, key_id=report.key_id))
    assert cmac(key, report.pack()[:384]) != report.mac


def test_ereport_wants_its_three_alignments(enclave):
    state, memory = enclave
    memory.write(DATA, target_of(state).pack())
    for operands in [
        (DATA + 64, DATA + 512, DATA + 1024),
        (DATA, DATA + 64, DATA + 1024),
        (DATA, DATA + 512, DATA + 640),
    ]:
        with pytest.raises(GeneralProtection):
            enclu.ereport(state, memory, KEYS, *operands)


def seal(policy=KeyPolicy.MRENCLAVE, **changes) -> KeyRequest:
    return KeyRequest(KeyName.SEAL, int(policy), **changes)


def test_a_sealing_key_is_stable_and_bound_to_what_the_policy_names(build):
    one, again, other = build(), build(), build(ssa_frame_size=3)
    assert key_for(one, seal())[1] == key_for(again, seal())[1]
    assert key_for(one, seal())[1] != key_for(other, seal())[1]
    assert key_for(one, seal(KeyPolicy.MRSIGNER))[1] == key_for(other, seal(KeyPolicy.MRSIGNER))[1]
    assert key_for(one, seal(key_id=b"k" * 32))[1] != key_for(one, seal())[1]
    assert key_for(one, seal(isv_svn=1))[1] != key_for(one, seal(isv_svn=2))[1]


def test_a_debug_enclave_never_gets_the_keys_of_a_production_one(build, debug_attributes):
    request = seal(KeyPolicy.MRSIGNER)
    assert key_for(build(), request)[1] != key_for(build(attributes=debug_attributes), request)[1]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (KeyRequest(9), SgxError.INVALID_KEYNAME),
        (KeyRequest(KeyName.PROVISION), SgxError.INVALID_ATTRIBUTE),
        (KeyRequest(KeyName.EINITTOKEN), SgxError.INVALID_ATTRIBUTE),
        (seal(isv_svn=4), SgxError.INVALID_ISVSVN),
        (seal(cpu_svn=b"\1" + bytes(15)), SgxError.INVALID_CPUSVN),
    ],
)
def test_egetkey_says_why_not_and_writes_nothing(enclave, request_, code):
    assert key_for(enclave, request_) == (code, bytes(16))


@pytest.mark.parametrize("name", [KeyName.SEAL, KeyName.PROVISION, KeyName.PROVISION_SEAL])
@pytest.mark.parametrize("mask", ["attributes_mask", "xfrm_mask", "misc_mask"])
def test_a_wider_mask_is_another_key_even_of_an_enclave_without_those_bits(build, name, mask):
    """A key must not be had by asking for less."""
    holder = build(attributes=PROVISIONER)
    request = KeyRequest(name, int(KeyPolicy.MRSIGNER) if name is KeyName.SEAL else 0)
    assert key_for(holder, request)[1] != key_for(holder, replace(request, **{mask: 1 << 31}))[1]


def test_each_name_is_another_key(build):
    holder = build(attributes=PROVISIONER | Attribute.EINITTOKENKEY)
    assert len({key_for(holder, KeyRequest(name))[1] for name in KeyName}) == len(KeyName)


def test_provisioning_keys_are_the_signers_and_do_not_depend_on_keyid(build):
    one, other = build(attributes=PROVISIONER), build(attributes=PROVISIONER, ssa_frame_size=3)
    launcher = build(attributes=int(Attribute.MODE64BIT | Attribute.EINITTOKENKEY))

    def keys(name, *holders):
        return {key_for(who, KeyRequest(name, key_id=k * 32))[1] for who in holders for k in (b"a", b"b")}

    assert len(keys(KeyName.PROVISION, one, other)) == 1
    assert len(keys(KeyName.PROVISION_SEAL, one, other)) == 1
    assert len(keys(KeyName.EINITTOKEN, launcher)) == 2


@pytest.mark.parametrize("name", [KeyName.SEAL, KeyName.PROVISION_SEAL])
@pytest.mark.parametrize(
    "policy",
    [KeyPolicy.CONFIGID, KeyPolicy.ISVFAMILYID, KeyPolicy.ISVEXTPRODID, KeyPolicy.NOISVPRODID],
)
def test_key_separation_binds_the_sealing_keys_to_what_the_policy_names(build, name, policy):
    """KSS: two products of one signer, with and without the policy bit."""
    common = KeyPolicy.MRSIGNER | KeyPolicy.NOISVPRODID
    keys = []
    for config, family, product in ((b"a" * 64, b"f" * 16, 1), (b"b" * 64, b"g" * 16, 2)):
        state, memory = build(attributes=PROVISIONER | Attribute.KSS, config_id=config)
        state.isv_family_id = state.isv_ext_prod_id = family
        state.change_secs(isv_prod_id=product)
        bound = common ^ policy if policy is KeyPolicy.NOISVPRODID else common | policy
        keys.append([key_for((state, memory), KeyRequest(name, int(p)))[1] for p in (common, bound)])
    (free, bound), (free_too, bound_too) = keys
    assert free == free_too
    assert bound != bound_too


def test_config_svn_enters_with_config_id_and_cannot_be_above_the_enclaves_own(build):
    state = build(attributes=PROVISIONER | Attribute.KSS, config_id=b"c" * 64, config_svn=2)
    bound = KeyPolicy.MRSIGNER | KeyPolicy.CONFIGID
    assert key_for(state, seal(bound, config_svn=1))[1] != key_for(state, seal(bound, config_svn=2))[1]
    assert key_for(state, seal(bound, config_svn=3))[0] == SgxError.INVALID_ISVSVN


def test_provisioning_keys_are_for_enclaves_with_the_attribute(build):
    holder = build(attributes=int(Attribute.MODE64BIT | Attribute.PROVISIONKEY))
    assert key_for(holder, KeyRequest(KeyName.PROVISION))[0] == 0


def test_reserved_bytes_and_unknown_policies_are_a_general_protection(enclave):
    with pytest.raises(GeneralProtection):
        key_for(enclave, seal(KeyPolicy.CONFIGID))
    with pytest.raises(GeneralProtection):
        key_for(enclave, KeyRequest(KeyName.SEAL, 64))
    with pytest.raises(GeneralProtection):
        key_for(enclave, seal(config_svn=1))
    state, memory = enclave
    memory.write(DATA, seal().pack()[:-1] + b"\1")
    with pytest.raises(GeneralProtection):
        enclu.egetkey(state, memory, KEYS, DATA, DATA + 512)
