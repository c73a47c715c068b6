/* A fault that the EPCM refuses, in a thread with SIGSEGV blocked: the vDSO call returns it as an
 * exception at once.  Nothing may hang, no handler may run or be lost. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>
#include "check.h"

#define PAGES 16

static struct enclave e;
static struct call *c, *second;
static volatile int runs;

static void count_only(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	runs++;
}

static void start(void)
{
	e = load((struct spec){ .threads = 2, .heap = 64, .hole = PAGES });
	c = by_vdso(&e, 0);
	second = by_vdso(&e, 1);
	handle(SIGSEGV, count_only, 0);
	block(SIGSEGV);
}

static void finish(void)
{
	struct sigaction now;

	CHECK(is_blocked(SIGSEGV), "SIGSEGV is no longer blocked");
	CHECK(!sigaction(SIGSEGV, NULL, &now) && now.sa_sigaction == count_only, "the SIGSEGV handler was replaced");
	unblock(SIGSEGV);
	CHECK_EQ(runs, 0);
}

static void accept_new(struct call *by, u64 page)
{
	CHECK_EQ(must(by, OP_ACCEPT, page, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
}

static u64 resume(struct call *call)
{
	int error = call_enter(call, ERESUME);

	CHECK(!error, "resumed: returned %d, vector %u, code %#x, address %#lx", error, call->result.vector,
	      call->result.error_code, call->result.address);
	return call->asked.result;
}

/* Touching a hole adds a PENDING page; until it is accepted every access faults. */
static void pending_read(void)
{
	start();
	for (u64 page = e.hole; page < e.hole + PAGES * PAGE; page += PAGE) {
		int error = ask(c, NULL, OP_GET, page + 8, 0, 0, 0);

		EXPECT_FAULT(c, error, 14, 0x8005, page);
		CHECK_EQ(c->result.function, ERESUME);
		accept_new(second, page);
		CHECK_EQ(resume(c), 0);
	}
	finish();
}

static void pending_write(void)
{
	start();
	for (u64 page = e.hole; page < e.hole + PAGES * PAGE; page += PAGE) {
		int error = ask(c, NULL, OP_PUT, page + 16, 77, 0, 0);

		EXPECT_FAULT(c, error, 14, 0x8007, page);
		accept_new(second, page);
		resume(c);
		CHECK_EQ(must(c, OP_GET, page + 16, 0, 0, 0), 77);
	}
	finish();
}

/* EACCEPT of a hole adds the page by itself. */
static void accept_first(void)
{
	start();
	accept_new(c, e.hole);
	must(c, OP_PUT, e.hole, 5, 0, 0);
	CHECK_EQ(must(c, OP_GET, e.hole, 0, 0, 0), 5);
	finish();
}

static void restricted_write(void)
{
	u64 result, page;

	start();
	page = e.heap + 3 * PAGE;
	must(c, OP_PUT, page, 1, 0, 0);
	CHECK_EQ(restrict_permissions(&e, page, PAGE, R, &result), 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_PUT, page, 2, 0, 0), 14, 0x8007, page);
	CHECK_EQ(must(second, OP_ACCEPT, page, R | TYPE_REG << 8 | SECINFO_PR, 0, 0), 0);
	CHECK_EQ(must(second, OP_GET, page, 0, 0, 0), 1);
	must(second, OP_EXTEND, page, R | W | TYPE_REG << 8, 0, 0);
	resume(c);
	CHECK_EQ(must(c, OP_GET, page, 0, 0, 0), 2);
	finish();
}

/* A page being trimmed is gone for the enclave, before and after its EACCEPT. */
static void trimmed(void)
{
	u64 result, page;

	start();
	page = e.heap + 5 * PAGE;
	must(c, OP_PUT, page, 1, 0, 0);
	CHECK_EQ(modify_type(&e, page, PAGE, TYPE_TRIM, &result), 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_GET, page, 0, 0, 0), 14, 0x8005, page);
	CHECK_EQ(remove_pages(&e, page, PAGE), EPERM);
	CHECK_EQ(must(second, OP_ACCEPT, page, TYPE_TRIM << 8 | SECINFO_MODIFIED, 0, 0), 0);
	EXPECT_FAULT(second, ask(second, NULL, OP_GET, page, 0, 0, 0), 14, 0x8005, page);
	CHECK_EQ(remove_pages(&e, page, PAGE), 0);
	finish();
}

/* The mapping refuses (mprotect), not the EPCM: no SGX bit in the code. */
static void mapping_refuses(void)
{
	u64 page;

	start();
	page = e.heap + 7 * PAGE;
	must(c, OP_PUT, page, 1, 0, 0);
	CHECK(!mprotect((void *)page, PAGE, PROT_READ), "mprotect");
	EXPECT_FAULT(c, ask(c, NULL, OP_PUT, page, 2, 0, 0), 14, 7, page);
	CHECK_EQ(must(second, OP_GET, page, 0, 0, 0), 1);
	CHECK(!mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE), "mprotect");
	resume(c);
	CHECK_EQ(must(c, OP_GET, page, 0, 0, 0), 2);
	finish();
}

/* An address nobody mapped, inside and outside of ELRANGE. */
static void unmapped(void)
{
	u64 page;

	start();
	page = e.heap + 9 * PAGE;
	must(c, OP_PUT, page, 1, 0, 0);
	munmap((void *)page, PAGE);
	EXPECT_FAULT(c, ask(c, NULL, OP_PUT, page, 2, 0, 0), 14, 6, page);
	EXPECT_FAULT(second, ask(second, NULL, OP_GET, 0x2000, 0, 0, 0), 14, 4, 0x2000);
	finish();
}

static u64 hole_page(unsigned thread, unsigned i)
{
	return e.hole + (thread * 100 + i) * PAGE;
}

static void *fault_often(void *argument)
{
	unsigned thread = (u64)argument;
	struct call *faulting = by_vdso(&e, thread), *nested = by_vdso(&e, thread);

	block(0);
	for (unsigned i = 0; i < 100; i++) {
		u64 page = hole_page(thread, i);

		EXPECT_FAULT(faulting, ask(faulting, NULL, OP_PUT, page, i, 0, 0), 14, 0x8007, page);
		accept_new(nested, page);		/* at CSSA 1 of the same TCS */
		CHECK_EQ(nested->asked.result, 0);
		resume(faulting);
		CHECK_EQ(must(faulting, OP_GET, page, 0, 0, 0), i);
	}
	return NULL;
}

static void threads_all_blocked(void)
{
	pthread_t id[3];

	e = load((struct spec){ .threads = 3, .heap = 64, .hole = 300 });
	for (u64 i = 0; i < 3; i++)
		CHECK(!pthread_create(&id[i], NULL, fault_often, (void *)i), "pthread_create");
	for (int i = 0; i < 3; i++)
		pthread_join(id[i], NULL);
}

/* ---- without the vDSO: a signal at the AEP ---- */

static struct call *nested;
static volatile u64 where, code, at_aep;

static void accept_in_handler(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	runs++;
	where = (u64)info->si_addr;
	code = info->si_code;
	at_aep = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] == (long)bare_aep;
	accept_new(nested, where & -PAGE);
}

static void signal_at_the_aep(void)
{
	struct call *bare;

	start();
	bare = by_enclu(&e, 0);
	nested = by_enclu(&e, 0);
	handle(SIGSEGV, accept_in_handler, 0);
	unblock(SIGSEGV);
	must(bare, OP_PUT, e.hole + 3 * PAGE + 40, 9, 0, 0);
	CHECK_EQ(runs, 1);
	CHECK_EQ(where & -PAGE, e.hole + 3 * PAGE);
	CHECK(code == SEGV_ACCERR || code == SEGV_MAPERR, "si_code %ld is none of the kernel's for SIGSEGV", (long)code);
	CHECK(at_aep, "the handler did not find RIP at the AEP");
	CHECK_EQ(must(bare, OP_GET, e.hole + 3 * PAGE + 40, 0, 0, 0), 9);
}

/* A SIGSEGV that somebody sends is none of this: it arrives, inside or outside. */
static void sent_signals_still_arrive(void)
{
	start();
	kill(getpid(), SIGSEGV);
	EXPECT_FAULT(c, ask(c, NULL, OP_GET, e.hole, 0, 0, 0), 14, 0x8005, e.hole);
	CHECK_EQ(runs, 0);
	unblock(SIGSEGV);
	CHECK_EQ(runs, 1);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "pending_read", pending_read },
		{ "pending_write", pending_write },
		{ "accept_first", accept_first },
		{ "restricted_write", restricted_write },
		{ "trimmed", trimmed },
		{ "mapping_refuses", mapping_refuses },
		{ "unmapped", unmapped },
		{ "threads_all_blocked", threads_all_blocked },
		{ "signal_at_the_aep", signal_at_the_aep },
		{ "sent_signals_still_arrive", sent_signals_still_arrive },
	};

	return RUN(argc, argv, tests);
}
