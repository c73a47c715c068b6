/* What a debugger reads and writes: registers, debug registers, the memory of enclaves. */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/uio.h>
#include "tracing.h"

#define ENCLU 0xd7010f
#define CPUID 0xa20f
#define TCS_FLAGS 8
#define DBGOPTIN 1

static void nothing(void)
{
}

static void change_it(void)
{
	s->count = 1;
	s->count = 2;
	_exit(0);
}

static void watchpoint(void)
{
	pid_t child;
	u64 status;

	share();
	child = stopped_child(change_it);
	ASK(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg[0]), &s->count);
	ASK(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg[7]), 1 | 0xd0000);	/* write, 8 bytes */
	for (int i = 1; i < 3; i++) {
		ASK(PTRACE_CONT, child, 0, 0);
		CHECK_EQ(WAIT(child), STOPPED(SIGTRAP));
		CHECK_EQ(s->count, i);
		ASK(PTRACE_PEEKUSER, child, offsetof(struct user, u_debugreg[6]), &status);
		CHECK_EQ(status & 1, 1);
	}
	ASK(PTRACE_CONT, child, 0, 0);
	CHECK_EQ(WAIT(child), EXITED(0));
}

static void registers(void)
{
	static u8 area[1 << 14], again[1 << 14];
	struct iovec whole = { area, sizeof area }, copy = { again, sizeof again };
	struct user_regs_struct regs, other;
	struct iovec general = { &other, sizeof other };
	struct user_fpregs_struct fp;
	pid_t child = stopped_child(nothing);
	u64 word, mask = 1 << (SIGUSR1 - 1), back = 0;

	regs = regs_of(child);
	ASK(PTRACE_GETREGSET, child, NT_PRSTATUS, &general);
	CHECK_EQ(general.iov_len, sizeof other);
	CHECK(!memcmp(&regs, &other, sizeof regs), "GETREGSET is not GETREGS");
	ASK(PTRACE_PEEKUSER, child, offsetof(struct user, regs.rip), &word);
	CHECK_EQ(word, regs.rip);
	ASK(PTRACE_GETREGSET, child, NT_X86_XSTATE, &whole);
	CHECK(whole.iov_len > 512 && whole.iov_len < sizeof area, "XSAVE area of %zu bytes", whole.iov_len);
	area[160] = 77;						/* xmm0 */
	ASK(PTRACE_SETREGSET, child, NT_X86_XSTATE, &whole);
	ASK(PTRACE_GETFPREGS, child, 0, &fp);
	CHECK_EQ(fp.xmm_space[0] & 0xff, 77);
	fp.xmm_space[0] = 78;
	ASK(PTRACE_SETFPREGS, child, 0, &fp);
	ASK(PTRACE_GETREGSET, child, NT_X86_XSTATE, &copy);
	CHECK_EQ(again[160], 78);
	general.iov_len = 8;
	ASK(PTRACE_GETREGSET, child, NT_PRSTATUS, &general);
	CHECK_EQ(general.iov_len, 8);
	ASK(PTRACE_SETSIGMASK, child, 8, &mask);
	ASK(PTRACE_GETSIGMASK, child, 8, &back);
	CHECK_EQ(back, mask);
	CHECK_EQ(try(PTRACE_GETREGSET, child, 0x999, (u64)&general), -EINVAL);
	CHECK_EQ(try(PTRACE_GETREGS, child, 0, 8), -EFAULT);
	CHECK_EQ(try(PTRACE_PEEKDATA, child, 8, (u64)&word), -EIO);
	CHECK_EQ(try(PTRACE_POKEDATA, child, 8, 1), -EIO);
	CHECK_EQ(try(0x42ff, child, 0, 0), -EIO);
	CHECK_EQ(try(PTRACE_SETOPTIONS, child, 0, 1 << 30), -EINVAL);
	CHECK_EQ(try(PTRACE_SYSEMU, child, 0, 0), -EIO);
	CHECK_EQ(try(PTRACE_LISTEN, child, 0, 0), -EIO);
	CHECK_EQ(try(PTRACE_INTERRUPT, child, 0, 0), -EIO);
	ASK(PTRACE_KILL, child, 0, 0);
	CHECK_EQ(WAIT(child), SIGKILL);
	CHECK_EQ(try(PTRACE_CONT, child, 0, 0), -ESRCH);
}

/* ---- enclaves ---------------------------------------------------------------- */

static u64 attributes, tcs_flags;

static void own_an_enclave(void)
{
	struct enclave e = load((struct spec){ .heap = HEAP, .attributes = attributes, .tcs_flags = tcs_flags });
	struct call *c = by_vdso(&e, 0);

	must(c, OP_PUT, e.heap + 8, 0x1122334455667788, 0, 0);
	must(c, OP_FILL, e.heap + PAGE, HEAP - 1, 9, 0);	/* what was used before is evicted */
	s->e = e;
	s->ready = 1;
	while (!s->stop) {
		s->count++;
		must(c, OP_NOP, 0, 0, 0, 0);
		usleep(100);
	}
	s->seen[0] = must(c, OP_GET, e.heap + 8, 0, 0, 0);
	s->seen[1] = must(c, OP_GET, e.heap + 2 * PAGE, 0, 0, 0);
	_exit(7);
}

static pid_t owner(void)
{
	pid_t child;

	share();
	child = fork();
	if (!child)
		own_an_enclave();
	until(&s->ready, 1);
	return child;
}

static void enclave_memory(void)
{
	pid_t child = owner();
	u64 heap = s->e.heap;

	ASK(PTRACE_ATTACH, child, 0, 0);
	CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
	CHECK_EQ(peek(child, heap + 8), 0x1122334455667788);
	CHECK_EQ(peek(child, heap + 4), 0x5566778800000000);
	for (u64 page = 1; page < HEAP; page += 7)
		CHECK_EQ(peek(child, heap + page * PAGE + 16), pattern(9, page - 1, 2));
	CHECK_EQ(peek(child, heap + 8), 0x1122334455667788);
	ASK(PTRACE_POKEDATA, child, heap + 8, 42);
	ASK(PTRACE_POKEDATA, child, heap + 2 * PAGE - 4, 0x1111111122222222);	/* on two pages */
	CHECK_EQ(peek(child, heap + 2 * PAGE - 4), 0x1111111122222222);
	CHECK_EQ(peek(child, s->e.tcs[0] + TCS_FLAGS), 0);
	ASK(PTRACE_POKEDATA, child, s->e.tcs[0] + TCS_FLAGS, DBGOPTIN);
	CHECK_EQ(peek(child, s->e.tcs[0] + TCS_FLAGS), DBGOPTIN);
	CHECK_EQ(try(PTRACE_POKEDATA, child, s->e.tcs[0] + TCS_FLAGS, 2), -EIO);
	CHECK_EQ(try(PTRACE_POKEDATA, child, s->e.tcs[0] + 32, 2), -EIO);
	ASK(PTRACE_DETACH, child, 0, 0);
	expect_running();
	end_counting(child);
	CHECK_EQ(s->seen[0], 42);
	CHECK_EQ(s->seen[1] & 0xffffffff, 0x11111111);
}

static void production_enclave(void)
{
	pid_t child;
	u64 word;

	attributes = ATTR_MODE64;
	child = owner();
	ASK(PTRACE_ATTACH, child, 0, 0);
	CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
	CHECK_EQ(try(PTRACE_PEEKDATA, child, s->e.heap + 8, (u64)&word), -EIO);
	CHECK_EQ(try(PTRACE_POKEDATA, child, s->e.heap + 8, 1), -EIO);
	CHECK_EQ(try(PTRACE_PEEKDATA, child, s->e.tcs[0], (u64)&word), -EIO);
	ASK(PTRACE_DETACH, child, 0, 0);
	end_counting(child);
	CHECK_EQ(s->seen[0], 0x1122334455667788);
}

/* A stop inside: an asynchronous exit. Outside it stands at the AEP, about to resume; the rest is in its SSA. */
static void stop_inside(void)
{
	struct user_regs_struct regs;
	struct enclave e;
	pid_t child;

	share();
	child = fork();
	if (!child) {
		struct call *c;

		s->e = load((struct spec){ .heap = 4 });
		c = by_vdso(&s->e, 0);
		must(c, OP_NOP, 0, 0, 0, 0);
		must(c, OP_SPIN, (u64)&s->count, (u64)&s->stop, 0, 0);
		_exit(7);
	}
	until(&s->count, 1000);
	e = s->e;
	for (int i = 0; i < 6; i++) {
		if (i & 1) {
			ASK(PTRACE_SEIZE, child, 0, 0);
			ASK(PTRACE_INTERRUPT, child, 0, 0);
			CHECK_EQ(WAIT(child), STOPPED_FOR(PTRACE_EVENT_STOP));
		} else {
			ASK(PTRACE_ATTACH, child, 0, 0);
			CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
		}
		regs = regs_of(child);
		CHECK_EQ(regs.rax, ERESUME);
		CHECK_EQ(regs.rbx, e.tcs[0]);
		CHECK_EQ(regs.rip, regs.rcx);
		CHECK_EQ(peek(child, regs.rip) & 0xffffff, ENCLU);
		CHECK_EQ(peek(child, e.tcs[0] + 24) & 0xffffffff, 1);	/* CSSA */
		regs.rip = peek(child, gprsgx_address(&e, 0, 0) + SSA_RIP);
		CHECK(regs.rip >= e.base && regs.rip < e.base + e.size, "RIP in the SSA is %#llx", regs.rip);
		ASK(PTRACE_DETACH, child, 0, 0);
		until(&s->count, s->count + 1000);
	}
	end_counting(child);
}

extern const char the_cpuid[];

static __attribute__((noinline)) u32 ask_cpuid(void)
{
	u32 a = 0x12, b, c = 0, d;

	asm volatile(".globl the_cpuid\nthe_cpuid: cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	return a;
}

static void count_cpuid(void)
{
	while (!s->stop) {
		s->seen[0] = ask_cpuid();
		s->count++;
		usleep(100);
	}
}

/* Debuggers of enclaves look at the instruction where a thread stands (sgx-gdb, oegdb). They find the
 * program's own, and put breakpoints on it, by both ways to its memory. */
static void replaced_instructions(void)
{
	u64 at = (u64)the_cpuid, word;
	struct user_regs_struct regs;
	char name[32];
	pid_t child;
	int fd;

	share();
	child = stopped_child(count_cpuid);
	snprintf(name, sizeof name, "/proc/%d/mem", child);
	CHECK((fd = open(name, O_RDWR)) >= 0, "%s: %s", name, strerror(errno));
	for (int i = 0; i < 4; i++) {
		CHECK_EQ((word = peek(child, at)) & 0xffff, CPUID);
		CHECK_EQ(peek(child, at - 7) >> 56, CPUID & 0xff);
		CHECK_EQ(peek(child, at + 1) & 0xff, CPUID >> 8);
		CHECK(pread(fd, &word, 8, at) == 8 && (word & 0xffff) == CPUID, "by %s: %#lx", name, word);
		if (i & 1)
			ASK(PTRACE_POKETEXT, child, at, (word & ~0xffUL) | 0xcc);
		else
			CHECK_EQ(pwrite(fd, "\xcc", 1, at), 1);
		CHECK_EQ(peek(child, at) & 0xffff, (CPUID & 0xff00) | 0xcc);
		ASK(PTRACE_CONT, child, 0, 0);
		CHECK_EQ(WAIT(child), STOPPED(SIGTRAP));
		regs = regs_of(child);
		CHECK_EQ(regs.rip, at + 1);
		CHECK_EQ(regs.rax, 0x12);
		regs.rip = at;
		ASK(PTRACE_SETREGS, child, 0, &regs);
		if (i & 2)
			ASK(PTRACE_POKETEXT, child, at, word);
		else
			CHECK_EQ(pwrite(fd, &word, 1, at), 1);
		ASK(PTRACE_SINGLESTEP, child, 0, 0);
		CHECK_EQ(WAIT(child), STOPPED(SIGTRAP));
		regs = regs_of(child);
		CHECK_EQ(regs.rip, at + 2);
		CHECK_EQ(regs.rax & 3, 3);			/* SGX1 and SGX2 */
	}
	close(fd);
	ASK(PTRACE_DETACH, child, 0, 0);
	expect_running();
	CHECK_EQ(s->seen[0] & 3, 3);
	end_counting(child);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "watchpoint", watchpoint },
		{ "registers", registers },
		{ "enclave_memory", enclave_memory },
		{ "production_enclave", production_enclave },
		{ "stop_inside", stop_inside },
		{ "replaced_instructions", replaced_instructions },
	};

	return RUN(argc, argv, tests);
}
