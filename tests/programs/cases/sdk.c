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
	EXPECT_FAULT(c, ask(c, NULL, OP_GET, e.heap, 0, 0, 0), 14, 5, e.heap);
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
		CHECK_EQ(must(c, OP_ACCEPT, tcs, TYPE_TCS << 8 | SECINFO_MODIFIED, 0, 0), 0);
		CHECK(!pthread_create(&thread, NULL, enter_often, call_new(tcs, vdso_by_dynamic())), "pthread_create");
		pthread_join(thread, NULL);
		CHECK_EQ(modify_type(&e, tcs, PAGE, TYPE_TRIM, &result), 0);
		CHECK_EQ(must(c, OP_ACCEPT, tcs, TYPE_TRIM << 8 | SECINFO_MODIFIED, 0, 0), 0);
		CHECK_EQ(remove_pages(&e, tcs, PAGE), 0);
	}
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "start_up", start_up },
		{ "many_tcs", many_tcs },
		{ "many_mprotects", many_mprotects },
		{ "edmm_library", edmm_library },
	};

	return RUN(argc, argv, tests);
}
