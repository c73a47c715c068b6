/* A program that debugs others of its machine, as ptrace(2) has it: how it begins, and the ends of either. */
#define _GNU_SOURCE
#include "tracing.h"

static void once_more(void)
{
	if (try(PTRACE_TRACEME, 0, 0, 0) != -EPERM)
		_exit(98);
}

static void traceme(void)
{
	pid_t child = stopped_child(once_more);
	siginfo_t info;

	ASK(PTRACE_GETSIGINFO, child, 0, &info);
	CHECK_EQ(info.si_signo, SIGSTOP);
	CHECK_EQ(info.si_pid, child);
	CHECK(regs_of(child).rip, "no RIP");
	ASK(PTRACE_CONT, child, 0, 0);
	CHECK_EQ(WAIT(child), EXITED(7));
	CHECK(waitpid(-1, NULL, __WALL) == -1 && errno == ECHILD, "nobody is left");
}

/* The parent is in its wait before its child asks to be traced; the first time it has never debugged before. */
static void traceme_during_the_wait(void)
{
	for (int i = 0; i < 4; i++) {
		pid_t child = fork();

		if (!child) {
			usleep(i * 5000);
			ptrace(PTRACE_TRACEME, 0, 0, 0);
			raise(SIGSTOP);
			_exit(7);
		}
		CHECK_EQ(WAIT(i & 1 ? child : -1), STOPPED(SIGSTOP));
		ASK(PTRACE_CONT, child, 0, 0);
		CHECK_EQ(WAIT(child), EXITED(7));
	}
}

static void exec_stops(void)
{
	int status;
	pid_t child = vfork();

	if (!child) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		execl("/bin/true", "true", NULL);
		_exit(99);
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, STOPPED(SIGTRAP));
	CHECK(peek(child, regs_of(child).rip), "no code at the entry point");
	ASK(PTRACE_CONT, child, 0, 0);
	CHECK_EQ(WAIT(child), EXITED(0));
}

/* The machine itself cannot be debugged from inside. */
static void supervisor(void)
{
	char line[200];
	FILE *status = fopen("/proc/self/status", "r");
	int tracer = 0;

	while (status && !tracer && fgets(line, sizeof line, status))
		sscanf(line, "TracerPid: %d", &tracer);
	CHECK(tracer > 0, "nobody traces us");
	CHECK_EQ(try(PTRACE_ATTACH, tracer, 0, 0), -EPERM);
	CHECK_EQ(try(PTRACE_SEIZE, tracer, 0, 0), -EPERM);
}

static void attach(void)
{
	pid_t child = counting();
	u64 before;

	until(&s->count, 10);
	for (int i = 0; i < 5; i++) {
		ASK(PTRACE_ATTACH, child, 0, 0);
		CHECK_EQ(try(PTRACE_ATTACH, child, 0, 0), -EPERM);
		CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
		before = s->count;
		usleep(20000);
		CHECK_EQ(s->count, before);
		ASK(PTRACE_POKEDATA, child, &s->count, 1000);
		CHECK_EQ(s->count, 1000);
		CHECK_EQ(peek(child, (u64)&s->count), 1000);
		ASK(PTRACE_CONT, child, 0, 0);
		expect_running();
		CHECK_EQ(try(PTRACE_PEEKDATA, child, (u64)&s->count, (u64)&before), -ESRCH);
		CHECK(!kill(child, SIGSTOP), "kill");
		CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
		ASK(PTRACE_DETACH, child, 0, 0);
		expect_running();
		CHECK_EQ(try(PTRACE_CONT, child, 0, 0), -ESRCH);
	}
	end_counting(child);
}

/* A process that is nobody's child here: its end is told by us. */
static void attach_to_another_parents(void)
{
	pid_t middle, other;

	share();
	middle = fork();
	if (!middle) {
		other = fork();
		if (!other) {
			count_until_stop(&s->count);
			_exit(9);
		}
		s->at = other;
		CHECK_EQ(WAIT(other), EXITED(9));
		_exit(5);
	}
	other = attach_to_announced();
	CHECK_EQ(waitpid(other, NULL, __WALL | WNOHANG), 0);
	ASK(PTRACE_CONT, other, 0, 0);
	CHECK_EQ(waitpid(other, NULL, WNOHANG), 0);
	s->stop = 1;
	CHECK_EQ(WAIT(other), EXITED(9));
	CHECK_EQ(WAIT(middle), EXITED(5));
	CHECK(waitpid(-1, NULL, __WALL) == -1 && errno == ECHILD, "nobody is left");
}

/* ---- ends ---------------------------------------------------------------------- */

/* A debugger that is killed, in this state of its tracee; the tracee is ours to wait for. */
static pid_t debugged_by(pid_t child, int state, int options)
{
	pid_t debugger = fork();

	if (!debugger) {
		ASK(PTRACE_SEIZE, child, 0, options);
		if (state) {
			ASK(PTRACE_INTERRUPT, child, 0, 0);
			CHECK_EQ(WAIT(child), STOPPED_FOR(PTRACE_EVENT_STOP));
		}
		if (state == 2)
			for (int i = 0; i < 20; i++) {
				ASK(PTRACE_SINGLESTEP, child, 0, 0);
				CHECK(WIFSTOPPED(WAIT(child)), "it ended");
			}
		if (state == 3)
			ASK(PTRACE_SYSCALL, child, 0, 0);
		if (state == 4)
			ASK(PTRACE_SINGLESTEP, child, 0, 0);
		s->ready = 1;
		while (state > 4) {
			ASK(PTRACE_SINGLESTEP, child, 0, 0);
			CHECK(WIFSTOPPED(WAIT(child)), "it ended");
		}
		while (1)
			pause();
	}
	until(&s->ready, 1);
	s->ready = 0;
	if (state > 4)
		usleep(state * 700);
	kill(debugger, SIGKILL);
	CHECK_EQ(WAIT(debugger), SIGKILL);
	return child;
}

static void debugger_is_killed(void)
{
	pid_t child = counting();

	for (int state = 0; state < 12; state++) {	/* from 5 on: while it steps */
		debugged_by(child, state, 0);
		expect_running();
	}
	end_counting(child);
	child = counting();
	debugged_by(child, 1, PTRACE_O_EXITKILL);
	CHECK_EQ(WAIT(child), SIGKILL);
}

static void tracee_is_killed(void)
{
	pid_t child = counting();

	ASK(PTRACE_ATTACH, child, 0, 0);
	CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
	kill(child, SIGKILL);
	CHECK_EQ(WAIT(child), SIGKILL);
	child = counting();
	ASK(PTRACE_SEIZE, child, 0, PTRACE_O_TRACEEXIT);
	kill(child, SIGTERM);
	CHECK_EQ(WAIT(child), STOPPED(SIGTERM));
	ASK(PTRACE_CONT, child, 0, SIGTERM);
	CHECK_EQ(WAIT(child), STOPPED_FOR(PTRACE_EVENT_EXIT));
	ASK(PTRACE_CONT, child, 0, 0);
	CHECK_EQ(WAIT(child), SIGTERM);
}

/* A debugger of a debugger. */
static void two_deep(void)
{
	pid_t child = counting(), debugger = fork();
	int status;

	if (!debugger) {
		ASK(PTRACE_ATTACH, child, 0, 0);
		CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
		s->ready = 1;
		ASK(PTRACE_CONT, child, 0, 0);
		CHECK_EQ(WAIT(child), STOPPED(SIGUSR1));
		ASK(PTRACE_DETACH, child, 0, 0);
		_exit(3);
	}
	until(&s->ready, 1);
	ASK(PTRACE_SEIZE, debugger, 0, 0);
	expect_running();
	for (int i = 0; i < 5; i++) {
		ASK(PTRACE_INTERRUPT, debugger, 0, 0);
		CHECK_EQ(WAIT(debugger), STOPPED_FOR(PTRACE_EVENT_STOP));
		ASK(PTRACE_CONT, debugger, 0, 0);
	}
	kill(child, SIGUSR1);
	while (WIFSTOPPED(status = WAIT(debugger)))
		ASK(PTRACE_CONT, debugger, 0, WSTOPSIG(status));	/* SIGCHLD */
	CHECK_EQ(status, EXITED(3));
	end_counting(child);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "traceme", traceme },
		{ "traceme_during_the_wait", traceme_during_the_wait },
		{ "exec_stops", exec_stops },
		{ "supervisor", supervisor },
		{ "attach", attach },
		{ "attach_to_another_parents", attach_to_another_parents },
		{ "debugger_is_killed", debugger_is_killed },
		{ "tracee_is_killed", tracee_is_killed },
		{ "two_deep", two_deep },
	};

	return RUN(argc, argv, tests);
}
