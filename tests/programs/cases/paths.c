/* Entering and leaving over and over, on the ways that need no trap: whatever a trap would do, they do.
 *
 * The first entry by a TCS traps; so each case enters a few times first. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include "check.h"

#define STATUS 0x8d5UL		/* CF PF AF ZF SF OF */
#define DF 0x400UL

static void warm(struct call *c)
{
	for (int i = 0; i < 3; i++)
		CHECK_EQ(must(c, OP_NOP, 0, 0, 0, 0), 0);
}

/* ---- registers ---- */

static u64 seed = 88172645463325252UL;

static void fill_random(void *to, size_t n)
{
	for (u8 *at = to; n--; at++)
		*at = next_random(&seed) >> 32;
}

static void compare(const struct probe *p, u64 tcs, u64 local, u64 fs, int round)
{
	const u64 *in = p->enter, *out = p->leave;
	const u64 inside[16] = { 0, tcs, (u64)probe_after, in[0], in[1], (u64)p, in[3], p->after[7] - 8,
				 in[4], in[5], in[6], in[7], in[8], in[9], in[10], in[11] };
	const u64 after[16] = { 4, (u64)probe_after, (u64)probe_aep, out[0], out[1], out[2], out[3], p->after[7],
				out[4], out[5], out[6], out[7], out[8], out[9], out[10], out[11] };

	for (int i = 0; i < 16; i++) {
		/* The probe pushes nothing before it notes RSP; the host has popped one word since. */
		u64 want = i == 7 ? p->after[7] : inside[i];

		CHECK(p->inside[i] == want, "round %d: register %d inside is %#lx, not %#lx", round, i, p->inside[i], want);
		CHECK(p->after[i] == after[i], "round %d: register %d after is %#lx, not %#lx", round, i, p->after[i],
		      after[i]);
	}
	CHECK((p->inside[16] & (STATUS | DF)) == (in[12] & (STATUS | DF)), "round %d: flags inside are %#lx, not %#lx",
	      round, p->inside[16], in[12]);
	CHECK((p->after[16] & (STATUS | DF)) == (out[12] & (STATUS | DF)), "round %d: flags after are %#lx, not %#lx",
	      round, p->after[16], out[12]);
	CHECK(p->inside[17] == local && p->inside[18] == local, "round %d: FS, GS inside are %#lx, %#lx, not %#lx", round,
	      p->inside[17], p->inside[18], local);
	CHECK(p->after[17] == fs && p->after[18] == in[13], "round %d: FS, GS after are %#lx, %#lx", round, p->after[17],
	      p->after[18]);
	CHECK(!memcmp(p->inside_xmm, p->enter_xmm, 256), "round %d: XMM changed on the way in", round);
	CHECK(!memcmp(p->after_xmm, p->enter_xmm, 256), "round %d: XMM changed on the way out", round);
}

/* All registers and flags, with random contents: numbers that are addresses and numbers that cannot be. */
static void registers(void)
{
	struct enclave e = load((struct spec){ .entry = PROBE });
	u64 local = stack_page(&e, 0, STACK_PAGES - 1), fs;
	static struct probe p;

	asm("rdfsbase %0" : "=r"(fs));
	for (int round = 0; round < 800; round++) {
		fill_random(p.leave, sizeof p.leave);
		fill_random(p.enter, sizeof p.enter);
		fill_random(p.enter_xmm, sizeof p.enter_xmm);
		p.enter[12] = (p.enter[12] & (STATUS | DF)) | 0x202;
		p.leave[12] = (p.leave[12] & (STATUS | DF)) | 0x202;
		p.enter[13] &= 0x7fffffffffffUL;	/* a GS base must be an address */
		if (round % 8)				/* those are parked there on the way out */
			p.leave[0] &= 0x7fffffffffffUL, p.leave[7] &= 0x7fffffffffffUL;
		probe_enter(&p, e.tcs[0]);
		compare(&p, e.tcs[0], local, fs, round);
	}
}

/* The stack that an asynchronous exit returns to is in the SSA frame at every entry. */
static void outer_stack(void)
{
	struct enclave e = load((struct spec){ .entry = PROBE });
	static struct probe p;
	u64 seen[2];

	for (int i = 0; i < 5; i++) {
		p.enter[3] = 0x123400 + i;
		p.enter[12] = p.leave[12] = 0x202;
		probe_enter(&p, e.tcs[0]);
		memcpy(seen, (void *)(gprsgx_address(&e, 0, 0) + 144), 16);
		CHECK_EQ(seen[0], p.inside[7]);
		CHECK_EQ(seen[1], 0x123400 + i);
	}
}

/* Exceptions within exceptions: each level is entered at its CSSA, its exit takes its own outer stack. */
static void handlers(void)
{
	struct enclave e = load((struct spec){ .nssa = 3 });
	struct call *c = by_vdso(&e, 0), *handler = by_vdso(&e, 0), *inner = by_enclu(&e, 0);

	for (int round = 0; round < 10; round++) {
		u64 interrupted[23], now[23];

		warm(c);
		CHECK_EQ(ask(c, NULL, OP_RAISE, RAISE_UD2, 0, 0, 0), EXCEPTION);
		memcpy(interrupted, (void *)gprsgx_address(&e, 0, 0), sizeof interrupted);
		for (int i = 0; i < 3; i++)
			CHECK_EQ(must(handler, OP_NOP, 0, 0, 0, 0), 1);
		CHECK_EQ(ask(handler, NULL, OP_RAISE, RAISE_DIV0, 0, 0, 0), EXCEPTION);
		CHECK_EQ(handler->result.vector, 0);
		for (int i = 0; i < 3; i++)
			CHECK_EQ(must(inner, OP_NOP, 0, 0, 0, 0), 2);
		memcpy(now, (void *)gprsgx_address(&e, 0, 0), sizeof now);
		CHECK(!memcmp(now, interrupted, sizeof now), "round %d: the frame of another level changed", round);
		call_unwind(&e, handler, 0, 1);
		CHECK_EQ(must(handler, OP_NOP, 0, 0, 0, 0), 1);
		call_unwind(&e, c, 0, 0);
	}
}

/* ---- signals ---- */

static volatile u64 ours_start, ours_end, strange, signals;
static u64 vdso_function;

static void look_where(int signal, siginfo_t *info, void *context)
{
	u64 rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	extern char __executable_start[], etext[];

	(void)signal, (void)info;
	signals++;
	if ((rip < (u64)__executable_start || rip >= (u64)etext) && (rip < vdso_function || rip >= vdso_function + 0xc0) &&
	    (rip < ours_start || rip >= ours_end))
		strange = rip;
}

/* Asks the kernel for the time: its vDSO would be one more place for a signal to come at. */
static void entries_for(struct call *c, double seconds)
{
	struct timespec begin, now;

	syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &begin);
	do {
		for (int i = 0; i < 200; i++)
			CHECK_EQ(must(c, OP_NOP, 0, 0, 0, 0), 0);
		syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - begin.tv_sec + (now.tv_nsec - begin.tv_nsec) * 1e-9 < seconds);
}

/* A signal comes before, inside (then at the AEP) or after, never between: handlers look at RIP. */
static void signals_on_the_way(void)
{
	struct enclave e = load((struct spec){ 0 });
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];

	CHECK(maps, "maps");
	while (fgets(line, sizeof line, maps))	/* libc's own code is as good as ours */
		if (strstr(line, "r-xp") && strstr(line, "libc"))
			sscanf(line, "%lx-%lx", (u64 *)&ours_start, (u64 *)&ours_end);
	fclose(maps);
	vdso_function = (u64)vdso_by_dynamic();
	handle(SIGALRM, look_where, 0);
	start_timer(3000);
	entries_for(by_enclu(&e, 0), 0.5);
	entries_for(by_vdso(&e, 0), 0.5);
	stop_timer();
	CHECK(signals > 20, "only %lu signals", signals);
	CHECK(!strange, "a signal handler saw RIP %#lx", strange);
}

/* The same with SIGTRAP blocked and with SIGTRAP ignored: stepping a thread must not show. */
static void sigtrap_is_the_programs_own(void)
{
	struct enclave e = load((struct spec){ 0 });
	struct sigaction now;

	handle(SIGALRM, look_where, 0);
	vdso_function = (u64)vdso_by_dynamic();
	signal(SIGTRAP, SIG_IGN);
	start_timer(3000);
	entries_for(by_enclu(&e, 0), 0.3);
	CHECK(!sigaction(SIGTRAP, NULL, &now) && now.sa_handler == SIG_IGN, "SIGTRAP is no longer ignored");
	handle(SIGTRAP, look_where, 0);
	block(SIGTRAP);
	entries_for(by_enclu(&e, 0), 0.1);
	stop_timer();
	CHECK(is_blocked(SIGTRAP), "SIGTRAP is no longer blocked");
	CHECK(!sigaction(SIGTRAP, NULL, &now) && now.sa_sigaction == look_where, "the SIGTRAP handler is gone");
}

/* A mask that changes between two entries: inside, an exception must come all the same. */
static void mask_between_entries(void)
{
	struct enclave e = load((struct spec){ 0 });
	struct call *c = by_vdso(&e, 0);
	struct sigaction now;

	handle(SIGILL, look_where, 0);
	for (int i = 0; i < 20; i++) {
		warm(c);
		block(0);
		EXPECT_FAULT(c, ask(c, NULL, OP_RAISE, RAISE_UD2, 0, 0, 0), 6, 0, 0);
		CHECK(is_blocked(SIGILL), "SIGILL is no longer blocked");
		unblock(0);
		call_unwind(&e, c, 0, 0);
		CHECK(!sigaction(SIGILL, NULL, &now) && now.sa_sigaction == look_where, "the handler is gone");
	}
	CHECK_EQ(signals, 0);
}

/* ---- leaves that stay inside ---- */

/* Of 96 holes on a small machine, each accepted, extended, written, and evicted in between. */
static void grown(void)
{
	struct enclave e = load((struct spec){ .threads = 2, .hole = 96, .heap = 100 });
	struct call *c = by_vdso(&e, 0);

	CHECK_EQ((must(c, OP_LEAVES, 5, SECINFO_PENDING | TYPE_REG << 8 | R | W, e.hole, 96), c->asked.a[5]), 0);
	must(c, OP_FILL, e.hole, 96, 7, 0);
	must(c, OP_FILL, e.heap, 100, 8, 0);
	CHECK_EQ((must(c, OP_LEAVES, 6, TYPE_REG << 8 | R | W | X, e.hole, 96), c->asked.a[5]), 0);
	CHECK_EQ(must(c, OP_CHECK, e.hole, 96, 7, 0), 0);
	/* Once more: not as it says, for every page. */
	CHECK_EQ((must(c, OP_LEAVES, 5, SECINFO_PENDING | TYPE_REG << 8 | R | W, e.hole, 96), c->asked.a[5]), 96);
}

struct keeping {
	struct enclave *e;
	unsigned thread;
};

static void leaf_keeps(const struct keeping *of, struct call *c, int leaf, u64 flags, u64 page, u64 rflags)
{
	u64 regs[17], want[17];

	fill_random(want, sizeof want);
	want[1] = page;
	want[3] = of->e->heap + of->thread * PAGE;
	must(c, OP_PUT, want[3], flags, 0, 0);
	want[16] = rflags;
	memcpy(regs, want, sizeof regs);
	must(c, OP_LEAF_ALL, leaf, (u64)regs, 0, 0);
	want[0] = leaf == 5 ? 0 : leaf;
	want[4] = regs[4];	/* RSP */
	want[16] = leaf == 5 ? rflags & ~STATUS : rflags;
	regs[16] &= STATUS | DF;
	for (int i = 0; i < 17; i++)
		CHECK(regs[i] == want[i], "leaf %d: register %d is %#lx, not %#lx", leaf, i, regs[i], want[i]);
}

/* Registers and flags are as after the instruction. */
static void *leaves_keep(void *argument)
{
	const struct keeping *of = argument;
	struct call *c = by_vdso(of->e, of->thread);

	for (u64 i = 0; i < 48; i++) {
		u64 page = of->e->hole + (of->thread * 48 + i) * PAGE, rflags = i & 1 ? STATUS | DF : 0;

		leaf_keeps(of, c, 5, SECINFO_PENDING | TYPE_REG << 8 | R | W, page, rflags);
		leaf_keeps(of, c, 6, TYPE_REG << 8 | R | W | X, page, rflags);
	}
	return NULL;
}

/* While one thread waits for its answer, the other one asks at the same place in the code. */
static void leaves_keep_registers(void)
{
	struct enclave e = load((struct spec){ .threads = 2, .heap = 2, .hole = 96 });
	struct keeping first = { &e, 0 }, second = { &e, 1 };
	pthread_t other;

	CHECK(!pthread_create(&other, NULL, leaves_keep, &second), "pthread_create");
	leaves_keep(&first);
	CHECK(!pthread_join(other, NULL), "pthread_join");
}

/* A leaf that faults does so at its ENCLU, with the registers it had. */
static void leaf_that_faults(void)
{
	struct enclave e = load((struct spec){ .threads = 2, .hole = 4 });
	struct call *c = by_vdso(&e, 0);
	const u64 *gpr = (u64 *)gprsgx_address(&e, 0, 0);

	EXPECT_FAULT(c, ask(c, NULL, OP_LEAVES, 5, SECINFO_PENDING | 9 << 8, e.hole, 1), 13, 0, 0);
	CHECK_EQ(gpr[0], 5);
	CHECK_EQ(gpr[1], e.hole);
	CHECK(gpr[SSA_RIP / 8] > e.base && gpr[SSA_RIP / 8] < e.base + e.size, "RIP in the SSA is %#lx", gpr[SSA_RIP / 8]);
	CHECK_EQ(*(u8 *)gpr[SSA_RIP / 8], 0x0f);
	call_unwind(&e, c, 0, 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_LEAVES, 6, TYPE_REG << 8 | R | W | X, e.hole, 1), 14, 0x8007, e.hole);
	CHECK_EQ(gpr[0], 6);
}

static volatile int stopped;

static void *count_signals(void *argument)
{
	pthread_t other = *(pthread_t *)argument;

	while (!stopped) {
		pthread_kill(other, SIGUSR1);
		usleep(2000);
	}
	return NULL;
}

/* Signals while leaves are executed: each leaf exactly once. */
static void signals_during_leaves(void)
{
	struct enclave e = load((struct spec){ .hole = 400, .threads = 2 });
	struct call *c = by_vdso(&e, 0);
	pthread_t self = pthread_self(), thread;

	handle(SIGUSR1, look_where, 0);
	vdso_function = (u64)vdso_by_dynamic();
	CHECK(!pthread_create(&thread, NULL, count_signals, &self), "pthread_create");
	for (int i = 0; i < 400; i += 100)
		for (int leaf = 5; leaf <= 6; leaf++) {
			u64 flags = TYPE_REG << 8 | R | W | (leaf == 5 ? SECINFO_PENDING : X);
			int error = ask(c, NULL, OP_LEAVES, leaf, flags, e.hole + i * PAGE, 100);

			while (error == EXCEPTION)
				error = call_enter(c, ERESUME);
			CHECK_EQ(error, 0);
			CHECK_EQ(c->asked.a[5], 0);
		}
	stopped = 1;
	pthread_join(thread, NULL);
	CHECK(signals > 0, "no signal came");
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "registers", registers },
		{ "outer_stack", outer_stack },
		{ "handlers", handlers },
		{ "signals_on_the_way", signals_on_the_way },
		{ "sigtrap_is_the_programs_own", sigtrap_is_the_programs_own },
		{ "mask_between_entries", mask_between_entries },
		{ "grown", grown },
		{ "leaves_keep_registers", leaves_keep_registers },
		{ "leaf_that_faults", leaf_that_faults },
		{ "signals_during_leaves", signals_during_leaves },
	};

	return RUN(argc, argv, tests);
}
