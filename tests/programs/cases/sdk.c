/* How Intel's SDK loads and runs an enclave: device after device tried, one page per ADD_PAGES, segments
 * mapped afterwards and protected again and again, hundreds of TCSs, an EDMM library in 8 GiB. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include "check.h"

static int probe(const char *name)
{
	u64 zeros[5] = { 0 };
	int fd = open(name, O_RDWR);
	int answer;

	if (fd < 0)
		return -errno;
	answer = ioctl(fd, SGX_RESTRICT, zeros) ? errno : 0;	/* ENOTTY would say: no SGX2 */
	close(fd);
	return answer;
}

static void start_up(void)
{
	static u8 target[512] __attribute__((aligned(512))), data[64], made[432];
	struct enclave e;
	struct call *c;
	u32 a, b, eax, d;

	for (int i = 0; i < 50; i++) {
		int enclave = probe("/dev/sgx/enclave"), isgx = probe("/dev/isgx"), old = probe("/dev/sgx");

		CHECK(enclave == EINVAL || enclave == -ENOENT, "/dev/sgx/enclave: %d", enclave);
		CHECK_EQ(probe("/dev/sgx_enclave"), EINVAL);
		CHECK_EQ(isgx, -ENOENT);
		CHECK(old < 0, "/dev/sgx: %d", old);
	}
	__cpuid_count(0x12, 0, eax, b, a, d);
	CHECK((eax & 0x803) == 0x803 && b == 1, "leaf 0x12.0: eax %#x ebx %#x", eax, b);
	__cpuid_count(0xd, 0, eax, b, a, d);
	CHECK((eax & 3) == 3, "leaf 0xd: eax %#x", eax);
	e = load((struct spec){ .heap = 400, .one_by_one = 1, .threads = 10 });
	c = call_new(e.tcs[0], vdso_by_sections());
	must(c, OP_REPORT, (u64)target, (u64)data, (u64)made, 0);
	CHECK(!memcmp(made + 64, e.mrenclave, 32), "MRENCLAVE in the report");
	must(c, OP_FILL, e.heap, 400, 1, 0);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 400, 1, 0), 0);
}

/* 248 threads are declared: each enters by its own TCS. */
static void many_tcs(void)
{
	struct enclave e = load((struct spec){ .threads = 248 });

	for (unsigned round = 0; round < 2; round++)
		for (unsigned i = 0; i < 248; i++) {
			struct call *c = by_vdso(&e, i);

			CHECK_EQ(must(c, OP_NOP, 0, 0, 0, 0), 0);
			call_free(c);
		}
}

/* 1,600 single pages get another protection, are used, and get their own back. */
static void many_mprotects(void)
{
	struct enclave e = load((struct spec){ .heap = 1600 });
	struct call *c = by_vdso(&e, 0);

	must(c, OP_FILL, e.heap, 1600, 1, 0);
	for (u64 i = 0; i < 1600; i++)
		CHECK(!mprotect((void *)(e.heap + (i * 7 % 1600) * PAGE), PAGE, i & 1 ? PROT_READ : PROT_NONE), "mprotect: %s",
		      strerror(errno));
	EXPECT_FAULT(c, ask(c, NULL, OP_PUT, e.heap + 7 * PAGE, 1, 0, 0), 14, 7, e.heap + 7 * PAGE);
	call_unwind(&e, c, 0, 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_GET, e.heap, 0, 0, 0), 14, 4, e.heap);
	for (u64 i = 0; i < 1600; i++)
		CHECK(!mprotect((void *)(e.heap + i * PAGE), PAGE, PROT_READ | PROT_WRITE), "mprotect: %s", strerror(errno));
	CHECK_EQ(call_enter(c, ERESUME), 0);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 1600, 1, 0), 0);
}

#define NEW (R | W | TYPE_REG << 8 | SECINFO_PENDING)

static void *enter_often(void *argument)
{
	for (int i = 0; i < 20; i++)
		must(argument, OP_NOP, 0, 0, 0, 0);
	return NULL;
}

/* EENTER by a TCS that is no longer one: #PF. */
static void no_way_in(u64 tcs)
{
	struct call *c = call_new(tcs, vdso_by_dynamic());

	CHECK_EQ(ask(c, NULL, OP_NOP, 0, 0, 0, 0), EXCEPTION);
	CHECK(c->result.function == EENTER && c->result.vector == 14, "leaf %u, vector %u", c->result.function,
	      c->result.vector);
	call_free(c);
}

/* Regions in 8 GiB: committed by EACCEPT or EACCEPTCOPY, protected, turned into TCSs, decommitted, again. */
static void edmm_library(void)
{
	struct enclave e = load((struct spec){ .size = 8UL << 30, .heap = 40 });
	struct call *c = by_vdso(&e, 0);
	u64 region = e.base + (5UL << 30), n = 60, result, info = e.heap;

	CHECK(mmap((void *)region, 4096 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED | MAP_FIXED, e.fd, 0) ==
	      (void *)region, "mmap: %s", strerror(errno));
	for (int round = 0; round < 3; round++) {
		for (u64 i = 0; i < n; i++) {
			if (i & 1) {
				CHECK_EQ(must(c, OP_ACCEPT, region + i * PAGE, NEW, 0, 0), 0);
				continue;
			}
			must(c, OP_PUT, info, R | X | TYPE_REG << 8, 0, 0);
			must(c, OP_PUT, e.heap + PAGE, 0xc3UL << 40 | i << 8 | 0xb8, 0, 0);
			CHECK_EQ(must(c, OP_ENCLU, 7, info, region + i * PAGE, e.heap + PAGE), 0);
		}
		for (u64 i = 0; i < n; i += 2)
			CHECK_EQ(must(c, OP_CALL, region + i * PAGE, 0, 0, 0), i);
		CHECK_EQ(modify_type(&e, region, n * PAGE, TYPE_TRIM, &result), 0);
		for (u64 i = 0; i < n; i++)
			CHECK_EQ(must(c, OP_ACCEPT, region + i * PAGE, TYPE_TRIM << 8 | SECINFO_MODIFIED, 0, 0), 0);
		CHECK_EQ(remove_pages(&e, region, n * PAGE), 0);
	}
	/* dynamic threads: stack, TCS and frames of each from new pages */
	for (u64 i = 0; i < 4; i++) {
		u64 at = region + (1 + i) * 64 * PAGE, tcs = at + STACK_PAGES * PAGE;
		pthread_t thread;

		for (u64 page = 0; page < STACK_PAGES + 3; page++)
			CHECK_EQ(must(c, OP_ACCEPT, at + page * PAGE, NEW, 0, 0), 0);
		must(c, OP_PUT, tcs + 16, tcs + PAGE - e.base, 0, 0);	/* OSSA */
		must(c, OP_PUT, tcs + 24, 2UL << 32, 0, 0);		/* NSSA */
		CHECK_EQ(modify_type(&e, tcs, PAGE, TYPE_TCS, &result), 0);
		CHECK(!mprotect((void *)tcs, PAGE, PROT_READ | PROT_WRITE), "mprotect: %s", strerror(errno));
		CHECK_EQ(must(c, OP_ACCEPT, tcs, TYPE_TCS << 8 | SECINFO_MODIFIED, 0, 0), 0);
		CHECK(!pthread_create(&thread, NULL, enter_often, call_new(tcs, vdso_by_dynamic())), "pthread_create");
		pthread_join(thread, NULL);
		CHECK_EQ(modify_type(&e, tcs, PAGE, TYPE_TRIM, &result), 0);
		no_way_in(tcs);
		CHECK_EQ(must(c, OP_ACCEPT, tcs, TYPE_TRIM << 8 | SECINFO_MODIFIED, 0, 0), 0);
		no_way_in(tcs);
		CHECK_EQ(remove_pages(&e, tcs, PAGE), 0);
		no_way_in(tcs);
	}
}

/* As the EDMM library changes permissions: EMODPR from outside, whatever the change is; EMODPE inside if
 * something is added, its SECINFO saying PR as EACCEPT's has to; mprotect, but for none not before EACCEPT. */
static void change(struct enclave *e, struct call *c, u64 page, u64 from, u64 to)
{
	u64 result, info = to | TYPE_REG << 8 | SECINFO_PR;

	CHECK_EQ(restrict_permissions(e, page, PAGE, to, &result), 0);
	if (to)
		CHECK(!mprotect((void *)page, PAGE, to), "mprotect: %s", strerror(errno));
	if (to & ~from)
		must(c, OP_EXTEND, page, info, 0, 0);
	if ((to & (W | X)) != (W | X))		/* PR stays set, then */
		CHECK_EQ(must(c, OP_ACCEPT, page, info, 0, 0), 0);
	if (!to)
		CHECK(!mprotect((void *)page, PAGE, PROT_NONE), "mprotect: %s", strerror(errno));
}

static void edmm_permissions(void)
{
	static const u64 steps[] = { R | W, R, R | W, R | X, R | W | X, 0, R, 0, R | W };
	struct enclave e = load((struct spec){ .hole = 160, .miscselect = 1 });
	struct call *c = by_vdso(&e, 0);

	for (u64 i = 0; i < 160; i++)
		CHECK_EQ(must(c, OP_ACCEPT, e.hole + i * PAGE, NEW, 0, 0), 0);
	CHECK(!mprotect((void *)e.hole, 160 * PAGE, PROT_READ | PROT_WRITE), "mprotect: %s", strerror(errno));
	for (u64 i = 0; i < 160; i++)
		must(c, OP_PUT, e.hole + i * PAGE, 0xc3UL << 40 | i << 8 | 0xb8, 0, 0);	/* mov $i, %eax; ret */
	for (size_t step = 1; step < sizeof steps / sizeof *steps; step++)
		for (u64 i = 0; i < 160; i += 2) {
			u64 page = e.hole + i * PAGE, to = steps[step];

			change(&e, c, page, steps[step - 1], to);
			if (i % 20)
				continue;
			if (to & R) {
				CHECK_EQ(must(c, OP_GET, page, 0, 0, 0) & 0xff, 0xb8);
			} else {
				EXPECT_FAULT(c, ask(c, NULL, OP_GET, page, 0, 0, 0), 14, 4, page);
				call_unwind(&e, c, 0, 0);
			}
			if (to & X)
				CHECK_EQ(must(c, OP_CALL, page, 0, 0, 0), i);
			if (to & W) {
				must(c, OP_PUT, page + 8, i, 0, 0);
			} else {
				EXPECT_FAULT(c, ask(c, NULL, OP_PUT, page + 8, 0, 0, 0), 14, to ? 7 : 6, page);
				call_unwind(&e, c, 0, 0);
			}
		}
	for (u64 i = 0; i < 160; i++)
		CHECK_EQ(must(c, OP_GET, e.hole + i * PAGE, 0, 0, 0), 0xc3UL << 40 | i << 8 | 0xb8);
}

/* Segments lie between guard pages that were only reserved, and one mprotect goes over both. It changes
 * mapping after mapping: what lies before a hole, or before pages that may not have it, stays changed. */
static void segments(void)
{
	struct enclave e = load((struct spec){ .heap = 300 });
	struct call *c = by_vdso(&e, 0);
	u8 *heap = (u8 *)e.heap, *guard = heap + 100 * PAGE;
	u64 after = e.heap + 200 * PAGE;

	must(c, OP_FILL, e.heap, 300, 1, 0);
	CHECK(mmap(guard, 100 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == guard, "mmap");
	CHECK(!mprotect(heap, 300 * PAGE, PROT_NONE), "mprotect: %s", strerror(errno));
	EXPECT_FAULT(c, ask(c, NULL, OP_GET, e.heap, 0, 0, 0), 14, 4, e.heap);
	call_unwind(&e, c, 0, 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_GET, after, 0, 0, 0), 14, 4, after);
	call_unwind(&e, c, 0, 0);
	CHECK(!mprotect(heap, 300 * PAGE, PROT_READ | PROT_WRITE), "mprotect: %s", strerror(errno));
	CHECK_EQ(must(c, OP_CHECK, e.heap, 100, 1, 0), 0);
	must(c, OP_FILL, after, 100, 2, 0);
	CHECK_EQ(must(c, OP_CHECK, after, 100, 2, 0), 0);

	munmap(guard, PAGE);
	CHECK(mprotect(heap, 300 * PAGE, PROT_READ) && errno == ENOMEM, "over a hole: %s", strerror(errno));
	CHECK_EQ(must(c, OP_CHECK, e.heap, 100, 1, 0), 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_PUT, e.heap, 1, 0, 0), 14, 7, e.heap);
	call_unwind(&e, c, 0, 0);
	must(c, OP_PUT, after, 1, 0, 0);

	CHECK(mprotect(guard + PAGE, 199 * PAGE, PROT_READ | PROT_EXEC) && errno == EACCES, "X that EADD did not give");
	must(c, OP_PUT, after, 1, 0, 0);
	CHECK_EQ(*(volatile u8 *)(guard + PAGE), 0);
	CHECK(mprotect(guard, 200 * PAGE, PROT_READ) && errno == ENOMEM, "from a hole: %s", strerror(errno));
	must(c, OP_PUT, after, 2, 0, 0);
	CHECK(!mprotect(heap, 0, PROT_NONE), "nothing: %s", strerror(errno));
	CHECK(mprotect(heap + 1, PAGE, PROT_NONE) && errno == EINVAL, "unaligned: %s", strerror(errno));
	CHECK_EQ(must(c, OP_GET, after, 0, 0, 0), 2);
}

/* EACCEPT, EMODPE and EENTER reach their page through the program's mapping: it has to permit something (EENTER
 * writes), and nothing that the page does not, as X of what is a TCS by now. */
static void reached_by_mappings(void)
{
	struct enclave e = load((struct spec){ .threads = 2, .hole = 8, .heap = 200 });
	struct call *c = by_vdso(&e, 0), *other = by_vdso(&e, 1);
	u64 page = e.hole, result;

	must(c, OP_FILL, e.heap, 200, 1, 0);
	for (int i = 0; i < 2; i++) {
		for (int n = 0; n < 5; n++)
			CHECK_EQ(must(other, OP_NOP, 0, 0, 0, 0), 0);
		CHECK(!mprotect((void *)e.tcs[1], PAGE, PROT_NONE), "mprotect: %s", strerror(errno));
		no_way_in(e.tcs[1]);
		CHECK(!mprotect((void *)e.tcs[1], PAGE, PROT_READ), "mprotect: %s", strerror(errno));
		no_way_in(e.tcs[1]);
		CHECK(!mprotect((void *)e.tcs[1], PAGE, PROT_READ | PROT_WRITE), "mprotect: %s", strerror(errno));
	}
	CHECK(!mprotect((void *)page, PAGE, PROT_NONE), "mprotect: %s", strerror(errno));
	EXPECT_FAULT(c, ask(c, NULL, OP_ACCEPT, page, NEW, 0, 0), 14, 4, page);
	CHECK(!mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC), "mprotect: %s", strerror(errno));
	CHECK_EQ(call_enter(c, ERESUME), 0);
	CHECK(!mprotect((void *)page, PAGE, PROT_NONE), "mprotect: %s", strerror(errno));
	EXPECT_FAULT(c, ask(c, NULL, OP_EXTEND, page, R | W | X | TYPE_REG << 8, 0, 0), 14, 4, page);
	CHECK(!mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC), "mprotect: %s", strerror(errno));
	CHECK_EQ(call_enter(c, ERESUME), 0);

	page += PAGE;
	CHECK_EQ(must(c, OP_ACCEPT, page, NEW, 0, 0), 0);
	must(c, OP_PUT, page + 16, page + PAGE - e.base, 0, 0);	/* OSSA */
	must(c, OP_PUT, page + 24, 2UL << 32, 0, 0);		/* NSSA */
	CHECK_EQ(modify_type(&e, page, PAGE, TYPE_TCS, &result), 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_ACCEPT, page, TYPE_TCS << 8 | SECINFO_MODIFIED, 0, 0), 14, 4, page);
	CHECK(!mprotect((void *)page, PAGE, PROT_READ), "mprotect: %s", strerror(errno));
	CHECK_EQ(call_enter(c, ERESUME), 0);
	CHECK_EQ(c->asked.result, 0);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 200, 1, 0), 0);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "start_up", start_up },
		{ "many_tcs", many_tcs },
		{ "many_mprotects", many_mprotects },
		{ "edmm_library", edmm_library },
		{ "edmm_permissions", edmm_permissions },
		{ "segments", segments },
		{ "reached_by_mappings", reached_by_mappings },
	};

	return RUN(argc, argv, tests);
}
