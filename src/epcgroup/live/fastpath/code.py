"""fast_enter.S and fast_exit.S, assembled, and the stubs that lead to them and to us."""

from __future__ import annotations

from epcgroup.live.fastpath.sites import ENCLU
from epcgroup.live.tracing import seccomp

#: Assemble fast_enter.S and copy its .text here; a test compares the two.
ENTER = bytes.fromhex(
    "505152565741504151415241530f90c09f506a006a00837c2458020f857a0100004c8b0df0010000"
    "4d85c90f846a0100004885db0f84610100004889df48c1ef0c69ffb179379ec1ef12c1e7064d8d84"
    "3900000400493918741f4983c04049391874164983c040493918740d4983c0404939180f85220100"
    "00bf01000000488d358b0100004889e241ba08000000b80e0000000f0585c00f85fe000000f70424"
    "100000000f85f1000000b8ba0000000f0585c00f88e200000089c225ff0f0000c1e0064d8d140149"
    "3912740d31c0f0490fb1120f85c200000049837a08000f85b70000004d8942084c89542408488b44"
    "245049894210f3480faec049894218f3480faec8498942208b042425c80400004989423031c0f049"
    "0fb15008757d4939187578488d8c24e8000000498b40184889084889680849c740300100000049ff"
    "4228488b4424604883c0034889442450498b40104889442460498b4020f3480faed0498b4028f348"
    "0faed8498b403848894424584883c41058047f9e415b415a415941585f5e5a59488b0424488da424"
    "90000000ffa42478ffffff4c8b5424084d85d2741d4d8b4208498b1249395008750849c740080000"
    "000049c74208000000008b042425c8040000741b48890424bf000000004889e631d241ba08000000"
    "b80e0000000f054883c41058047f9e415b415a415941585f5e5a5958488da42488000000ffa42478"
    "ffffff0f1f440000c8040000000000000000000000000000"
)
#: Offsets in it: where going back becomes possible and where it ends, the way back, the table's address.
ENTER_BODY, ENTER_COMMIT, ENTER_BAIL, ENTER_TABLE = 0x16, 0x136, 0x19B, 0x218

#: The same of fast_exit.S.
EXIT = bytes.fromhex(
    "0f90c09f89c14889d848c1e82f0f850f01000089c8047f9ef3490faedbf3480faed2b8ba0000000f"
    "0589c20f90c09f89d181e1ff0f0000c1e1064c8b1def0000004901cb4939130f85c6000000498b53"
    "084885d20f84b900000049837b3000753d047f9e498b4b1048c7420800000000498b5318498b4320"
    "49c7430800000000f3490faecbf3480faed8f3480faec0f3480faed24889c2b804000000ffe34d89"
    "83001014004d89d84989b8081014004989b0101014004d89901810140049898020101400bf000000"
    "00498d703031d241ba08000000b80e0000000f054d89c349c7433000000000498b83201014004d8b"
    "9318101400498bb310101400498bbb081014004d8b8300101400498b5308e94effffff047f9ef349"
    "0faecbf3480faec2eb0589c8047f9eb804000000cd800f0b0000000000000000"
)
#: Offsets in it: the two instructions that may raise #GP, the trap, the table's address.
EXIT_PARK, EXIT_PARKED, EXIT_TRAP, EXIT_TABLE = 0x18, 0x22, 0x12C, 0x130

JMP_LENGTH = 5
PARKING = 32  # bytes: a lock (0: free), RCX, R11, RSI
_OVER_THE_RED_ZONE = bytes.fromhex("488d642480")  # lea -128(%rsp), %rsp
_INT80, _SYSCALL = b"\xcd\x80", b"\x0f\x05"
# xchg %rax, %rcx: with it and jrcxz, RAX is looked at and the flags are not touched.
_SWAP, _JRCXZ, _JMP_SHORT = b"\x48\x91", b"\xe3", b"\xeb"
_MOV_EEXIT = bytes.fromhex("b804000000")  # mov $4, %eax


def jmp(at: int, target: int) -> bytes:
    """``jmp target`` to be put at address ``at``; OverflowError if it is too far."""
    return b"\xe9" + (target - at - JMP_LENGTH).to_bytes(4, "little", signed=True)


def enter_stub(before: bytes, place: int, enter: int) -> bytes:
    """Code that does ``before`` and goes on at ``enter``, on behalf of the ENCLU at ``place``.

    ``before`` are the instructions that the jump to this stub replaced, up to the ENCLU.
    """
    # push 6(%rip); jmp *8(%rip): the two words behind them.
    tail = b"\xff\x35" + (6).to_bytes(4, "little") + b"\xff\x25" + (8).to_bytes(4, "little")
    words = place.to_bytes(8, "little") + enter.to_bytes(8, "little")
    return before + _OVER_THE_RED_ZONE + tail + words


def exit_stub(between: bytes, at: int, leave: int) -> bytes:
    """``mov $4, %eax``, the instructions that stood between it and the ENCLU, and on to ``leave``."""
    code = _MOV_EEXIT + between
    return code + jmp(at + len(code), leave)


def leaf_stub(leaf: int, between: bytes, at: int, enclu: int, parking: int, *, reports: bool) -> bytes:
    """A leaf that stays inside: ask for it (`leaves`), go on behind the ENCLU at address ``enclu``.

    RAX is not 0 after the question: execute the ENCLU instead. ``reports``: the leaf tells in
    RAX that it succeeded, and clears the status flags; others leave both alone.

    SYSCALL loses RCX and R11, and inside an enclave there is no stack to keep them on. So they
    are parked at address ``parking`` (PARKING bytes), where one thread has room at a time. While
    another one is there, ``int $0x80`` asks: that loses nothing, but since Linux 6.7 it looks at
    the local APIC, for which a guest has to leave for its hypervisor (6 µs).
    """
    mov_leaf = b"\xb8" + leaf.to_bytes(4, "little")
    number = b"\xb8" + (seccomp.LEAF_CALL + leaf).to_bytes(4, "little")
    lock, rcx, r11, rsi = range(parking, parking + PARKING, 8)
    code = _Code(at, between)
    code += b"\xb8\x01\0\0\0"  # mov $1, %eax
    code.reach("8705", lock)  # xchg %eax, …
    slow = _SWAP + number + _INT80
    fast = _Code(code.end + len(_SWAP) + 2 + len(slow) + 2)  # RCX is 0 there, and RAX what it was
    fast.reach("488905", rcx)  # mov %rax, …
    fast.reach("4c891d", r11)  # mov %r11, …
    fast.reach("488935", rsi)  # mov %rsi, …
    fast += b"\x48\x89\xc6\x48\x87\xfb" + number + _SYSCALL + b"\x48\x87\xfb"
    # mov %rax, %rsi; xchg %rdi, %rbx; …; xchg %rdi, %rbx
    fast.reach("488b35", rsi)  # mov …, %rsi
    fast.reach("4c8b1d", r11)  # mov …, %r11
    fast.reach("488b0d", rcx)  # mov …, %rcx
    fast.reach("c705", lock, b"\0\0\0\0")  # movl $0, …
    code += _SWAP + _JRCXZ + bytes([len(slow) + 2]) + slow + _JMP_SHORT + bytes([len(fast)]) + fast
    refused = _SWAP + mov_leaf
    code += _SWAP + _JRCXZ + bytes([len(refused) + JMP_LENGTH]) + refused
    code += jmp(code.end, enclu)
    # add $1, %eax (of 0); mov $0, %eax: all status flags are 0 then.
    code += _SWAP + (b"\x83\xc0\x01\xb8\0\0\0\0" if reports else mov_leaf)
    code += jmp(code.end, enclu + len(ENCLU))
    return bytes(code)


class _Code(bytearray):
    """Code that begins at address ``start``."""

    def __init__(self, start: int, code: bytes = b"") -> None:
        super().__init__(code)
        self._start = start

    @property
    def end(self) -> int:
        """Address behind it."""
        return self._start + len(self)

    def reach(self, instruction: str, address: int, immediate: bytes = b"") -> None:
        """Add an instruction with the memory at ``address`` as its operand (RIP-relative)."""
        self += bytes.fromhex(instruction)
        self += (address - self.end - 4 - len(immediate)).to_bytes(4, "little", signed=True) + immediate
