/* What every SGX program does: load, enter, page, share, nest, report.  Also linked statically. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include "check.h"

static void cpuid(void)
{
	u32 a, b, c, d;

	__cpuid_count(7, 0, a, b, c, d);
	CHECK(b & 1 << 2, "leaf 7: no SGX (ebx %#x)", b);
	CHECK(c & 1 << 30, "leaf 7: no launch control (ecx %#x)", c);
	__cpuid_count(0x12, 0, a, b, c, d);
	CHECK((a & 3) == 3, "leaf 0x12.0: eax %#x, SGX1 and SGX2 expected", a);
	CHECK((d >> 8 & 0xff) >= 36, "leaf 0x12.0: largest enclave 2^%u", d >> 8 & 0xff);
	__cpuid_count(0x12, 1, a, b, c, d);
	CHECK((a & 6) == 6 && (c & 3) == 3, "leaf 0x12.1: attributes %#x, xfrm %#x", a, c);
	__cpuid_count(0x12, 2, a, b, c, d);
	CHECK((a & 0xf) == 1 && (c & 0xfffff000), "leaf 0x12.2: no EPC section (eax %#x ecx %#x)", a, c);
	__cpuid_count(1, 0, a, b, c, d);
	CHECK(c & 1 << 27, "leaf 1 is not the processor's own (ecx %#x)", c);
}

static void enter(struct call *c)
{
	CHECK_EQ(must(c, OP_NOP, 0, 0, 0, 0), 0);
}

static void enter_vdso(void)
{
	struct enclave e = load((struct spec){ 0 });

	enter(by_vdso(&e, 0));
	enclave_unload(&e);
}

static void enter_bare(void)
{
	struct enclave e = load((struct spec){ 0 });
	struct call *c = by_enclu(&e, 0);

	for (int i = 0; i < 100; i++)
		enter(c);
}

/* The heap keeps its contents whatever the EPC; run with an EPC below 300 pages to mean it. */
static void heap(void)
{
	struct enclave e = load((struct spec){ .heap = 300 });
	struct call *c = by_vdso(&e, 0);

	for (u64 seed = 1; seed < 4; seed++) {
		must(c, OP_FILL, e.heap, 300, seed, 0);
		CHECK_EQ(must(c, OP_CHECK, e.heap, 300, seed, 0), 0);
		CHECK_EQ(must(c, OP_CHECK, e.heap, 300, seed + 1, 0), 300);
	}
}

static void untouched_heap_is_zero(void)
{
	struct enclave e = load((struct spec){ .heap = 200 });
	struct call *c = by_enclu(&e, 0);

	for (u64 page = 0; page < 200; page++)
		CHECK_EQ(must(c, OP_GET, e.heap + page * PAGE + 8 * page, 0, 0, 0), 0);
}

static void two_enclaves(void)
{
	struct enclave a = load((struct spec){ .heap = 100 }), b = load((struct spec){ .heap = 100 });
	struct call *ca = by_vdso(&a, 0), *cb = by_enclu(&b, 0);

	must(ca, OP_FILL, a.heap, 100, 1, 0);
	must(cb, OP_FILL, b.heap, 100, 2, 0);
	enclave_unload(&a);
	CHECK_EQ(must(cb, OP_CHECK, b.heap, 100, 2, 0), 0);
	a = load((struct spec){ .heap = 100 });
	ca = by_vdso(&a, 0);
	CHECK_EQ(must(ca, OP_GET, a.heap, 0, 0, 0), 0);
}

struct worker {
	struct enclave *e;
	unsigned thread;
	pthread_t id;
};

static void *fill_own(void *argument)
{
	struct worker *w = argument;
	struct call *c = w->thread & 1 ? by_enclu(w->e, w->thread) : by_vdso(w->e, w->thread);
	u64 at = w->e->heap + w->thread * 64 * PAGE;

	for (u64 round = 1; round < 10; round++) {
		must(c, OP_FILL, at, 64, w->thread + 10 * round, 0);
		CHECK_EQ(must(c, OP_CHECK, at, 64, w->thread + 10 * round, 0), 0);
	}
	return NULL;
}

static void threads(void)
{
	struct enclave e = load((struct spec){ .threads = 4, .heap = 256 });
	struct worker w[4];

	for (unsigned i = 0; i < 4; i++) {
		w[i] = (struct worker){ .e = &e, .thread = i };
		CHECK(!pthread_create(&w[i].id, NULL, fill_own, &w[i]), "pthread_create");
	}
	for (unsigned i = 0; i < 4; i++)
		pthread_join(w[i].id, NULL);
	for (unsigned i = 0; i < 4; i++)
		CHECK_EQ(must(by_vdso(&e, 0), OP_CHECK, e.heap + i * 64 * PAGE, 64, i + 90, 0), 0);
}

static volatile u64 count, stop;

static void *spin(void *argument)
{
	must(argument, OP_SPIN, (u64)&count, (u64)&stop, 0, 0);
	return NULL;
}

static void busy_tcs_is_gp(void)
{
	struct enclave e = load((struct spec){ .threads = 1 });
	struct call *other = by_vdso(&e, 0);
	struct caught caught;
	pthread_t id;
	int error;

	CHECK(!pthread_create(&id, NULL, spin, by_vdso(&e, 0)), "pthread_create");
	while (!count)
		usleep(1000);
	error = ask(other, NULL, OP_NOP, 0, 0, 0, 0);
	CHECK_EQ(error, -EFAULT);
	CHECK_EQ(other->result.vector, 13);
	CHECK_EQ(other->result.function, EENTER);
	CHECK_EQ(guarded_ask(by_enclu(&e, 0), &caught, OP_NOP, 0, 0, 0, 0), SIGSEGV);
	stop = 1;
	pthread_join(id, NULL);
	enter(other);
}

/* EENTER on what is no TCS is a page fault; on an address outside, too. */
static void not_a_tcs(void)
{
	struct enclave e = load((struct spec){ .heap = 1 });
	struct call *c = by_vdso(&e, 0);

	c->tcs = e.heap;
	CHECK_EQ(ask(c, NULL, OP_NOP, 0, 0, 0, 0), -EFAULT);
	CHECK_EQ(c->result.vector, 14);
	c->tcs = e.tcs[0] + 8;
	CHECK_EQ(ask(c, NULL, OP_NOP, 0, 0, 0, 0), -EFAULT);
	CHECK_EQ(c->result.vector, 13);
}

/* ---- nesting: a signal handler enters the interrupted TCS ---- */

static struct call *nested;
static volatile int handled, nested_error;
static volatile u64 seen_cssa;

static void enter_again(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	if (handled++)
		return;
	nested_error = ask(nested, (u64 *)&seen_cssa, OP_NOP, 0, 0, 0, 0);
}

static void nested_entry(void)
{
	struct enclave e = load((struct spec){ .nssa = 2 });
	pthread_t id;

	nested = by_vdso(&e, 0);
	handle(SIGUSR1, enter_again, 0);
	CHECK(!pthread_create(&id, NULL, spin, by_enclu(&e, 0)), "pthread_create");
	while (!count)
		usleep(1000);
	CHECK(!pthread_kill(id, SIGUSR1), "pthread_kill");
	while (!handled)
		usleep(1000);
	usleep(20000);
	stop = 1;
	pthread_join(id, NULL);
	CHECK_EQ(nested_error, 0);
	CHECK_EQ(seen_cssa, 1);
	CHECK_EQ(must(by_vdso(&e, 0), OP_NOP, 0, 0, 0, 0), 0);
}

/* With one SSA frame there is no second level. */
static void nested_entry_needs_a_frame(void)
{
	struct enclave e = load((struct spec){ .nssa = 1 });
	pthread_t id;

	nested = by_vdso(&e, 0);
	handle(SIGUSR1, enter_again, 0);
	CHECK(!pthread_create(&id, NULL, spin, by_enclu(&e, 0)), "pthread_create");
	while (!count)
		usleep(1000);
	pthread_kill(id, SIGUSR1);
	while (!handled)
		usleep(1000);
	usleep(20000);
	stop = 1;
	pthread_join(id, NULL);
	CHECK_EQ(nested_error, -EFAULT);
	CHECK_EQ(nested->result.vector, 13);
	CHECK_EQ(nested->result.function, EENTER);
	enter(by_vdso(&e, 0));
}

/* ---- processes ---- */

static int child_status(pid_t child)
{
	int status;

	CHECK(waitpid(child, &status, 0) == child, "waitpid");
	CHECK(WIFEXITED(status), "child killed by signal %d", WTERMSIG(status));
	return WEXITSTATUS(status);
}

static void fork_shares(void)
{
	struct enclave e = load((struct spec){ .threads = 2, .heap = 200 });
	struct call *c = by_vdso(&e, 0);
	pid_t child;

	must(c, OP_FILL, e.heap, 100, 1, 0);
	child = fork();
	if (child == 0) {
		struct call *mine = by_vdso(&e, 1);

		CHECK_EQ(must(mine, OP_CHECK, e.heap, 100, 1, 0), 0);
		must(mine, OP_FILL, e.heap, 200, 2, 0);
		CHECK_EQ(must(c, OP_CHECK, e.heap, 200, 2, 0), 0);
		_exit(0);
	}
	CHECK_EQ(child_status(child), 0);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 200, 2, 0), 0);
}

/* The parent goes, the enclave stays with the child. */
static void child_outlives_parent(void)
{
	int pipes[2];
	char verdict = 0;
	pid_t middle;

	CHECK(!pipe(pipes), "pipe");
	middle = fork();
	if (middle == 0) {
		struct enclave e = load((struct spec){ .heap = 150 });
		struct call *c = by_vdso(&e, 0);

		must(c, OP_FILL, e.heap, 150, 5, 0);
		if (fork() == 0) {
			usleep(100000);	/* the parent is gone now */
			verdict = must(c, OP_CHECK, e.heap, 150, 5, 0) == 0 ? 'y' : 'n';
			_exit(write(pipes[1], &verdict, 1) != 1);
		}
		_exit(0);
	}
	CHECK_EQ(child_status(middle), 0);
	close(pipes[1]);
	CHECK_EQ(read(pipes[0], &verdict, 1), 1);
	CHECK_EQ(verdict, 'y');
}

static const char *self;

static void exec_with_an_enclave(void)
{
	struct enclave e = load((struct spec){ .heap = 50 });
	struct call *c = by_enclu(&e, 0);

	must(c, OP_FILL, e.heap, 50, 1, 0);
	execl("/proc/self/exe", self, "heap", "enter_bare", "report", NULL);
	CHECK(0, "exec: %s", strerror(errno));
}

/* The mapping alone keeps the enclave. */
static void close_while_mapped(void)
{
	struct enclave e = load((struct spec){ .heap = 100 });
	struct call *c = by_vdso(&e, 0);

	must(c, OP_FILL, e.heap, 100, 3, 0);
	close(e.fd);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 100, 3, 0), 0);
}

static void dup_and_many(void)
{
	for (int i = 0; i < 12; i++) {
		struct enclave e = load((struct spec){ .heap = 30 });
		struct call *c = i & 1 ? by_vdso(&e, 0) : by_enclu(&e, 0);
		int second = dup(e.fd);

		must(c, OP_FILL, e.heap, 30, i, 0);
		close(e.fd);
		e.fd = second;
		CHECK_EQ(must(c, OP_CHECK, e.heap, 30, i, 0), 0);
		enclave_unload(&e);
		call_free(c);
	}
}

/* ---- local attestation ---- */

static void key_for(struct call *c, const u8 *report, u8 key[16])
{
	u8 request[512] = { 0 };

	request[0] = 3;				/* REPORT key */
	memcpy(request + 40, report + 384, 32);	/* KEYID */
	CHECK_EQ(must(c, OP_KEY, (u64)request, (u64)key, 0, 0), 0);
	CHECK(!(c->asked.a[5] & 1 << 6), "ZF is set");
}

static void report(void)
{
	static u8 target[512] __attribute__((aligned(512))), data[64], made[432];
	struct enclave a = load((struct spec){ .heap = 3 }), b = load((struct spec){ .heap = 4 });
	struct call *ca = by_vdso(&a, 0), *cb = by_vdso(&b, 0);
	u64 attributes = 0;
	u8 key[16], mac[16];

	memset(data, 0x5a, sizeof data);
	memcpy(target, b.mrenclave, 32);
	memcpy(target + 32, &b.spec.attributes, 8);
	target[32] |= 1;			/* INIT */
	memcpy(target + 40, &b.spec.xfrm, 8);
	must(ca, OP_REPORT, (u64)target, (u64)data, (u64)made, 0);
	CHECK(!memcmp(made + 64, a.mrenclave, 32), "MRENCLAVE in the report is not ours");
	CHECK(!memcmp(made + 128, a.mrsigner, 32), "MRSIGNER in the report is not ours");
	CHECK(!memcmp(made + 320, data, 64), "report data");
	memcpy(&attributes, made + 48, 8);
	CHECK_EQ(attributes, a.spec.attributes | 1);
	CHECK_EQ(made[256], 7);			/* ISVPRODID */
	CHECK_EQ(made[258], 1);			/* ISVSVN */
	key_for(cb, made, key);
	aes_cmac(key, made, 384, mac);
	CHECK(!memcmp(mac, made + 416, 16), "the target cannot verify the report");
	key_for(ca, made, key);
	aes_cmac(key, made, 384, mac);
	CHECK(memcmp(mac, made + 416, 16), "a report for another enclave verifies here");
}

static void keys(void)
{
	struct enclave a = load((struct spec){ .heap = 3 }), b = load((struct spec){ .heap = 4 });
	struct call *ca = by_vdso(&a, 0), *cb = by_vdso(&b, 0);
	u8 request[512] = { 0 }, ka[16], kb[16], again[16];

	request[0] = 4;		/* SEAL */
	request[2] = 1;		/* policy MRENCLAVE */
	CHECK_EQ(must(ca, OP_KEY, (u64)request, (u64)ka, 0, 0), 0);
	CHECK_EQ(must(ca, OP_KEY, (u64)request, (u64)again, 0, 0), 0);
	CHECK_EQ(must(cb, OP_KEY, (u64)request, (u64)kb, 0, 0), 0);
	CHECK(!memcmp(ka, again, 16), "the same request gave another key");
	CHECK(memcmp(ka, kb, 16), "two enclaves share an MRENCLAVE key");
	request[2] = 2;		/* policy MRSIGNER */
	CHECK_EQ(must(ca, OP_KEY, (u64)request, (u64)ka, 0, 0), 0);
	CHECK_EQ(must(cb, OP_KEY, (u64)request, (u64)kb, 0, 0), 0);
	CHECK(!memcmp(ka, kb, 16), "one signer's enclaves do not share the MRSIGNER key");
	request[4] = 2;		/* ISVSVN above our own */
	CHECK_EQ(must(ca, OP_KEY, (u64)request, (u64)ka, 0, 0), 64);
	CHECK(ca->asked.a[5] & 1 << 6, "ZF is not set");
	request[4] = 0;
	request[0] = 1;		/* PROVISION, without the attribute */
	CHECK_EQ(must(ca, OP_KEY, (u64)request, (u64)ka, 0, 0), 2);
	request[0] = 99;
	CHECK_EQ(must(ca, OP_KEY, (u64)request, (u64)ka, 0, 0), 256);
}

/* Operands at the wrong alignment are #GP, an unknown leaf too. */
static void bad_operands(void)
{
	struct enclave e = load((struct spec){ .heap = 4, .threads = 4 });
	static const u64 bad[][4] = {	/* leaf, offsets of RBX, RCX, RDX in the heap */
		{ 0, 256, 1024, 2048 }, { 0, 512, 1024 + 64, 2048 }, { 1, 256, 1024, 0 }, { 5, 32, 4096, 0 }, { 77, 0, 0, 0 },
	};

	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct call *c = by_vdso(&e, 0);
		int error = ask(c, NULL, OP_ENCLU, bad[i][0], e.heap + bad[i][1], e.heap + bad[i][2], e.heap + bad[i][3]);

		CHECK(error == -EFAULT && c->result.vector == 13, "leaf %lu, case %u: returned %d, vector %u", bad[i][0], i,
		      error, c->result.vector);
		call_unwind(&e, c, 0, 0);
		call_free(c);
	}
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "cpuid", cpuid },
		{ "enter_vdso", enter_vdso },
		{ "enter_bare", enter_bare },
		{ "heap", heap },
		{ "untouched_heap_is_zero", untouched_heap_is_zero },
		{ "two_enclaves", two_enclaves },
		{ "threads", threads },
		{ "busy_tcs_is_gp", busy_tcs_is_gp },
		{ "not_a_tcs", not_a_tcs },
		{ "nested_entry", nested_entry },
		{ "nested_entry_needs_a_frame", nested_entry_needs_a_frame },
		{ "fork_shares", fork_shares },
		{ "child_outlives_parent", child_outlives_parent },
		{ "exec_with_an_enclave", exec_with_an_enclave },
		{ "close_while_mapped", close_while_mapped },
		{ "dup_and_many", dup_and_many },
		{ "report", report },
		{ "keys", keys },
		{ "bad_operands", bad_operands },
	};

	self = argv[0];
	return RUN(argc, argv, tests);
}
