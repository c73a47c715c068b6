/* What every SGX program does: load, enter, page, run threads, nest.  Also linked statically. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
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

/* The flags of every processor name SGX, once. */
static void flags_name_sgx(int fd, const char *how)
{
	static char text[1 << 20];
	u64 length = 0, flags = 0, named = 0;
	ssize_t got;

	CHECK(fd >= 0, "%s: %s", how, strerror(errno));
	while ((got = read(fd, text + length, sizeof text - 1 - length)) > 0)
		length += got;
	text[length] = 0;
	CHECK(length > 100 && !strncmp(text, "processor", 9), "%s: %lu bytes", how, length);
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
		if (!strncmp(line, "flags\t", 6)) {
			char *found = strstr(line, " sgx ");

			flags++;
			named += found && strstr(found, " sgx_lc") && !strstr(found + 1, " sgx ");
		}
	CHECK(flags && named == flags, "%s: %lu of %lu", how, named, flags);
	close(fd);
}

static void proc_cpuinfo(void)
{
	int proc = open("/proc", O_RDONLY | O_DIRECTORY);

	flags_name_sgx(open("/proc/cpuinfo", O_RDONLY), "by its name");
	flags_name_sgx(openat(proc, "cpuinfo", O_RDONLY), "as lscpu does");
	flags_name_sgx(fileno(fopen("/proc/cpuinfo", "re")), "by a stream");
	CHECK(open("/proc/cpuinfo", O_RDWR) < 0 || !geteuid(), "to be written");
	CHECK(open("/proc/cpuinfo", O_RDONLY | O_DIRECTORY) < 0 && errno == ENOTDIR, "as a directory: %s", strerror(errno));
	if (!geteuid() && !setresgid(65534, 65534, 65534) && !setresuid(65534, 65534, 65534))
		flags_name_sgx(open("/proc/cpuinfo", O_RDONLY), "with fewer rights");
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
	CHECK_EQ(error, EXCEPTION);
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
	CHECK_EQ(ask(c, NULL, OP_NOP, 0, 0, 0, 0), EXCEPTION);
	CHECK_EQ(c->result.vector, 14);
	c->tcs = e.tcs[0] + 8;
	CHECK_EQ(ask(c, NULL, OP_NOP, 0, 0, 0, 0), EXCEPTION);
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
	unblock(SIGUSR1);
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
	unblock(SIGUSR1);
	CHECK(!pthread_create(&id, NULL, spin, by_enclu(&e, 0)), "pthread_create");
	while (!count)
		usleep(1000);
	pthread_kill(id, SIGUSR1);
	while (!handled)
		usleep(1000);
	usleep(20000);
	stop = 1;
	pthread_join(id, NULL);
	CHECK_EQ(nested_error, EXCEPTION);
	CHECK_EQ(nested->result.vector, 13);
	CHECK_EQ(nested->result.function, EENTER);
	enter(by_vdso(&e, 0));
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "cpuid", cpuid },
		{ "proc_cpuinfo", proc_cpuinfo },
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
	};

	return RUN(argc, argv, tests);
}
