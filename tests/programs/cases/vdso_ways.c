/* Both ways of looking __vdso_sgx_enter_enclave up by hand lead to the same working function, and the
 * vDSO's other functions still work. */
#include <time.h>
#include "check.h"

static void enter_by(void *function)
{
	struct enclave e = load((struct spec){ .heap = 2 });

	CHECK(function, "the symbol was not found");
	for (int i = 0; i < 20; i++)
		CHECK_EQ(must(call_new(e.tcs[0], function), OP_NOP, 0, 0, 0, 0), 0);
}

static void by_dynamic(void)
{
	enter_by(vdso_by_dynamic());
}

static void by_sections(void)
{
	enter_by(vdso_by_sections());
}

static void same_function(void)
{
	CHECK(vdso_by_dynamic() && vdso_by_dynamic() == vdso_by_sections(), "%p by PT_DYNAMIC, %p by sections",
	      vdso_by_dynamic(), vdso_by_sections());
}

static void clock_still_works(void)
{
	struct timespec a, b;

	CHECK(!clock_gettime(CLOCK_MONOTONIC, &a), "clock_gettime");
	usleep(1000);
	CHECK(!clock_gettime(CLOCK_MONOTONIC, &b), "clock_gettime");
	CHECK(b.tv_sec > a.tv_sec || b.tv_nsec > a.tv_nsec, "the clock stands still");
}

/* The function checks its arguments itself. */
static void bad_arguments(void)
{
	struct enclave e = load((struct spec){ 0 });
	struct call *c = by_vdso(&e, 0);

	CHECK_EQ(call_enter(c, 4), -22);	/* EEXIT is no way in */
	CHECK_EQ(call_enter(c, 77), -22);
	CHECK_EQ(must(c, OP_NOP, 0, 0, 0, 0), 0);
}

/* ERESUME of a TCS with nothing to resume is #GP. */
static void nothing_to_resume(void)
{
	struct enclave e = load((struct spec){ 0 });
	struct call *c = by_vdso(&e, 0);

	CHECK_EQ(call_enter(c, ERESUME), EXCEPTION);
	CHECK_EQ(c->result.vector, 13);
	CHECK_EQ(c->result.function, ERESUME);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "by_dynamic", by_dynamic },	    { "by_sections", by_sections },
		{ "same_function", same_function }, { "clock_still_works", clock_still_works },
		{ "bad_arguments", bad_arguments }, { "nothing_to_resume", nothing_to_resume },
	};

	return RUN(argc, argv, tests);
}
