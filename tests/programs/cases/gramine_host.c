/* What Gramine does beside entering and leaving: a profiler and counters at its AEP, a stack that the enclave
 * moves, waking by signals, late threads, memory at fixed places, permissions that nobody accepts. */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include "check.h"

#define SSA_URSP 144
#define TCS_FLAGS 8
#define TCS_OSSA 16
#define TCS_CSSA 24

static struct enclave e;
static struct call *c;

static u64 peek(int mem, u64 at)
{
	u64 value = 0;

	CHECK(syscall(SYS_pread64, mem, &value, 8UL, at) == 8, "pread at %#lx: %s", at, strerror(errno));
	return value;
}

/* Machine code at `at`, which is writable and executable. */
static void put_code(u64 at, const u8 *code, size_t n)
{
	for (u64 i = 0, word = 0; i < n; i += 8) {
		memcpy(&word, code + i, n - i < 8 ? n - i : 8);
		must(c, OP_PUT, at + i, word, 0, 0);
	}
}

/* ---- the outer stack ---- */

static volatile u64 outer_rsp;

static void see_rsp(int signal, siginfo_t *info, void *context)
{
	u64 rip = gprsgx_address(&e, 0, 0) + SSA_RIP;
	struct call *handler = by_enclu(&e, 0);

	(void)signal, (void)info;
	outer_rsp = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RSP];
	must(handler, OP_PUT, rip, must(handler, OP_GET, rip, 0, 0, 0) + 2, 0, 0);
	call_free(handler);
}

/* EENTER writes it into the frame at once, where the enclave reads it; where the enclave then puts it is where
 * the stack is at the AEP (a debug build moves it below what it has laid there). */
static void outer_stack(void)
{
	u8 code[] = { 0x48, 0xb9, 0, 0, 0, 0, 0, 0, 0, 0,	/* mov $URSP, %rcx */
		      0x48, 0x81, 0x29, 0, 0x10, 0, 0,		/* subq $4096, (%rcx) */
		      0x0f, 0x0b, 0xc3 };			/* ud2; ret */
	u64 at, found;

	e = load((struct spec){ .code = 1, .heap = 200, .ssa_pages = 4 });
	at = gprsgx_address(&e, 0, 0) + SSA_URSP;
	memcpy(code + 2, &at, 8);
	c = by_vdso(&e, 0);
	put_code(e.code, code, sizeof code);
	handle(SIGILL, see_rsp, 0);
	unblock(SIGILL);
	for (int i = 0; i < 4; i++) {
		c = by_enclu(&e, 0);	/* another stack each time */
		found = must(c, OP_GET, at, 0, 0, 0);
		CHECK(found <= c->stack_top && found > c->stack_top - 64, "URSP %#lx of %#lx", found, c->stack_top);
		must(c, OP_CALL, e.code, 0, 0, 0);
		CHECK_EQ(outer_rsp, found - 4096);
		must(c, OP_FILL, e.heap, 200, i, 0);
	}
}

/* ---- a profiler at the AEP, by a descriptor older than the enclave ---- */

static struct {
	u64 exits, tcs;		/* found by GS, as the loader's own thread data */
} of_thread;
static int memory_of_mine;
static volatile u64 samples, count, stop;
static volatile int ticks;
extern const char sampling_aep[];

__attribute__((visibility("hidden"))) void sample(u64 tcs)
{
	u64 frame = e.base + peek(memory_of_mine, tcs + TCS_OSSA), cssa = peek(memory_of_mine, tcs + TCS_CSSA) & 0xffffffff;
	u64 gpr = frame + cssa * e.spec.ssa_pages * PAGE - GPRSGX_SIZE, rip = peek(memory_of_mine, gpr + SSA_RIP);
	u64 stack[32], rsp = peek(memory_of_mine, gpr + SSA_RSP);

	CHECK_EQ(tcs, of_thread.tcs);
	CHECK_EQ(cssa, 1);
	CHECK(rip >= e.base + e.spec.start && rip < e.heap, "RIP %#lx", rip);
	CHECK_EQ(syscall(SYS_pread64, memory_of_mine, stack, sizeof stack, rsp & ~15UL & ~0xffUL), sizeof stack);
	samples++;
}

asm(".text\n"
    ".globl sampling_aep\n"
    ".hidden sampling_aep\n"
    "sampling_aep:\n"
    "	lock incq %gs:0\n"
    "	sub $256, %rsp\n"
    "	push %rax\n"
    "	push %rbx\n"
    "	push %rcx\n"
    "	push %rbp\n"
    "	mov %rsp, %rbp\n"
    "	and $-16, %rsp\n"
    "	mov %rbx, %rdi\n"
    "	call sample\n"
    "	mov %rbp, %rsp\n"
    "	pop %rbp\n"
    "	pop %rcx\n"
    "	pop %rbx\n"
    "	pop %rax\n"
    "	add $256, %rsp\n"
    "	enclu\n"
    "	ud2\n");

static void tick(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	stop = ++ticks >= 20;
}

static void profiler(void)
{
	memory_of_mine = open("/proc/self/mem", O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	CHECK(memory_of_mine >= 0, "open: %s", strerror(errno));
	e = load((struct spec){ .base_zero = 1, .start = 0x10000, .heap = 200, .ssa_pages = 4 });
	c = by_enclu(&e, 0);
	c->aep = sampling_aep;
	of_thread.tcs = e.tcs[0];
	CHECK(!syscall(SYS_arch_prctl, ARCH_SET_GS, &of_thread), "arch_prctl: %s", strerror(errno));
	handle(SIGALRM, tick, 0);
	unblock(SIGALRM);
	start_timer(2000);
	must(c, OP_SPIN, (u64)&count, (u64)&stop, 0, 0);
	stop_timer();
	CHECK(samples > 0 && samples == of_thread.exits, "%lu samples, %lu exits", samples, of_thread.exits);
	must(c, OP_FILL, e.heap, 200, 1, 0);	/* what it has read is evicted by now */
	handle(SIGILL, see_rsp, 0);
	unblock(SIGILL);
	samples = of_thread.exits = 0;
	for (int i = 0; i < 5; i++)
		CHECK_EQ(must(c, OP_RAISE, RAISE_UD2, 0, 0, 0), 1);
	CHECK_EQ(samples, 5);
	CHECK_EQ(of_thread.exits, 5);
}

/* ---- SIGCONT is how one thread wakes another, inside or outside ---- */

static volatile int woken, thread_id, out;
static u8 alternate[1 << 16];

static void wake(int signal, siginfo_t *info, void *context)
{
	struct call *handler;

	(void)signal, (void)info;
	woken++;
	if (((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] != (long)bare_aep)
		return;
	handler = by_enclu(&e, 0);
	CHECK_EQ(must(handler, OP_NOP, 0, 0, 0, 0), 1);
	CHECK_EQ(must(handler, OP_GET, gprsgx_address(&e, 0, 0) + SSA_EXITINFO, 0, 0, 0) & 0xffffffff, 0);
	call_free(handler);
}

static void *sleeper(void *unused)
{
	stack_t stack = { .ss_sp = alternate, .ss_size = sizeof alternate };

	CHECK(!sigaltstack(&stack, NULL), "sigaltstack");
	thread_id = syscall(SYS_gettid);
	must(c, OP_SPIN, (u64)&count, (u64)&stop, 0, 0);
	out = 1;
	CHECK(pause() == -1 && errno == EINTR, "pause: %s", strerror(errno));
	out = 2;
	return unused;
}

static void woken_by_sigcont(void)
{
	struct sigaction action = { .sa_sigaction = wake, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	pthread_t thread;

	sigaddset(&action.sa_mask, SIGTERM);
	sigaddset(&action.sa_mask, SIGCONT);
	CHECK(!sigaction(SIGCONT, &action, NULL) && !sigaction(SIGTERM, &action, NULL), "sigaction");
	e = load((struct spec){ .threads = 1 });
	c = by_enclu(&e, 0);
	CHECK(!pthread_create(&thread, NULL, sleeper, NULL), "no thread");
	for (int tries = 0; !count; tries++)
		CHECK(tries < 60000 && !usleep(1000), "it does not enter");
	for (int i = 1; i <= 20; i++) {
		u64 before = count;

		CHECK(!syscall(SYS_tgkill, getpid(), thread_id, i % 5 ? SIGCONT : SIGTERM), "tgkill: %s", strerror(errno));
		for (int tries = 0; woken < i || count == before; tries++)
			CHECK(tries < 60000 && !usleep(1000), "signal %d: %d came", i, woken);
	}
	stop = 1;
	for (int tries = 0; out < 2; tries++) {
		CHECK(tries < 60000 && !usleep(1000), "it sleeps on");
		if (out == 1)
			syscall(SYS_tgkill, getpid(), thread_id, SIGCONT);
	}
	CHECK(!pthread_join(thread, NULL), "join");
}

/* ---- threads that come when the enclave runs ---- */

static int on_new_tcs(void *argument)
{
	u64 tcs = (u64)argument;
	struct call *mine = call_new(tcs, NULL);
	int mem = open("/proc/self/mem", O_RDWR | O_LARGEFILE | O_CLOEXEC);
	u64 flags = peek(mem, tcs + TCS_FLAGS) | 1;

	CHECK_EQ(pwrite(mem, &flags, 8, tcs + TCS_FLAGS), 8);
	close(mem);
	for (int i = 0; i < 20; i++)
		CHECK_EQ(must(mine, OP_NOP, 0, 0, 0, 0), 0);
	must(mine, OP_FILL, e.heap, 100, tcs, 0);
	__atomic_add_fetch(&out, 1, __ATOMIC_SEQ_CST);
	return 0;
}

/* Each accepts a TCS of its own, with its stack and frames, and says DBGOPTIN from outside before its first entry. */
static void late_threads(void)
{
	u64 pages = STACK_PAGES + 1 + 2 * 4, result, image[72 / 8];
	int mem;

	e = load((struct spec){ .heap = 100, .hole = 6 * 13, .ssa_pages = 4 });
	c = by_vdso(&e, 0);
	mem = open("/proc/self/mem", O_RDWR);
	for (u64 i = 0; i < 72; i += 8)
		image[i / 8] = peek(mem, e.tcs[0] + i);
	for (u64 i = 0; i < 6; i++) {
		u64 base = e.hole + i * pages * PAGE, tcs = base + STACK_PAGES * PAGE;
		u8 *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		for (u64 p = 0; p < pages; p++)
			CHECK_EQ(must(c, OP_ACCEPT, base + p * PAGE, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
		image[2] = tcs + PAGE - e.base;				/* OSSA */
		image[3] = 2UL << 32;					/* CSSA, NSSA */
		image[6] = image[7] = base - e.base;			/* FS, GS */
		for (u64 w = 0; w < 9; w++)
			must(c, OP_PUT, tcs + w * 8, image[w], 0, 0);
		CHECK_EQ(modify_type(&e, tcs, PAGE, TYPE_TCS, &result), 0);
		CHECK(!mprotect((void *)tcs, PAGE, PROT_READ | PROT_WRITE), "mprotect: %s", strerror(errno));
		CHECK_EQ(must(c, OP_ACCEPT, tcs, TYPE_TCS << 8 | SECINFO_MODIFIED, 0, 0), 0);
		CHECK(clone(on_new_tcs, stack + 65536,
			    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM | CLONE_THREAD | CLONE_SIGHAND, (void *)tcs) > 0,
		      "clone: %s", strerror(errno));
		for (int tries = 0; out <= (int)i; tries++)
			CHECK(tries < 60000 && !usleep(1000), "thread %lu does not end", i);
	}
}

/* ---- permissions that are taken, and not accepted ---- */

/* A page stays usable as it is (EPCM.PR stops nobody), and may change again and go. */
static void not_accepted(void)
{
	u64 n = 50, result;

	e = load((struct spec){ .heap = 200, .hole = n });
	c = by_vdso(&e, 0);
	for (u64 p = 0; p < n; p++)
		CHECK_EQ(must(c, OP_ACCEPT, e.hole + p * PAGE, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
	must(c, OP_FILL, e.hole, n, 1, 0);
	CHECK_EQ(restrict_permissions(&e, e.hole, n * PAGE, R, &result), 0);
	must(c, OP_FILL, e.heap, 200, 2, 0);
	CHECK_EQ(must(c, OP_CHECK, e.hole, n, 1, 0), 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_PUT, e.hole, 1, 0, 0), 14, 0x8007, e.hole);
	call_unwind(&e, c, 0, 0);
	for (u64 p = 0; p < n; p++)
		must(c, OP_EXTEND, e.hole + p * PAGE, R | W, 0, 0);
	must(c, OP_FILL, e.hole, n, 3, 0);
	must(c, OP_FILL, e.heap, 200, 4, 0);
	CHECK_EQ(must(c, OP_CHECK, e.hole, n, 3, 0), 0);
	CHECK_EQ(restrict_permissions(&e, e.hole, n * PAGE, 0, &result), 0);
	CHECK_EQ(restrict_permissions(&e, e.hole, n * PAGE, 0, &result), 0);
	CHECK_EQ(modify_type(&e, e.hole, n * PAGE, TYPE_TRIM, &result), 0);
	for (u64 p = 0; p < n; p++)
		CHECK_EQ(must(c, OP_ACCEPT, e.hole + p * PAGE, TYPE_TRIM << 8 | SECINFO_MODIFIED, 0, 0), 0);
	CHECK_EQ(remove_pages(&e, e.hole, n * PAGE), 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_GET, e.hole, 0, 0, 0), 14, 0x8005, e.hole);
	call_unwind(&e, c, 0, 0);
}

/* ---- memory at fixed places behind an enclave that has the first terabyte ---- */

#define TERABYTE (1UL << 40)
#define PLACED (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

static void load_below(u64 size)
{
	e = load((struct spec){ .base_zero = 1, .start = size - (1UL << 21), .size = size, .heap = 200, .hole = 50,
				.ssa_pages = 4 });
	c = by_enclu(&e, 0);
}

static void accept_and_fill(unsigned from, unsigned pages)
{
	for (unsigned p = from; p < from + pages; p++) {
		CHECK_EQ(must(c, OP_ACCEPT, e.hole + p * PAGE, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
		must(c, OP_EXTEND, e.hole + p * PAGE, R | W | X, 0, 0);
	}
	must(c, OP_FILL, e.heap, 200, from, 0);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 200, from, 0), 0);
}

static void *place(u64 at, u64 size, int prot, int flags)
{
	u8 *there = mmap((void *)at, size, prot, PLACED | flags, -1, 0);

	CHECK(there == (u8 *)at, "%#lx bytes at %#lx: %s", size, at, strerror(errno));
	return there;
}

/* What the debugger reads lies right behind it, what is shared with others behind that: nothing else is there. */
static void memory_behind(void)
{
	static const int flags[] = { MAP_FIXED_NOREPLACE, MAP_FIXED };

	for (int i = 0; i < 2; i++) {
		u8 *shared;

		load_below(TERABYTE);
		accept_and_fill(0, 20);
		memset(place(TERABYTE, 13 * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED_NOREPLACE), 1, 13 * PAGE);
		shared = place(TERABYTE + 13 * PAGE, 4UL << 30, PROT_READ | PROT_WRITE, flags[i]);
		accept_and_fill(20, 20);
		for (u64 at = 0; at < 4UL << 30; at += 64UL << 20)
			CHECK_EQ(shared[at]++, 0);
		place(TERABYTE + 13 * PAGE, 4UL << 30, PROT_NONE, MAP_FIXED);
		must(c, OP_NOP, 0, 0, 0, 0);
		enclave_unload(&e);
		CHECK(!munmap((void *)TERABYTE, (4UL << 30) + 13 * PAGE), "munmap: %s", strerror(errno));
	}
	load_below(TERABYTE);
	accept_and_fill(0, 20);
}

static unsigned mappings(void)
{
	FILE *file = fopen("/proc/self/maps", "r");
	unsigned lines = 0;

	for (int letter; (letter = getc(file)) != EOF;)
		lines += letter == '\n';
	fclose(file);
	return lines;
}

/* One enclave of a terabyte after the other leaves nothing behind. */
static void one_after_the_other(void)
{
	unsigned at_first = 0;

	for (int i = 0; i < 12; i++) {
		load_below(i % 2 ? TERABYTE : TERABYTE / 2);
		for (int k = 0; k < 3; k++)
			must(c, OP_NOP, 0, 0, 0, 0);
		call_free(c);
		enclave_unload(&e);
		if (i == 3)
			at_first = mappings();
	}
	CHECK_EQ(mappings(), at_first);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "outer_stack", outer_stack },
		{ "profiler", profiler },
		{ "woken_by_sigcont", woken_by_sigcont },
		{ "late_threads", late_threads },
		{ "not_accepted", not_accepted },
		{ "memory_behind", memory_behind },
		{ "one_after_the_other", one_after_the_other },
	};

	return RUN(argc, argv, tests);
}
