/* A program's SIGILL is its own: a blocked, ignored or handled SIGILL stays exactly so, however
 * often a thread enters an enclave.  (An emulator that answers ENCLU at its #UD must not let the
 * kernel force the signal and reset the disposition.) */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include "check.h"

#define ROUNDS 300

static struct enclave e;
static volatile int runs;

static void skip_ud2(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info;
	__sync_fetch_and_add(&runs, 1);
	((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

static void count_only(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	__sync_fetch_and_add(&runs, 1);
}

static void expect_handler(void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction now;

	CHECK(!sigaction(SIGILL, NULL, &now), "sigaction");
	CHECK(now.sa_sigaction == handler, "the SIGILL handler was replaced by %p", (void *)now.sa_sigaction);
}

static void rounds(struct call *c, int n)
{
	for (int i = 0; i < n; i++)
		CHECK_EQ(must(c, OP_NOP, 0, 0, 0, 0), 0);
}

static void blocked(int signal, struct call *c)
{
	handle(SIGILL, skip_ud2, 0);
	block(signal);
	rounds(c, ROUNDS);
	CHECK(is_blocked(SIGILL), "SIGILL is no longer blocked");
	expect_handler(skip_ud2);
	CHECK_EQ(runs, 0);
	unblock(SIGILL);
	CHECK_EQ(host_ud2(), 1);
	CHECK_EQ(runs, 1);
	expect_handler(skip_ud2);
}

static void blocked_bare(void)
{
	e = load((struct spec){ 0 });
	blocked(SIGILL, by_enclu(&e, 0));
}

static void blocked_vdso(void)
{
	e = load((struct spec){ 0 });
	blocked(SIGILL, by_vdso(&e, 0));
}

static void all_blocked(void)
{
	e = load((struct spec){ 0 });
	blocked(0, by_enclu(&e, 0));
}

/* Loading an enclave with SIGILL blocked from the start, heap paging and all. */
static void blocked_before_load(void)
{
	handle(SIGILL, skip_ud2, 0);
	block(0);
	e = load((struct spec){ .heap = 200 });
	must(by_vdso(&e, 0), OP_FILL, e.heap, 200, 1, 0);
	CHECK_EQ(must(by_enclu(&e, 0), OP_CHECK, e.heap, 200, 1, 0), 0);
	expect_handler(skip_ud2);
}

static void ignored(void)
{
	struct sigaction now;

	e = load((struct spec){ 0 });
	signal(SIGILL, SIG_IGN);
	rounds(by_enclu(&e, 0), ROUNDS);
	CHECK(!sigaction(SIGILL, NULL, &now), "sigaction");
	CHECK(now.sa_handler == SIG_IGN, "SIGILL is no longer ignored");
	kill(getpid(), SIGILL);		/* and means nothing */
}

static void handled(void)
{
	e = load((struct spec){ 0 });
	handle(SIGILL, skip_ud2, 0);
	unblock(SIGILL);
	for (int i = 0; i < ROUNDS; i++) {
		CHECK_EQ(must(by_enclu(&e, 0), OP_NOP, 0, 0, 0, 0), 0);
		CHECK_EQ(host_ud2(), 1);
		CHECK_EQ(runs, i + 1);
	}
}

/* A SIGILL that somebody sent waits while it is blocked, and comes once. */
static void pending(void)
{
	sigset_t waiting;
	struct call *c;

	e = load((struct spec){ 0 });
	c = by_enclu(&e, 0);
	handle(SIGILL, skip_ud2, 0);
	block(SIGILL);
	syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGILL);
	rounds(c, 50);
	CHECK(!sigpending(&waiting) && sigismember(&waiting, SIGILL), "the pending SIGILL is gone");
	CHECK_EQ(runs, 0);
	handle(SIGILL, count_only, 0);
	unblock(SIGILL);
	CHECK_EQ(runs, 1);
}

static volatile long alarms, wrong_masks;

static void look_at_mask(int signal, siginfo_t *info, void *context)
{
	const sigset_t *before = &((ucontext_t *)context)->uc_sigmask;

	(void)signal, (void)info;
	alarms++;
	if (!sigismember(before, SIGILL) || !sigismember(before, SIGSEGV))
		wrong_masks++;
}

/* Inside it is let through, and nobody can tell: not a handler that finds the thread anywhere on its way
 * in and out, nor who sends one meanwhile. */
static void masked_on_the_way(void)
{
	struct sigaction trap;
	struct itimerval often = { { 0, 333 }, { 0, 333 } }, never = { 0 };
	struct call *calls[2];

	e = load((struct spec){ 0 });
	calls[0] = by_vdso(&e, 0);
	calls[1] = by_enclu(&e, 0);
	handle(SIGILL, count_only, 0);
	handle(SIGALRM, look_at_mask, 0);
	handle(SIGTRAP, count_only, 0);	/* blocked too, if all is */
	block(SIGILL);
	block(SIGSEGV);
	unblock(SIGALRM);
	CHECK(!setitimer(ITIMER_REAL, &often, NULL), "setitimer");
	for (int i = 0; alarms < 300; i++) {
		if (i == 200)
			syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGILL);
		rounds(calls[i & 1], 50);
		CHECK(is_blocked(SIGILL) && is_blocked(SIGSEGV), "no longer blocked");
	}
	CHECK(!setitimer(ITIMER_REAL, &never, NULL), "setitimer");
	CHECK_EQ(wrong_masks, 0);
	CHECK_EQ(runs, 0);
	expect_handler(count_only);
	CHECK(!sigaction(SIGTRAP, NULL, &trap) && trap.sa_sigaction == count_only, "the SIGTRAP handler is gone");
	syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGILL);
	unblock(SIGILL);
	CHECK_EQ(runs, 1);
}

/* ---- from inside a SIGILL handler ---- */

static __thread struct call *mine;
static __thread volatile int entered;

static void enter_in_handler(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info;
	if (must(mine, OP_NOP, 0, 0, 0, 0) == 0)
		entered++;
	((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

static void *often(void *argument)
{
	mine = argument;
	entered = 0;
	unblock(SIGILL);
	for (int i = 0; i < 300; i++) {
		CHECK_EQ(host_ud2(), 1);
		CHECK_EQ(entered, i + 1);
		CHECK(!is_blocked(SIGILL), "SIGILL stayed blocked after round %d", i);
	}
	return NULL;
}

static void in_handler(void)
{
	e = load((struct spec){ 0 });
	handle(SIGILL, enter_in_handler, 0);
	often(by_enclu(&e, 0));
	expect_handler(enter_in_handler);
}

static void in_handler_all_blocked(void)
{
	struct sigaction action = { .sa_sigaction = enter_in_handler, .sa_flags = SA_SIGINFO };

	e = load((struct spec){ 0 });
	sigfillset(&action.sa_mask);
	CHECK(!sigaction(SIGILL, &action, NULL), "sigaction");
	often(by_vdso(&e, 0));
	expect_handler(enter_in_handler);
}

static void in_handler_four_threads(void)
{
	pthread_t id[4];

	e = load((struct spec){ .threads = 4 });
	handle(SIGILL, enter_in_handler, 0);
	for (unsigned i = 0; i < 4; i++)
		CHECK(!pthread_create(&id[i], NULL, often, i & 1 ? by_vdso(&e, i) : by_enclu(&e, i)), "pthread_create");
	for (int i = 0; i < 4; i++)
		pthread_join(id[i], NULL);
	expect_handler(enter_in_handler);
}

/* ---- changes of the disposition while another thread enters ---- */

static volatile int stop;

static void *enter_blocked(void *argument)
{
	block(SIGILL);
	while (!stop)
		rounds(argument, 10);
	return NULL;
}

static void disposition_race(void)
{
	void (*handlers[2])(int, siginfo_t *, void *) = { skip_ud2, count_only };
	pthread_t id[2];

	e = load((struct spec){ .threads = 2 });
	handle(SIGILL, handlers[0], 0);
	for (unsigned i = 0; i < 2; i++)
		CHECK(!pthread_create(&id[i], NULL, enter_blocked, by_enclu(&e, i)), "pthread_create");
	for (int i = 0; i < 2000; i++) {
		struct sigaction next = { .sa_sigaction = handlers[(i + 1) % 2], .sa_flags = SA_SIGINFO }, old;

		CHECK(!sigaction(SIGILL, &next, &old), "sigaction");
		CHECK(old.sa_sigaction == handlers[i % 2], "round %d: the old handler was %p", i, (void *)old.sa_sigaction);
	}
	stop = 1;
	for (int i = 0; i < 2; i++)
		pthread_join(id[i], NULL);
	expect_handler(skip_ud2);
}

/* Without a handler, an invalid instruction outside kills, as ever. */
static void real_sigill_kills(void)
{
	siginfo_t info;
	pid_t child;

	e = load((struct spec){ 0 });
	rounds(by_enclu(&e, 0), 5);
	child = fork();
	if (child == 0) {
		unblock(SIGILL);
		rounds(by_enclu(&e, 0), 5);
		host_ud2();
		_exit(0);
	}
	CHECK(!waitid(P_PID, child, &info, WEXITED), "waitid");
	CHECK(info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED, "si_code %d", info.si_code);
	CHECK_EQ(info.si_status, SIGILL);
}

/* Exceptions inside that nobody handles kill, as the kernel forces them: also who blocks or ignores the signal. */
static void exceptions_kill(void)
{
	static const struct { enum raise raise; int signal; } all[] = {
		{ RAISE_UD2, SIGILL }, { RAISE_DIV0, SIGFPE }, { RAISE_HLT, SIGSEGV }, { RAISE_INT3, SIGTRAP },
	};
	enum { DEFAULT, IGNORED, BLOCKED, WAYS };

	for (int i = 0; i < 4 * WAYS; i++) {
		int signal_ = all[i / WAYS].signal, way = i % WAYS, status;
		pid_t child = fork();

		if (!child) {
			setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
			alarm(20);
			e = load((struct spec){ 0 });
			if (way == IGNORED)
				signal(signal_, SIG_IGN);
			if (way == BLOCKED)
				block(signal_);
			ask(by_enclu(&e, 0), NULL, OP_RAISE, all[i / WAYS].raise, 0, 0, 0);
			_exit(99);
		}
		CHECK_EQ(waitpid(child, &status, 0), child);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == signal_, "signal %d, way %d: status %#x", signal_, way,
		      status);
	}
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "blocked_bare", blocked_bare },
		{ "blocked_vdso", blocked_vdso },
		{ "all_blocked", all_blocked },
		{ "blocked_before_load", blocked_before_load },
		{ "ignored", ignored },
		{ "handled", handled },
		{ "pending", pending },
		{ "masked_on_the_way", masked_on_the_way },
		{ "in_handler", in_handler },
		{ "in_handler_all_blocked", in_handler_all_blocked },
		{ "in_handler_four_threads", in_handler_four_threads },
		{ "disposition_race", disposition_race },
		{ "real_sigill_kills", real_sigill_kills },
		{ "exceptions_kill", exceptions_kill },
	};

	return RUN(argc, argv, tests);
}
