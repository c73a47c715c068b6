/* How a debugger lets others go on: to breakpoints, by steps, from call to call, thread by thread. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include "tracing.h"

static __attribute__((noinline)) u64 function(u64 n)
{
	__asm__ volatile("");
	return n + 1;
}

static void call_it(void)
{
	u64 n = 0;

	for (int i = 0; i < 3; i++)
		n = function(n);
	_exit(n);
}

static void breakpoints(void)
{
	pid_t child = stopped_child(call_it);
	struct user_regs_struct regs;
	u64 at = (u64)function, word = peek(child, at);
	siginfo_t info;

	ASK(PTRACE_POKETEXT, child, at, (word & ~0xffUL) | 0xcc);
	for (int i = 0; i < 3; i++) {
		ASK(PTRACE_CONT, child, 0, 0);
		CHECK_EQ(WAIT(child), STOPPED(SIGTRAP));
		ASK(PTRACE_GETSIGINFO, child, 0, &info);
		CHECK_EQ(info.si_code, SI_KERNEL);
		regs = regs_of(child);
		CHECK_EQ(regs.rip, at + 1);
		CHECK_EQ(regs.rdi, i);
		regs.rip = at;
		ASK(PTRACE_SETREGS, child, 0, &regs);
		ASK(PTRACE_POKETEXT, child, at, word);
		ASK(PTRACE_SINGLESTEP, child, 0, 0);
		CHECK_EQ(WAIT(child), STOPPED(SIGTRAP));
		CHECK(regs_of(child).rip > at && regs_of(child).rip < at + 8, "a step of %lld", regs_of(child).rip - at);
		ASK(PTRACE_POKETEXT, child, at, (word & ~0xffUL) | 0xcc);
	}
	ASK(PTRACE_CONT, child, 0, 0);
	CHECK_EQ(WAIT(child), EXITED(3));
}

static void make_calls(void)
{
	char path[] = "/dev/sgx_enclave";

	syscall(SYS_getppid);
	close(open(path, O_RDWR));
	syscall(SYS_getppid);
	_exit(0);
}

/* Each call is shown twice, those that we answer too; our own traps never are. */
static void system_calls(void)
{
	pid_t child = stopped_child(make_calls);
	u64 calls[4] = { 0 }, nr = 0;
	struct user_regs_struct regs;
	int status, opened = 0, inside = 0;

	ASK(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD);
	while (1) {
		ASK(PTRACE_SYSCALL, child, 0, 0);
		status = WAIT(child);
		if (WIFEXITED(status))
			break;
		CHECK_EQ(status, STOPPED(SIGTRAP | 0x80));
		regs = regs_of(child);
		if (inside)
			CHECK(regs.rax != (u64)-ENOSYS, "the exit of %ld shows an entry", nr);
		else
			nr = regs.orig_rax;
		inside = !inside;
		calls[0] += nr == SYS_getppid;
		if (nr == SYS_openat) {
			calls[1]++;
			opened = regs.rax;
		}
		calls[2] += nr == SYS_close;
		calls[3] += nr == SYS_exit_group;
	}
	CHECK_EQ(calls[0], 4);
	CHECK_EQ(calls[1], 2);
	CHECK_EQ(calls[2], 2);
	CHECK_EQ(calls[3], 1);
	CHECK(opened >= 0 && opened < 100, "open returned %d", opened);
	CHECK_EQ(status, EXITED(0));
}

static void step_through_calls(struct call *c)
{
	for (int i = 0; i < 2; i++)
		must(c, OP_NOP, 0, 0, 0, 0);
}

/* Single steps around an enclave: opted out, all of it is one step. CPUID, system calls and waits are steps, too. */
static void steps(void)
{
	pid_t child = fork(), status;
	struct enclave e;
	u64 rip, last = 0, count = 0, same = 0;

	if (!child) {
		struct call *c;
		u32 a = 0, b, cx = 0, d;

		e = load((struct spec){ .heap = 4 });
		c = by_vdso(&e, 0);
		for (int i = 0; i < 2; i++) {	/* the first time, symbols are looked up */
			if (i) {
				ptrace(PTRACE_TRACEME, 0, 0, 0);
				raise(SIGSTOP);
			}
			step_through_calls(c);
			__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(cx), "=d"(d));
			syscall(SYS_getppid);
			close(open("/dev/sgx_enclave", O_RDWR));
		}
		syscall(SYS_exit_group, 7);
	}
	CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
	while (1) {
		ASK(PTRACE_SINGLESTEP, child, 0, 0);
		status = WAIT(child);
		if (WIFEXITED(status))
			break;
		CHECK_EQ(status, STOPPED(SIGTRAP));
		rip = regs_of(child).rip;
		same += rip == last;
		last = rip;
		CHECK(++count < 20000, "it never ends");
	}
	CHECK_EQ(status, EXITED(7));
	CHECK(count > 200, "%ld steps", count);
	CHECK(same < count / 10, "%ld of %ld steps led nowhere", same, count);
}

/* ---- threads ----------------------------------------------------------------- */

static void *count_too(void *unused)
{
	s->at = syscall(SYS_gettid);
	count_until_stop(&s->seen[0]);
	return unused;
}

/* One thread is held, the others and we go on. */
static void one_thread_of_two(void)
{
	pid_t child, tid;
	u64 before;

	share();
	child = fork();
	if (!child) {
		pthread_t other;

		if (pthread_create(&other, NULL, count_too, NULL))
			_exit(99);
		count_until_stop(&s->count);
		pthread_join(other, NULL);
		_exit(7);
	}
	tid = attach_to_announced();
	before = s->seen[0];
	expect_running();
	CHECK_EQ(s->seen[0], before);
	ASK(PTRACE_ATTACH, child, 0, 0);
	CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
	ASK(PTRACE_CONT, tid, 0, 0);
	until(&s->seen[0], before + 3);
	ASK(PTRACE_DETACH, child, 0, 0);
	s->stop = 1;
	CHECK(!(WAIT(tid) & ~EXITED(7)), "the thread did not exit");	/* its own status, or that of all */
	CHECK_EQ(WAIT(child), EXITED(7));
}

#define WORKERS 3
#define SHARE 60	/* pages of each */

static void *fill_and_check(void *which)
{
	u64 me = (u64)which, round = 0;
	struct call *c = by_vdso(&s->e, me);
	u64 mine = s->e.heap + me * SHARE * PAGE;

	s->seen[me] = syscall(SYS_gettid);
	while (!s->stop || !round) {
		must(c, OP_FILL, mine, SHARE, ++round, 0);
		CHECK_EQ(must(c, OP_CHECK, mine, SHARE, round, 0), 0);
		s->count++;
	}
	return NULL;
}

/* Threads that page are stopped and stepped at random places, and lose nothing. */
static void among_page_faults(void)
{
	u64 random = 1;
	pid_t child;

	share();
	child = fork();
	if (!child) {
		pthread_t threads[WORKERS];

		s->e = load((struct spec){ .heap = HEAP, .threads = WORKERS });
		for (u64 i = 0; i < WORKERS; i++)
			CHECK(!pthread_create(&threads[i], NULL, fill_and_check, (void *)i), "pthread_create");
		for (int i = 0; i < WORKERS; i++)
			pthread_join(threads[i], NULL);
		_exit(7);
	}
	for (int i = 0; i < WORKERS; i++)
		until(&s->seen[i], 1);
	for (int i = 0; i < 30; i++) {
		pid_t tid = s->seen[next_random(&random) % WORKERS];
		int steps = next_random(&random) % 8, status;

		ASK(PTRACE_SEIZE, tid, 0, 0);
		ASK(PTRACE_INTERRUPT, tid, 0, 0);
		CHECK_EQ(WAIT(tid), STOPPED_FOR(PTRACE_EVENT_STOP));
		while (steps--) {
			ASK(steps & 1 ? PTRACE_SINGLESTEP : PTRACE_SYSCALL, tid, 0, 0);
			if (!(steps & 1))
				ASK(PTRACE_INTERRUPT, tid, 0, 0);	/* it may make no call for long */
			status = WAIT(tid);
			CHECK(status == STOPPED(SIGTRAP) || status == STOPPED_FOR(PTRACE_EVENT_STOP), "%#x", status);
		}
		ASK(PTRACE_DETACH, tid, 0, 0);
	}
	expect_running();
	end_counting(child);
}

static void *cross(void *unused)
{
	struct call *c = by_vdso(&s->e, 0);

	s->seen[0] = syscall(SYS_gettid);
	while (!s->stop) {
		must(c, OP_NOP, 0, 0, 0, 0);
		s->count++;
	}
	return unused;
}

/* A stop that is asked for comes before the #UD of an ENCLU that traps; nobody may see that one elsewhere. */
static void among_traps(void)
{
	pid_t child, tid;

	share();
	child = fork();
	if (!child) {
		pthread_t thread;

		s->e = load((struct spec){ .heap = 1, .threads = 1 });
		CHECK(!pthread_create(&thread, NULL, cross, NULL), "pthread_create");
		pthread_join(thread, NULL);
		_exit(7);
	}
	until(&s->seen[0], 1);
	tid = s->seen[0];
	ASK(PTRACE_SEIZE, tid, 0, 0);
	for (int i = 0; i < 400; i++) {
		u64 before = s->count;

		ASK(PTRACE_INTERRUPT, tid, 0, 0);
		CHECK_EQ(WAIT(tid), STOPPED_FOR(PTRACE_EVENT_STOP));
		ASK(PTRACE_CONT, tid, 0, 0);
		for (int k = 0; s->count == before && k < (i & 255); k++)
			__asm__ volatile("pause");
	}
	expect_running();
	end_counting(child);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "breakpoints", breakpoints },
		{ "system_calls", system_calls },
		{ "steps", steps },
		{ "one_thread_of_two", one_thread_of_two },
		{ "among_page_faults", among_page_faults },
		{ "among_traps", among_traps },
	};

	return RUN(argc, argv, tests);
}
