/* What going in and out costs, for the benchmark.  Prints ticks of the processor's clock.
 *
 *     calls entries N     N entries by the vDSO, N by bare ENCLU, N plain calls: "vdso T", "bare T", "plain T"
 *     calls leaves N      N times EACCEPT of a page that is not there yet, then N times EMODPE
 *     calls exceptions N  N times ERESUME to an instruction that raises #UD at once, and N entries as its handler,
 *                         by the vDSO, and by bare ENCLU as from a SIGILL handler, which blocks that
 *     calls switches N    how often the thread has let go of its processor in N entries: "vdso S", "bare S",
 *                         "masked S" (SIGILL blocked), "handler S" (of an exception that came before, at CSSA 1)
 *     calls code 100      the first page of the enclave, as the host sees it, in hexadecimal digits
 *     calls own 100       the same as the enclave itself sees it; with a small EPC it has been evicted before
 *
 * T is the median over 64 rounds of N / 64 (entries), or the mean (leaves).  The first line is "hz T".
 */
#define _GNU_SOURCE
#include <sys/resource.h>
#include <time.h>
#include "check.h"

#define ROUNDS 64

static u64 now(void)
{
	u32 low, high;

	asm volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}

static u64 hz(void)
{
	struct timespec a, b;
	u64 start = now(), end;

	clock_gettime(CLOCK_MONOTONIC, &a);
	usleep(50000);
	end = now();
	clock_gettime(CLOCK_MONOTONIC, &b);
	return (end - start) * 1000000000UL / ((b.tv_sec - a.tv_sec) * 1000000000UL + b.tv_nsec - a.tv_nsec);
}

static int by_size(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

int enter(struct call *c);

static __attribute__((noinline)) int plain(struct call *c)
{
	asm volatile("" : : "r"(c) : "memory");
	return 0;
}

static void entries(const char *name, int (*go)(struct call *), struct call *c, u64 n)
{
	u64 ticks[ROUNDS];

	if (c)
		must(c, OP_NOP, 0, 0, 0, 0);	/* also fills the request and the run */
	for (int round = 0; round < ROUNDS; round++) {
		u64 start = now();

		for (u64 i = 0; i < n / ROUNDS; i++)
			if (go(c))
				exit(3);
		ticks[round] = (now() - start) * 1000 / (n / ROUNDS);
	}
	qsort(ticks, ROUNDS, sizeof *ticks, by_size);
	printf("%s %lu.%03lu\n", name, ticks[ROUNDS / 2] / 1000, ticks[ROUNDS / 2] % 1000);
}

/* A stop by a tracer is such a switch, so this tells traps from no traps, on a busy machine too. */
static void switches(const char *name, struct call *c, u64 n)
{
	struct rusage before, after;

	for (int i = 0; i < 3; i++)
		must(c, OP_NOP, 0, 0, 0, 0);
	getrusage(RUSAGE_THREAD, &before);
	for (u64 i = 0; i < n; i++)
		if (enter(c))
			exit(3);
	getrusage(RUSAGE_THREAD, &after);
	printf("%s %lu\n", name, after.ru_nvcsw - before.ru_nvcsw);
}

static void leaves(struct enclave *e, struct call *c, const char *name, u64 leaf, u64 flags, u64 n)
{
	u64 ticks = must(c, OP_LEAVES, leaf, flags, e->hole, n);

	if (c->asked.a[5]) {
		printf("%s failed %lu times\n", name, (u64)c->asked.a[5]);
		exit(3);
	}
	printf("%s %lu.%03lu\n", name, ticks / n, ticks % n * 1000 / n);
}

/* Ways of an exception handler: ERESUME (and out again by the AEX), which trap; entries at CSSA 1. */
static void exceptions(struct enclave *e, u64 n)
{
	struct call *c = call_new(e->tcs[0], vdso_by_dynamic()), *handler = call_new(e->tcs[0], vdso_by_dynamic());
	u64 start;

	if (ask(c, NULL, OP_RAISE, RAISE_UD2, 0, 0, 0) != EXCEPTION)
		exit(3);
	start = now();
	for (u64 i = 0; i < n; i++)
		if (call_enter(c, ERESUME) != EXCEPTION || c->result.vector != 6)
			exit(3);
	printf("eresume %lu.000\n", (now() - start) / n);
	entries("handler", enter, handler, n);
	block(SIGILL);
	entries("masked", enter, call_new(e->tcs[0], NULL), n);
}

int main(int argc, char **argv)
{
	u64 n = argc == 3 ? strtoul(argv[2], NULL, 0) : 0;
	const char *mode = argc == 3 ? argv[1] : "";
	int walk = !strcmp(mode, "leaves");
	struct enclave e;

	if (n < ROUNDS || (!walk && strcmp(mode, "entries") && strcmp(mode, "exceptions") && strcmp(mode, "switches") &&
			   strcmp(mode, "code") && strcmp(mode, "own"))) {
		fprintf(stderr, "calls entries|leaves|exceptions|switches|code|own N: see the source\n");
		return 2;
	}
	if (enclave_load(&e, (struct spec){ .hole = walk ? n : 0, .heap = strcmp(mode, "own") ? 0 : n })) {
		printf("%s: %s\n", e.step, strerror(e.error));
		return 4;
	}
	if (!strcmp(mode, "switches")) {
		switches("vdso", call_new(e.tcs[0], vdso_by_dynamic()), n);
		switches("bare", call_new(e.tcs[0], NULL), n);
		block(SIGILL);
		switches("masked", call_new(e.tcs[0], NULL), n);
		unblock(SIGILL);
		if (ask(call_new(e.tcs[0], vdso_by_dynamic()), NULL, OP_RAISE, RAISE_UD2, 0, 0, 0) != EXCEPTION)
			exit(3);
		switches("handler", call_new(e.tcs[0], vdso_by_dynamic()), n);
		return 0;
	}
	if (!strcmp(mode, "code")) {
		for (const u8 *at = (u8 *)e.base; at < (u8 *)e.base + PAGE; at++)
			printf("%02x", *at);
		return 0;
	}
	if (!strcmp(mode, "own")) {
		static u8 page[PAGE];

		must(call_new(e.tcs[0], vdso_by_dynamic()), OP_COPY, (u64)page, e.base, PAGE, 0);
		for (u64 i = 0; i < PAGE; i++)
			printf("%02x", page[i]);
		return 0;
	}
	printf("hz %lu\n", hz());
	if (walk) {
		struct call *c = call_new(e.tcs[0], vdso_by_dynamic());

		leaves(&e, c, "eaccept", 5, SECINFO_PENDING | TYPE_REG << 8 | R | W, n);
		leaves(&e, c, "emodpe", 6, R | W | X | TYPE_REG << 8, n);
	} else if (!strcmp(mode, "exceptions")) {
		exceptions(&e, n);
	} else {
		struct call *c = call_new(e.tcs[0], vdso_by_dynamic());

		entries("vdso", enter, c, n);
		entries("bare", enter, call_new(e.tcs[0], NULL), n);
		entries("plain", plain, c, n);
	}
	return 0;
}
