/* Execute and read permissions of the EPCM: taken away they fault, given back they work, also for
 * pages that were evicted meanwhile, and for instructions that straddle two pages. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include "check.h"

#define CODE 8
#define PF_FETCH 0x8015

static struct enclave e;
static struct call *c, *second;

static void start(void)
{
	e = load((struct spec){ .threads = 2, .code = CODE, .heap = 300, .hole = 4 });
	c = by_vdso(&e, 0);
	second = by_vdso(&e, 1);
}

/* `mov $value, %eax; ret` at `address`. */
static void write_function(u64 address, u32 value)
{
	must(c, OP_PUT, address, 0xb8UL | (u64)value << 8 | 0xc3UL << 40, 0, 0);
}

static void restrict_to(u64 page, u64 permissions)
{
	u64 result;

	CHECK_EQ(restrict_permissions(&e, page, PAGE, permissions, &result), 0);
	CHECK_EQ(result, 0);
	CHECK_EQ(must(second, OP_ACCEPT, page, permissions | TYPE_REG << 8 | SECINFO_PR, 0, 0), 0);
}

static void extend(u64 page, u64 permissions)
{
	must(second, OP_EXTEND, page, permissions | TYPE_REG << 8, 0, 0);
}

static u64 resume(void)
{
	int error = call_enter(c, ERESUME);

	CHECK(!error, "resumed: returned %d, vector %u, code %#x, address %#lx", error, c->result.vector,
	      c->result.error_code, c->result.address);
	return c->asked.result;
}

/* Read all of the heap: with a small EPC everything else is evicted on the way. */
static void churn(void)
{
	for (u64 page = e.heap; page < e.heap + 300 * PAGE; page += PAGE)
		must(second, OP_PUT, page, page, 0, 0);
}

static void call_works(void)
{
	start();
	for (u64 i = 0; i < CODE; i++)
		write_function(e.code + i * PAGE, i + 100);
	for (u64 i = 0; i < CODE; i++)
		CHECK_EQ(must(c, OP_CALL, e.code + i * PAGE, 0, 0, 0), i + 100);
}

static void no_x_faults(void)
{
	start();
	write_function(e.code, 7);
	CHECK_EQ(must(c, OP_CALL, e.code, 0, 0, 0), 7);
	restrict_to(e.code, R | W);
	EXPECT_FAULT(c, ask(c, NULL, OP_CALL, e.code, 0, 0, 0), 14, PF_FETCH, e.code);
	CHECK_EQ(must(second, OP_GET, e.code, 0, 0, 0) & 0xff, 0xb8);	/* still readable */
	extend(e.code, R | W | X);
	CHECK_EQ(resume(), 7);
}

/* The ioctl alone is enough: PR is set until EACCEPT, and X is gone already. */
static void no_x_before_accept(void)
{
	u64 result;

	start();
	write_function(e.code, 7);
	CHECK_EQ(restrict_permissions(&e, e.code, PAGE, R, &result), 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_CALL, e.code, 0, 0, 0), 14, PF_FETCH, e.code);
	EXPECT_FAULT(second, ask(second, NULL, OP_PUT, e.code, 0, 0, 0), 14, 0x8007, e.code);
}

static void again_and_again(void)
{
	start();
	for (u32 i = 0; i < 20; i++) {
		u64 page = e.code + i % 3 * PAGE;

		write_function(page, i);
		CHECK_EQ(must(c, OP_CALL, page, 0, 0, 0), i);
		restrict_to(page, R | W);
		EXPECT_FAULT(c, ask(c, NULL, OP_CALL, page, 0, 0, 0), 14, PF_FETCH, page);
		extend(page, R | W | X);
		CHECK_EQ(resume(), i);
	}
}

/* Neighbours in one mapping: only the restricted page loses X. */
static void neighbours_keep_x(void)
{
	start();
	for (u64 i = 0; i < CODE; i++)
		write_function(e.code + i * PAGE, i);
	for (u64 i = 1; i < CODE; i += 2)
		restrict_to(e.code + i * PAGE, R | W);
	for (u64 i = 0; i < CODE; i += 2)
		CHECK_EQ(must(c, OP_CALL, e.code + i * PAGE, 0, 0, 0), i);
	EXPECT_FAULT(c, ask(c, NULL, OP_CALL, e.code + 3 * PAGE, 0, 0, 0), 14, PF_FETCH, e.code + 3 * PAGE);
}

static void no_r_faults(void)
{
	u64 page;

	start();
	page = e.heap + 10 * PAGE;
	must(c, OP_PUT, page, 0x1234, 0, 0);
	restrict_to(page, 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_GET, page, 0, 0, 0), 14, 0x8005, page);
	extend(page, R);
	CHECK_EQ(resume(), 0x1234);
	EXPECT_FAULT(c, ask(c, NULL, OP_PUT, page, 1, 0, 0), 14, 0x8007, page);
	extend(page, R | W);
	resume();
	CHECK_EQ(must(c, OP_GET, page, 0, 0, 0), 1);
}

static void no_r_survives_eviction(void)
{
	u64 page;

	start();
	page = e.heap + 10 * PAGE;
	must(c, OP_PUT, page, 0x1234, 0, 0);
	restrict_to(page, 0);
	for (u64 other = e.heap + 11 * PAGE; other < e.heap + 300 * PAGE; other += PAGE)
		must(second, OP_PUT, other, other, 0, 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_GET, page, 0, 0, 0), 14, 0x8005, page);
	extend(page, R);
	CHECK_EQ(resume(), 0x1234);
}

static void x_survives_eviction(void)
{
	start();
	for (u64 i = 0; i < CODE; i++) {
		write_function(e.code + i * PAGE, i);
		if (i & 1)
			restrict_to(e.code + i * PAGE, R | W);
	}
	for (int round = 0; round < 3; round++) {
		churn();
		for (u64 i = 0; i < CODE; i += 2)
			CHECK_EQ(must(c, OP_CALL, e.code + i * PAGE, 0, 0, 0), i);
	}
	EXPECT_FAULT(c, ask(c, NULL, OP_CALL, e.code + PAGE, 0, 0, 0), 14, PF_FETCH, e.code + PAGE);
	churn();
	extend(e.code + PAGE, R | W | X);
	churn();
	CHECK_EQ(resume(), 1);
}

/* `mov $imm, %eax` with its first byte on one page and the rest on the next, which has no X. */
static void straddling_instruction(void)
{
	u64 at, page;

	start();
	page = e.code + 2 * PAGE;
	at = page - 1;
	must(c, OP_COPY, at, (u64)"\xb8\x2a\x00\x00\x00\xc3", 6, 0);
	CHECK_EQ(must(c, OP_CALL, at, 0, 0, 0), 42);
	restrict_to(page, R | W);
	EXPECT_FAULT(c, ask(c, NULL, OP_CALL, at, 0, 0, 0), 14, PF_FETCH, page);
	extend(page, R | W | X);
	CHECK_EQ(resume(), 42);
}

/* The same with the second page evicted: no fault is seen, it is only loaded. */
static void straddling_eviction(void)
{
	u64 at;

	start();
	at = e.code + 2 * PAGE - 2;
	must(c, OP_COPY, at, (u64)"\xb8\x2b\x00\x00\x00\xc3", 6, 0);
	for (int round = 0; round < 3; round++) {
		churn();
		must(second, OP_GET, e.code + PAGE, 0, 0, 0);
		CHECK_EQ(must(c, OP_CALL, at, 0, 0, 0), 43);
	}
}

/* A page added after INIT is R W; it runs only after EMODPE. */
static void added_page(void)
{
	start();
	CHECK_EQ(must(c, OP_ACCEPT, e.hole, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
	write_function(e.hole, 11);
	EXPECT_FAULT(c, ask(c, NULL, OP_CALL, e.hole, 0, 0, 0), 14, PF_FETCH, e.hole);
	extend(e.hole, R | W | X);
	CHECK_EQ(resume(), 11);
}

static void executing_a_hole(void)
{
	start();
	EXPECT_FAULT(c, ask(c, NULL, OP_CALL, e.hole + PAGE, 0, 0, 0), 14, PF_FETCH, e.hole + PAGE);
	CHECK_EQ(must(second, OP_ACCEPT, e.hole + PAGE, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
}

/* A page whose mapping lacks PROT_EXEC faults without the SGX bit. */
static void mapping_without_exec(void)
{
	start();
	write_function(e.code, 9);
	CHECK(!mprotect((void *)e.code, PAGE, PROT_READ | PROT_WRITE), "mprotect");
	EXPECT_FAULT(c, ask(c, NULL, OP_CALL, e.code, 0, 0, 0), 14, 0x15, e.code);
	CHECK(!mprotect((void *)e.code, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC), "mprotect");
	CHECK_EQ(resume(), 9);
	CHECK_EQ(mprotect((void *)e.heap, PAGE, PROT_READ | PROT_EXEC), -1);	/* the page's maximum is R W */
	CHECK_EQ(errno, EACCES);
}

/* W without R, unknown bits, pages that are not there. */
/* X is taken from every page of the range, from those too that were evicted again before the ioctl ended. */
static void restricted_while_evicted(void)
{
	u64 pages = 250, result, from;

	e = load((struct spec){ .threads = 2, .code = pages });
	c = by_vdso(&e, 0);
	second = by_vdso(&e, 1);
	for (u64 i = 0; i < pages; i++)
		write_function(e.code + i * PAGE, i);
	for (u64 i = 0; i < pages; i += 10)
		CHECK_EQ(must(c, OP_CALL, e.code + i * PAGE, 0, 0, 0), i);
	CHECK_EQ(restrict_permissions(&e, e.code, pages * PAGE, R | W, &result), 0);
	for (from = e.code; from < e.code + pages * PAGE; from += PAGE)
		CHECK_EQ(must(second, OP_ACCEPT, from, R | W | TYPE_REG << 8 | SECINFO_PR, 0, 0), 0);
	for (u64 i = 0; i < pages; i += 7) {
		u64 page = e.code + i * PAGE;

		EXPECT_FAULT(c, ask(c, NULL, OP_CALL, page, 0, 0, 0), 14, PF_FETCH, page);
		call_unwind(&e, c, 0, 0);
	}
	CHECK_EQ(must(c, OP_GET, e.code + 5 * PAGE, 0, 0, 0) >> 8 & 0xff, 5);
}

/* A page that was executable, was removed, and came again without X is not executable any more. */
static void removed_and_added_again(void)
{
	u64 page, result;

	start();
	page = e.code + 3 * PAGE;
	write_function(page, 3);
	CHECK_EQ(must(c, OP_CALL, page, 0, 0, 0), 3);
	CHECK_EQ(modify_type(&e, page, PAGE, TYPE_TRIM, &result), 0);
	CHECK_EQ(must(second, OP_ACCEPT, page, TYPE_TRIM << 8 | SECINFO_MODIFIED, 0, 0), 0);
	CHECK_EQ(remove_pages(&e, page, PAGE), 0);
	CHECK_EQ(must(second, OP_ACCEPT, page, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
	write_function(page, 4);
	EXPECT_FAULT(c, ask(c, NULL, OP_CALL, page, 0, 0, 0), 14, PF_FETCH, page);
	extend(page, R | W | X);
	CHECK_EQ(resume(), 4);
}

static void bad_restrictions(void)
{
	u64 result;

	start();
	CHECK_EQ(restrict_permissions(&e, e.heap, PAGE, W, &result), EINVAL);
	CHECK_EQ(restrict_permissions(&e, e.heap, PAGE, 8, &result), EINVAL);
	CHECK_EQ(restrict_permissions(&e, e.heap + 1, PAGE, R, &result), EINVAL);
	CHECK_EQ(restrict_permissions(&e, e.heap, 0, R, &result), EINVAL);
	CHECK_EQ(restrict_permissions(&e, e.base + e.size, PAGE, R, &result), EINVAL);
	CHECK_EQ(restrict_permissions(&e, e.tcs[0], PAGE, R, &result), EINVAL);
	CHECK(restrict_permissions(&e, e.hole + 3 * PAGE, PAGE, R, &result), "a page that is not there was restricted");
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "call_works", call_works },
		{ "no_x_faults", no_x_faults },
		{ "no_x_before_accept", no_x_before_accept },
		{ "again_and_again", again_and_again },
		{ "neighbours_keep_x", neighbours_keep_x },
		{ "no_r_faults", no_r_faults },
		{ "no_r_survives_eviction", no_r_survives_eviction },
		{ "x_survives_eviction", x_survives_eviction },
		{ "straddling_instruction", straddling_instruction },
		{ "straddling_eviction", straddling_eviction },
		{ "added_page", added_page },
		{ "executing_a_hole", executing_a_hole },
		{ "mapping_without_exec", mapping_without_exec },
		{ "restricted_while_evicted", restricted_while_evicted },
		{ "removed_and_added_again", removed_and_added_again },
		{ "bad_restrictions", bad_restrictions },
	};

	return RUN(argc, argv, tests);
}
