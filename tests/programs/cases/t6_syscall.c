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
	CHECK_EQ(ssa(SSA_EXITINFO) & 0xffffffff, 0x80000603);
	call_unwind(&e, c, 0, 0);
	c = by_enclu(&e, 0);
	CHECK_EQ(guarded_ask(c, &caught, OP_RAISE, RAISE_INT3, 0, 0, 0), SIGTRAP);
	CHECK_EQ(caught.rip, bare_aep);
}

static void bare_signals(void)
{
	static const struct { u64 what; int signal; } known[] = {
		{ RAISE_UD2, SIGILL }, { RAISE_DIV0, SIGFPE }, { RAISE_IN, SIGILL },
	};

	start();
	for (unsigned i = 0; i < 3; i++) {
		struct call *bare = by_enclu(&e, 0);
		struct caught caught;

		CHECK_EQ(guarded_ask(bare, &caught, OP_RAISE, known[i].what, 0, 0, 0), known[i].signal);
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
		{ "bare_signals", bare_signals },
		{ "rdtsc_runs", rdtsc_runs },
		{ "range_is_free_afterwards", range_is_free_afterwards },
	};

	return RUN(argc, argv, tests);
}
