/* Instructions an enclave must not execute: `syscall` above all is #UD and never reaches the host's
 * kernel; the other exceptions arrive with their vectors. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include "check.h"

static struct enclave e;
static struct call *c, *nested;
static int ends[2];

static void start(void)
{
	e = load((struct spec){ .threads = 2, .heap = 20, .code = 1 });
	c = by_vdso(&e, 0);
	nested = by_vdso(&e, 0);
	CHECK(!pipe2(ends, O_NONBLOCK), "pipe");
}

static void skip_bytes(u64 n)
{
	u64 rip = gprsgx_address(&e, 0, 0) + SSA_RIP;

	must(nested, OP_PUT, rip, must(nested, OP_GET, rip, 0, 0, 0) + n, 0, 0);
}

static u64 ssa(u64 field)
{
	return must(nested, OP_GET, gprsgx_address(&e, 0, 0) + field, 0, 0, 0);
}

static u64 resume(void)
{
	CHECK_EQ(call_enter(c, ERESUME), 0);
	return c->asked.result;
}

static void nothing_written(void)
{
	char byte;

	CHECK(read(ends[0], &byte, 1) < 0 && errno == EAGAIN, "the host executed the enclave's write()");
}

static void syscall_vdso(void)
{
	static const u8 instruction[2] = { 0x0f, 0x05 };
	u8 found[2];

	start();
	for (int i = 0; i < 100; i++) {
		c->asked = (struct request){ .op = OP_SYSCALL, .a = { SYS_write, ends[1], (u64)"x", 1 } };
		EXPECT_FAULT(c, call_enter(c, EENTER), 6, 0, 0);
		nothing_written();
		must(nested, OP_COPY, (u64)found, ssa(SSA_RIP), 2, 0);
		CHECK(!memcmp(found, instruction, 2), "RIP in the frame is not at the syscall");
		CHECK_EQ(ssa(SSA_RAX), SYS_write);
		CHECK_EQ(ssa(SSA_RDI), ends[1]);
		skip_bytes(2);
		CHECK_EQ(resume(), SYS_write);	/* RAX as it was */
	}
	CHECK_EQ(write(ends[1], "y", 1), 1);	/* outside it works */
}

/* What would end or change the process at once if the host executed it. */
static void fatal_syscalls(void)
{
	static const u64 numbers[] = { SYS_exit_group, SYS_munmap, SYS_getpid, SYS_mmap, SYS_mprotect, SYS_openat,
				       SYS_ioctl, SYS_close, SYS_rt_sigreturn, SYS_fork, SYS_execve, 9999, ~0UL };

	start();
	for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) {
		c->asked = (struct request){ .op = OP_SYSCALL, .a = { numbers[i], 0, 0, 0 } };
		EXPECT_FAULT(c, call_enter(c, EENTER), 6, 0, 0);
		CHECK_EQ(ssa(SSA_RAX), numbers[i]);
		skip_bytes(2);
		CHECK_EQ(resume(), numbers[i]);
	}
}

static volatile int runs, code, at_aep;

static void step_over(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	runs++;
	code = info->si_code;
	at_aep = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] == (long)bare_aep;
	skip_bytes(2);
}

static void syscall_bare(void)
{
	struct call *bare;

	start();
	bare = by_enclu(&e, 0);
	nested = by_enclu(&e, 0);
	handle(SIGILL, step_over, 0);
	unblock(SIGILL);
	for (int i = 0; i < 50; i++) {
		CHECK_EQ(must(bare, OP_SYSCALL, SYS_write, ends[1], (u64)"x", 1), SYS_write);
		nothing_written();
		CHECK_EQ(runs, i + 1);
		CHECK(at_aep, "the handler did not find RIP at the AEP");
		CHECK_EQ(code, ILL_ILLOPN);
	}
}

/* ---- other exceptions ---- */

static void raised(u64 what, unsigned vector, u64 length, u32 info)
{
	start();
	c->asked = (struct request){ .op = OP_RAISE, .a = { what } };
	EXPECT_FAULT(c, call_enter(c, EENTER), vector, 0, 0);
	if (info)
		CHECK_EQ(ssa(SSA_EXITINFO) & 0xffffffff, info);
	skip_bytes(length);
	CHECK_EQ(resume(), 1);
}

static void ud2(void)
{
	raised(RAISE_UD2, 6, 2, 0x80000306);
}

static void divide_by_zero(void)
{
	raised(RAISE_DIV0, 0, 3, 0x80000300);
}

static void in_instruction(void)
{
	raised(RAISE_IN, 6, 2, 0x80000306);
}

static void out_instruction(void)
{
	raised(RAISE_OUT, 6, 2, 0x80000306);
}

static void int_80(void)
{
	raised(RAISE_INT80, 6, 2, 0x80000306);
}

/* Outside an enclave these are #GP as privileged ones are; inside #UD, privileged ones stay #GP. */
static void illegal_instructions(void)
{
	static const struct { u64 what; u64 length; } known[] = {
		{ RAISE_INT21, 2 }, { RAISE_RDPMC, 2 }, { RAISE_INSB, 1 }, { RAISE_RETF, 2 },
	};

	for (unsigned i = 0; i < sizeof known / sizeof *known; i++) {
		raised(known[i].what, 6, known[i].length, 0x80000306);
		enclave_unload(&e);
	}
	raised(RAISE_HLT, 13, 1, 0);
}

/* #BP is the one the vDSO leaves to the signal, by either way in. */
static void int3(void)
{
	struct caught caught;

	start();
	CHECK_EQ(guarded_ask(c, &caught, OP_RAISE, RAISE_INT3, 0, 0, 0), SIGTRAP);
	CHECK_EQ(caught.rax, ERESUME);
	CHECK_EQ(caught.rbx, e.tcs[0]);
	CHECK_EQ(caught.code, SI_KERNEL);
	CHECK_EQ(caught.address, 0);
	CHECK_EQ(ssa(SSA_EXITINFO) & 0xffffffff, 0x80000603);
	call_unwind(&e, c, 0, 0);
	c = by_enclu(&e, 0);
	CHECK_EQ(guarded_ask(c, &caught, OP_RAISE, RAISE_INT3, 0, 0, 0), SIGTRAP);
	CHECK_EQ(caught.rip, bare_aep);
}

/* Machine code for OP_CALL at the enclave's code page. */
static void put_code(const void *code, size_t n)
{
	for (u64 i = 0, word = 0; i < n; i += 8) {
		memcpy(&word, (const u8 *)code + i, n - i < 8 ? n - i : 8);
		must(c, OP_PUT, e.code + i, word, 0, 0);
	}
}

/* SSE and x87 exceptions that the enclave has unmasked. */
static void floating_point(void)
{
	static const u8 sse[] = {	/* ldmxcsr 0x1d80; 1.0f / 0.0f */
		0xc7, 0x44, 0x24, 0xf8, 0x80, 0x1d, 0, 0, 0x0f, 0xae, 0x54, 0x24, 0xf8, 0x0f, 0x57, 0xc0,
		0xb8, 1, 0, 0, 0, 0xf3, 0x0f, 0x2a, 0xc8, 0xf3, 0x0f, 0x5e, 0xc8, 0xc3,
	};
	static const u8 x87[] = {	/* fldcw 0x37b; 1 / 0; fwait */
		0xdb, 0xe3, 0x66, 0xc7, 0x44, 0x24, 0xf8, 0x7b, 0x03, 0xd9, 0x6c, 0x24, 0xf8, 0xd9, 0xe8, 0xd9,
		0xee, 0xde, 0xf9, 0x9b, 0xc3,
	};

	start();
	put_code(sse, sizeof sse);
	EXPECT_FAULT(c, ask(c, NULL, OP_CALL, e.code, 0, 0, 0), 19, 0, 0);
	CHECK_EQ(ssa(SSA_EXITINFO) & 0xffffffff, 0x80000313);
	CHECK_EQ(ssa(SSA_RIP), e.code + 25);
	call_unwind(&e, c, 0, 0);
	c = by_vdso(&e, 0);
	put_code(x87, sizeof x87);
	EXPECT_FAULT(c, ask(c, NULL, OP_CALL, e.code, 0, 0, 0), 16, 0, 0);
	CHECK_EQ(ssa(SSA_EXITINFO) & 0xffffffff, 0x80000310);
	CHECK_EQ(ssa(SSA_RIP), e.code + 19);
}

/* The flag stays set after the exit, as on hardware. */
static void misaligned(int signal, siginfo_t *info, void *context)
{
	asm volatile("pushf; andl $~0x40000, (%%rsp); popf" ::: "memory", "cc");
	CHECK_EQ(signal, SIGBUS);
	CHECK_EQ(info->si_code, BUS_ADRALN);
	CHECK_EQ(info->si_addr, 0);
	CHECK_EQ(((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP], bare_aep);
	CHECK_EQ(((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] & 0x40000, 0x40000);
	CHECK_EQ(ssa(SSA_EXITINFO) & 0xffffffff, 0x80000311);
	_exit(0);
}

static void alignment_check(void)
{
	static const u8 code[] = { 0x9c, 0x81, 0x0c, 0x24, 0, 0, 4, 0, 0x9d, 0x8b, 0x44, 0x24, 0xf1, 0xc3 };

	start();
	put_code(code, sizeof code);
	handle(SIGBUS, misaligned, 0);
	must(by_enclu(&e, 0), OP_CALL, e.code, 0, 0, 0);
	CHECK(0, "nothing was raised");
}

static void bare_signals(void)
{
	static const struct { u64 what; int signal, code; } known[] = {
		{ RAISE_UD2, SIGILL, ILL_ILLOPN }, { RAISE_DIV0, SIGFPE, FPE_INTDIV }, { RAISE_IN, SIGILL, ILL_ILLOPN },
	};

	start();
	for (unsigned i = 0; i < 3; i++) {
		struct call *bare = by_enclu(&e, 0);
		struct caught caught;

		CHECK_EQ(guarded_ask(bare, &caught, OP_RAISE, known[i].what, 0, 0, 0), known[i].signal);
		CHECK_EQ(caught.code, known[i].code);
		CHECK_EQ(caught.address, bare_aep);
		CHECK_EQ(caught.rip, bare_aep);
		CHECK_EQ(caught.rax, ERESUME);
		call_unwind(&e, bare, 0, 0);
	}
	CHECK_EQ(must(c, OP_NOP, 0, 0, 0, 0), 0);
}

static void rdtsc_runs(void)
{
	start();
	CHECK_EQ(must(c, OP_RAISE, RAISE_RDTSC, 0, 0, 0), 1);
}

/* ---- the range after the enclave ---- */

static u64 getpid_from(u64 at)
{
	return ((u64 (*)(void))at)();
}

/* Ordinary code may live where an enclave was, and its system calls work. */
static void range_is_free_afterwards(void)
{
	static const u8 code_bytes[] = { 0xb8, SYS_getpid, 0, 0, 0, 0x0f, 0x05, 0xc3 };
	u8 *at;

	start();
	EXPECT_FAULT(c, ask(c, NULL, OP_SYSCALL, SYS_getpid, 0, 0, 0), 6, 0, 0);
	enclave_unload(&e);
	at = mmap((void *)e.base, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(at == (u8 *)e.base, "mmap: %s", strerror(errno));
	memcpy(at, code_bytes, sizeof code_bytes);
	CHECK_EQ(getpid_from(e.base), getpid());
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "syscall_vdso", syscall_vdso },
		{ "syscall_bare", syscall_bare },
		{ "fatal_syscalls", fatal_syscalls },
		{ "ud2", ud2 },
		{ "divide_by_zero", divide_by_zero },
		{ "in_instruction", in_instruction },
		{ "out_instruction", out_instruction },
		{ "int_80", int_80 },
		{ "illegal_instructions", illegal_instructions },
		{ "int3", int3 },
		{ "floating_point", floating_point },
		{ "alignment_check", alignment_check },
		{ "bare_signals", bare_signals },
		{ "rdtsc_runs", rdtsc_runs },
		{ "range_is_free_afterwards", range_is_free_afterwards },
	};

	return RUN(argc, argv, tests);
}
