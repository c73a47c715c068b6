/* What a debugger is told, by wait4(2) and waitid(2): signals, forks, execs, exits, group stops. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include "tracing.h"

#define EVENT(status) ((status) >> 16)

/* ---- signals --------------------------------------------------------------- */

static void noted(int number)
{
	s->seen[number == SIGUSR1 ? 0 : number == SIGUSR2 ? 1 : 2]++;
}

static void raise_two(void)
{
	signal(SIGUSR1, noted);
	signal(SIGUSR2, noted);
	raise(SIGUSR1);
	raise(SIGUSR1);
	raise(SIGUSR1);
}

static void signals_come_to_the_debugger_first(void)
{
	siginfo_t info;
	pid_t child;

	share();
	child = stopped_child(raise_two);
	ASK(PTRACE_CONT, child, 0, 0);
	CHECK_EQ(WAIT(child), STOPPED(SIGUSR1));
	CHECK_EQ(s->seen[0], 0);
	ASK(PTRACE_CONT, child, 0, SIGUSR1);
	CHECK_EQ(WAIT(child), STOPPED(SIGUSR1));
	CHECK_EQ(s->seen[0], 1);
	ASK(PTRACE_CONT, child, 0, SIGUSR2);	/* another instead */
	CHECK_EQ(WAIT(child), STOPPED(SIGUSR1));
	CHECK_EQ(s->seen[0], 1);
	CHECK_EQ(s->seen[1], 1);
	ASK(PTRACE_GETSIGINFO, child, 0, &info);
	CHECK_EQ(info.si_code, SI_TKILL);
	CHECK_EQ(try(PTRACE_CONT, child, 0, 65), -EIO);
	ASK(PTRACE_DETACH, child, 0, SIGUSR1);
	CHECK_EQ(WAIT(child), EXITED(7));
	CHECK_EQ(s->seen[0], 2);
}

static volatile int chld;
static void on_child(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	chld = info->si_code;
}

static void forever(void)
{
	while (1)
		pause();
}

/* SIGCHLD, sigsuspend and WNOHANG: how debuggers sleep. */
static void sigchld(void)
{
	sigset_t mask, none;
	int status;
	pid_t child;

	handle(SIGCHLD, on_child, 0);
	sigemptyset(&none);
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	child = stopped_child(forever);
	for (int i = 0; i < 5; i++) {
		ASK(PTRACE_CONT, child, 0, 0);
		CHECK(!kill(child, i == 4 ? SIGKILL : SIGUSR1), "kill");
		chld = 0;
		while (waitpid(-1, &status, __WALL | WNOHANG) == 0)
			sigsuspend(&none);
		if (i < 4)
			CHECK_EQ(status, STOPPED(SIGUSR1));
	}
	unblock(SIGCHLD);
	CHECK(chld, "no SIGCHLD");
	CHECK_EQ(status, SIGKILL);
}

static void on_alarm(int number)
{
	(void)number;
	s->seen[3]++;
}

/* A wait that a signal ends (EINTR), one that begins anew (SA_RESTART), with and without children of its own. */
static void interrupted_waits(void)
{
	struct sigaction action = { .sa_handler = on_alarm };
	pid_t middle, other;

	share();
	middle = fork();
	if (!middle) {
		other = fork();
		if (!other)
			while (1)
				pause();
		s->at = other;
		while (!s->stop)
			usleep(1000);
		kill(other, SIGKILL);
		_exit(0);
	}
	other = attach_to_announced();
	ASK(PTRACE_CONT, other, 0, 0);
	for (int i = 0; i < 4; i++) {
		pid_t whom = i & 1 ? other : -1;	/* not a child; any, the child that is one among them */

		action.sa_flags = i & 2 ? SA_RESTART : 0;
		sigaction(SIGALRM, &action, NULL);
		s->seen[3] = 0;
		start_timer(20000);
		if (action.sa_flags) {
			pid_t killer = fork();

			if (!killer) {
				until(&s->seen[3], 3);
				kill(other, SIGUSR1);
				_exit(0);
			}
			CHECK_EQ(WAIT(whom == -1 ? other : whom), STOPPED(SIGUSR1));
			stop_timer();
			ASK(PTRACE_CONT, other, 0, 0);
			CHECK_EQ(WAIT(killer), EXITED(0));
		} else {
			CHECK(waitpid(whom, NULL, __WALL) == -1 && errno == EINTR, "waitpid: %s", strerror(errno));
			stop_timer();
		}
	}
	s->stop = 1;
	CHECK_EQ(WAIT(other), SIGKILL);
	CHECK_EQ(WAIT(middle), EXITED(0));
}

static void waitid_tells_the_same(void)
{
	siginfo_t info;
	pid_t child = fork(), plain;

	if (!child) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGUSR1);
		_exit(7);
	}
	for (int i = 0; i < 2; i++) {
		memset(&info, 1, sizeof info);
		CHECK_EQ(waitid(P_PID, child, &info, WSTOPPED | WEXITED | (i ? 0 : WNOWAIT)), 0);
		CHECK_EQ(info.si_signo, SIGCHLD);
		CHECK_EQ(info.si_code, CLD_TRAPPED);
		CHECK_EQ(info.si_status, SIGUSR1);
		CHECK_EQ(info.si_pid, child);
	}
	info.si_signo = 5;
	CHECK_EQ(waitid(P_ALL, 0, &info, WEXITED | WNOHANG), 0);
	CHECK_EQ(info.si_signo, 0);
	plain = fork();
	if (!plain)
		_exit(3);
	CHECK_EQ(waitid(P_PGID, 0, &info, WEXITED), 0);
	CHECK_EQ(info.si_pid, plain);
	CHECK_EQ(info.si_status, 3);
	ASK(PTRACE_CONT, child, 0, SIGKILL);
	CHECK_EQ(waitid(P_ALL, 0, &info, WEXITED), 0);
	CHECK_EQ(info.si_code, CLD_KILLED);
	CHECK_EQ(info.si_pid, child);
	CHECK(waitid(P_ALL, 0, &info, WEXITED) == -1 && errno == ECHILD, "nobody is left");
}

/* ---- events ---------------------------------------------------------------- */

static void *thread(void *unused)
{
	usleep(1000);
	return unused;
}

static void have_children(void)
{
	pthread_t one;
	pid_t child = fork();
	int status;

	if (!child)
		_exit(3);
	if (waitpid(child, &status, 0) != child || status != EXITED(3))
		_exit(98);
	child = vfork();
	if (!child)
		_exit(4);
	if (waitpid(child, &status, 0) != child || status != EXITED(4))
		_exit(97);
	if (pthread_create(&one, NULL, thread, NULL) || pthread_join(one, NULL))
		_exit(96);
	execl("/bin/true", "true", NULL);
}

/* All events, each child followed: seized, or as PTRACE_ATTACH has it. */
static void follow(pid_t child, int seized)
{
	static const int expected[] = { PTRACE_EVENT_FORK, PTRACE_EVENT_VFORK, PTRACE_EVENT_VFORK_DONE,
					PTRACE_EVENT_CLONE, PTRACE_EVENT_EXEC, PTRACE_EVENT_EXIT };
	unsigned seen = 0, started = 0, wanted = 0;
	u64 message, last = 0;
	int status;

	for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
		wanted |= 1u << expected[i];
	while (1) {
		pid_t pid = waitpid(-1, &status, __WALL);
		int sig = 0;

		CHECK(pid > 0, "waitpid: %s", strerror(errno));
		if (WIFEXITED(status)) {
			if (pid == child)
				break;
			continue;
		}
		CHECK(WIFSTOPPED(status), "%d: status %#x", pid, status);
		switch (EVENT(status)) {
		case 0:
			sig = WSTOPSIG(status);
			if (sig == SIGSTOP && !seized) {
				started++;
				sig = 0;
			}
			CHECK(sig != SIGTRAP, "a bare SIGTRAP");
			break;
		case PTRACE_EVENT_STOP:
			CHECK(seized, "PTRACE_EVENT_STOP");
			started++;
			break;
		case PTRACE_EVENT_EXIT:
			ASK(PTRACE_GETEVENTMSG, pid, 0, &message);
			if (pid == child)
				CHECK_EQ(message, EXITED(0));
			seen |= 1u << PTRACE_EVENT_EXIT;
			break;
		default:
			CHECK_EQ(pid, child);
			ASK(PTRACE_GETEVENTMSG, pid, 0, &message);
			if (EVENT(status) == PTRACE_EVENT_EXEC)
				CHECK_EQ(message, child);
			else if (EVENT(status) == PTRACE_EVENT_VFORK_DONE)
				CHECK_EQ(message, last);
			else
				CHECK(message > 1 && message != last, "event %d of %ld", EVENT(status), message);
			last = message;
			seen |= 1u << EVENT(status);
		}
		ASK(PTRACE_CONT, pid, 0, sig);
	}
	CHECK_EQ(seen, wanted);
	CHECK_EQ(started, 3);
	CHECK_EQ(status, EXITED(0));
}

#define FOLLOW (PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | \
		PTRACE_O_TRACEVFORKDONE | PTRACE_O_TRACEEXIT)

static void events(void)
{
	pid_t child = stopped_child(have_children);

	ASK(PTRACE_SETOPTIONS, child, 0, FOLLOW);
	ASK(PTRACE_CONT, child, 0, 0);
	follow(child, 0);
}

static void events_of_a_seized(void)
{
	pid_t child;

	share();
	child = fork();
	if (!child) {
		while (!s->ready)
			usleep(1000);
		have_children();
		_exit(95);
	}
	CHECK_EQ(try(PTRACE_SEIZE, child, 1, 0), -EIO);
	CHECK_EQ(try(PTRACE_SEIZE, getpid(), 0, 0), -EPERM);
	CHECK_EQ(try(PTRACE_SEIZE, child, 0, PTRACE_O_TRACESECCOMP), -EIO);
	ASK(PTRACE_SEIZE, child, 0, FOLLOW);
	s->ready = 1;
	follow(child, 1);
}

/* SEIZE, INTERRUPT, a group stop that is listened to, SIGCONT. */
static void seize(void)
{
	pid_t child = counting();
	siginfo_t info;

	ASK(PTRACE_SEIZE, child, 0, 0);
	expect_running();
	for (int i = 0; i < 5; i++) {
		ASK(PTRACE_INTERRUPT, child, 0, 0);
		CHECK_EQ(WAIT(child), STOPPED_FOR(PTRACE_EVENT_STOP));
		ASK(PTRACE_GETSIGINFO, child, 0, &info);
		CHECK_EQ(info.si_code, PTRACE_EVENT_STOP << 8 | SIGTRAP);
		CHECK_EQ(waitpid(child, NULL, WNOHANG), 0);
		ASK(PTRACE_CONT, child, 0, 0);
		expect_running();
	}
	kill(child, SIGSTOP);
	CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
	ASK(PTRACE_CONT, child, 0, SIGSTOP);
	CHECK_EQ(WAIT(child), PTRACE_EVENT_STOP << 16 | STOPPED(SIGSTOP));
	ASK(PTRACE_LISTEN, child, 0, 0);
	CHECK_EQ(try(PTRACE_CONT, child, 0, 0), -ESRCH);
	kill(child, SIGCONT);
	CHECK_EQ(WAIT(child), STOPPED_FOR(PTRACE_EVENT_STOP));
	ASK(PTRACE_CONT, child, 0, 0);
	CHECK_EQ(WAIT(child), STOPPED(SIGCONT));
	ASK(PTRACE_CONT, child, 0, SIGCONT);
	expect_running();
	ASK(PTRACE_INTERRUPT, child, 0, 0);
	CHECK_EQ(WAIT(child), STOPPED_FOR(PTRACE_EVENT_STOP));
	ASK(PTRACE_DETACH, child, 0, 0);
	expect_running();
	end_counting(child);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "signals_come_to_the_debugger_first", signals_come_to_the_debugger_first },
		{ "sigchld", sigchld },
		{ "interrupted_waits", interrupted_waits },
		{ "waitid_tells_the_same", waitid_tells_the_same },
		{ "events", events },
		{ "events_of_a_seized", events_of_a_seized },
		{ "seize", seize },
	};

	return RUN(argc, argv, tests);
}
