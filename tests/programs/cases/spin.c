/* `spin WHAT [SECONDS]`: surprise an enclave by WHAT, then compute in it for SECONDS (5) of the thread's own time,
 * however busy the machine is, without leaving.
 *
 * ud2: an instruction that is #UD (stepped over by a nested entry, then resumed);
 * gp: an ENCLU leaf that is #GP; leaf: an EGETKEY that ends with an error; nothing. */
#include <pthread.h>
#include <time.h>
#include "check.h"

static volatile u64 count, stop;
static double seconds = 5;

static void *stopper(void *spinner)
{
	struct timespec used;
	clockid_t clock;

	CHECK(!pthread_getcpuclockid(*(pthread_t *)spinner, &clock), "pthread_getcpuclockid");
	do {
		usleep(20000);
		CHECK(!clock_gettime(clock, &used), "clock_gettime");
	} while (used.tv_sec + used.tv_nsec * 1e-9 < seconds);
	stop = 1;
	return NULL;
}

int main(int argc, char **argv)
{
	struct enclave e = load((struct spec){ .heap = 4, .threads = 2 });
	struct call *c = by_vdso(&e, 0), *nested = by_vdso(&e, 0);
	const char *what = argc > 1 ? argv[1] : "nothing";
	u8 request[512] = { [0] = 99 }, key[16];
	pthread_t thread, self = pthread_self();

	if (argc > 2)
		seconds = atof(argv[2]);
	pthread_create(&thread, NULL, stopper, &self);
	if (!strcmp(what, "ud2")) {
		u64 rip = gprsgx_address(&e, 0, 0) + SSA_RIP;

		EXPECT_FAULT(c, ask(c, NULL, OP_RAISE, RAISE_UD2, 0, 0, 0), 6, 0, 0);
		must(nested, OP_PUT, rip, must(nested, OP_GET, rip, 0, 0, 0) + 2, 0, 0);
		CHECK_EQ(call_enter(c, ERESUME), 0);
	} else if (!strcmp(what, "gp")) {
		CHECK_EQ(ask(c, NULL, OP_ENCLU, 77, 0, 0, 0), EXCEPTION);
		CHECK_EQ(c->result.vector, 13);
		call_unwind(&e, c, 0, 0);
		c = by_vdso(&e, 0);
	} else if (!strcmp(what, "leaf")) {
		CHECK_EQ(must(c, OP_KEY, (u64)request, (u64)key, 0, 0), 256);
	}
	must(c, OP_SPIN, (u64)&count, (u64)&stop, 0, 0);
	printf("counted %s\n", count ? "something" : "nothing");
	return 0;
}
