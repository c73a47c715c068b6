/* A program that debugs others of its machine: ptrace(2), wait4(2), waitid(2) as a debugger uses them. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include "check.h"

#define HEAP 200	/* pages: more than the machine of the test has EPC */
#define TCS_FLAGS 8
#define DBGOPTIN 1
#define EVENT(status) ((status) >> 16)

/* What debugger and tracee share. */
struct shared {
	volatile u64 count, stop, ready, seen[4], at, length;
	struct enclave e;
};
static struct shared *s;

static void *share(void)
{
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(s != MAP_FAILED, "mmap");
	return s;
}

static long try(int request, pid_t pid, u64 addr, u64 data)
{
	errno = 0;
	return syscall(SYS_ptrace, request, pid, addr, data) < 0 ? -errno : 0;
}

static void ask_for(int line, int request, pid_t pid, u64 addr, u64 data)
{
	long error = try(request, pid, addr, data);

	if (error)
		fail(__FILE__, line, "request %#x: %s", request, strerror(-error));
}
#define ASK(request, pid, addr, data) ask_for(__LINE__, request, pid, (u64)(addr), (u64)(data))

/* Wait for pid; its status. */
static int wait_status(int line, pid_t pid)
{
	int status = 0;
	pid_t found = waitpid(pid, &status, __WALL);

	if (found != pid && (pid != -1 || found < 0))
		fail(__FILE__, line, "waitpid(%d) returned %d: %s", pid, found, strerror(errno));
	return status;
}
#define WAIT(pid) wait_status(__LINE__, pid)
#define STOPPED(sig) ((sig) << 8 | 0x7f)
#define STOPPED_FOR(event) ((event) << 16 | SIGTRAP << 8 | 0x7f)
#define EXITED(code) ((code) << 8)

static u64 peek(pid_t pid, u64 at)
{
	u64 word = 0;

	CHECK(!try(PTRACE_PEEKDATA, pid, at, (u64)&word), "PEEKDATA at %#lx: %s", at, strerror(errno));
	return word;
}

static struct user_regs_struct regs_of(pid_t pid)
{
	struct user_regs_struct regs;

	ASK(PTRACE_GETREGS, pid, 0, &regs);
	return regs;
}

static void until(volatile u64 *word, u64 least)
{
	for (int i = 0; *word < least; i++) {
		CHECK(i < 60000, "it does not go on: %lu of %lu", *word, least);
		usleep(1000);
	}
}

/* Whether the tracee goes on counting. */
static void expect_running(void)
{
	until(&s->count, s->count + 3);
}

/* A child that counts until it is told to stop, and ends with 7. */
static pid_t counting(void)
{
	pid_t child;

	share();
	child = fork();
	if (child)
		return child;
	while (!s->stop) {
		s->count++;
		usleep(100);
	}
	_exit(7);
}

static void end_counting(pid_t child)
{
	s->stop = 1;
	CHECK_EQ(WAIT(child), EXITED(7));
}

/* A child that is traced and has stopped itself. */
static pid_t stopped_child(void (*then)(void))
{
	pid_t child = fork();

	if (!child) {
		if (ptrace(PTRACE_TRACEME, 0, 0, 0) || raise(SIGSTOP))
			_exit(99);
		then();
		_exit(7);
	}
	CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
	return child;
}

static void nothing(void)
{
}

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
			while (!s->stop) {
				s->count++;
				usleep(100);
			}
			_exit(9);
		}
		s->at = other;
		CHECK_EQ(WAIT(other), EXITED(9));
		_exit(5);
	}
	until(&s->at, 1);
	other = s->at;
	ASK(PTRACE_ATTACH, other, 0, 0);
	CHECK_EQ(WAIT(other), STOPPED(SIGSTOP));
	CHECK_EQ(waitpid(other, NULL, __WALL | WNOHANG), 0);
	ASK(PTRACE_CONT, other, 0, 0);
	CHECK_EQ(waitpid(other, NULL, WNOHANG), 0);
	s->stop = 1;
	CHECK_EQ(WAIT(other), EXITED(9));
	CHECK_EQ(WAIT(middle), EXITED(5));
	CHECK(waitpid(-1, NULL, __WALL) == -1 && errno == ECHILD, "nobody is left");
}

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
	until(&s->at, 1);
	other = s->at;
	ASK(PTRACE_ATTACH, other, 0, 0);
	CHECK_EQ(WAIT(other), STOPPED(SIGSTOP));
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

/* ---- code ------------------------------------------------------------------ */

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

static void change_it(void)
{
	s->count = 1;
	s->count = 2;
	_exit(0);
}

static void watchpoint(void)
{
	pid_t child;
	u64 status;

	share();
	child = stopped_child(change_it);
	ASK(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg[0]), &s->count);
	ASK(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg[7]), 1 | 0xd0000);	/* write, 8 bytes */
	for (int i = 1; i < 3; i++) {
		ASK(PTRACE_CONT, child, 0, 0);
		CHECK_EQ(WAIT(child), STOPPED(SIGTRAP));
		CHECK_EQ(s->count, i);
		ASK(PTRACE_PEEKUSER, child, offsetof(struct user, u_debugreg[6]), &status);
		CHECK_EQ(status & 1, 1);
	}
	ASK(PTRACE_CONT, child, 0, 0);
	CHECK_EQ(WAIT(child), EXITED(0));
}

static void registers(void)
{
	static u8 area[1 << 14], again[1 << 14];
	struct iovec whole = { area, sizeof area }, copy = { again, sizeof again };
	struct user_regs_struct regs, other;
	struct iovec general = { &other, sizeof other };
	struct user_fpregs_struct fp;
	pid_t child = stopped_child(nothing);
	u64 word, mask = 1 << (SIGUSR1 - 1), back = 0;

	regs = regs_of(child);
	ASK(PTRACE_GETREGSET, child, NT_PRSTATUS, &general);
	CHECK_EQ(general.iov_len, sizeof other);
	CHECK(!memcmp(&regs, &other, sizeof regs), "GETREGSET is not GETREGS");
	ASK(PTRACE_PEEKUSER, child, offsetof(struct user, regs.rip), &word);
	CHECK_EQ(word, regs.rip);
	ASK(PTRACE_GETREGSET, child, NT_X86_XSTATE, &whole);
	CHECK(whole.iov_len > 512 && whole.iov_len < sizeof area, "XSAVE area of %zu bytes", whole.iov_len);
	area[160] = 77;						/* xmm0 */
	ASK(PTRACE_SETREGSET, child, NT_X86_XSTATE, &whole);
	ASK(PTRACE_GETFPREGS, child, 0, &fp);
	CHECK_EQ(fp.xmm_space[0] & 0xff, 77);
	fp.xmm_space[0] = 78;
	ASK(PTRACE_SETFPREGS, child, 0, &fp);
	ASK(PTRACE_GETREGSET, child, NT_X86_XSTATE, &copy);
	CHECK_EQ(again[160], 78);
	general.iov_len = 8;
	ASK(PTRACE_GETREGSET, child, NT_PRSTATUS, &general);
	CHECK_EQ(general.iov_len, 8);
	ASK(PTRACE_SETSIGMASK, child, 8, &mask);
	ASK(PTRACE_GETSIGMASK, child, 8, &back);
	CHECK_EQ(back, mask);
	CHECK_EQ(try(PTRACE_GETREGSET, child, 0x999, (u64)&general), -EINVAL);
	CHECK_EQ(try(PTRACE_GETREGS, child, 0, 8), -EFAULT);
	CHECK_EQ(try(PTRACE_PEEKDATA, child, 8, (u64)&word), -EIO);
	CHECK_EQ(try(PTRACE_POKEDATA, child, 8, 1), -EIO);
	CHECK_EQ(try(0x42ff, child, 0, 0), -EIO);
	CHECK_EQ(try(PTRACE_SETOPTIONS, child, 0, 1 << 30), -EINVAL);
	CHECK_EQ(try(PTRACE_SYSEMU, child, 0, 0), -EIO);
	CHECK_EQ(try(PTRACE_LISTEN, child, 0, 0), -EIO);
	CHECK_EQ(try(PTRACE_INTERRUPT, child, 0, 0), -EIO);
	ASK(PTRACE_KILL, child, 0, 0);
	CHECK_EQ(WAIT(child), SIGKILL);
	CHECK_EQ(try(PTRACE_CONT, child, 0, 0), -ESRCH);
}

/* ---- more than one thread and process --------------------------------------- */

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

static void *count_too(void *unused)
{
	s->at = syscall(SYS_gettid);
	while (!s->stop) {
		s->seen[0]++;
		usleep(100);
	}
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
		while (!s->stop) {
			s->count++;
			usleep(100);
		}
		pthread_join(other, NULL);
		_exit(7);
	}
	until(&s->at, 1);
	tid = s->at;
	ASK(PTRACE_ATTACH, tid, 0, 0);
	CHECK_EQ(WAIT(tid), STOPPED(SIGSTOP));
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

/* ---- system calls ------------------------------------------------------------ */

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

/* ---- enclaves ---------------------------------------------------------------- */

static u64 attributes, tcs_flags;

static void own_an_enclave(void)
{
	struct enclave e = load((struct spec){ .heap = HEAP, .attributes = attributes, .tcs_flags = tcs_flags });
	struct call *c = by_vdso(&e, 0);

	must(c, OP_PUT, e.heap + 8, 0x1122334455667788, 0, 0);
	must(c, OP_FILL, e.heap + PAGE, HEAP - 1, 9, 0);	/* what was used before is evicted */
	s->e = e;
	s->ready = 1;
	while (!s->stop) {
		s->count++;
		must(c, OP_NOP, 0, 0, 0, 0);
		usleep(100);
	}
	s->seen[0] = must(c, OP_GET, e.heap + 8, 0, 0, 0);
	s->seen[1] = must(c, OP_GET, e.heap + 2 * PAGE, 0, 0, 0);
	_exit(7);
}

static pid_t owner(void)
{
	pid_t child;

	share();
	child = fork();
	if (!child)
		own_an_enclave();
	until(&s->ready, 1);
	return child;
}

static void enclave_memory(void)
{
	pid_t child = owner();
	u64 heap = s->e.heap;

	ASK(PTRACE_ATTACH, child, 0, 0);
	CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
	CHECK_EQ(peek(child, heap + 8), 0x1122334455667788);
	CHECK_EQ(peek(child, heap + 4), 0x5566778800000000);
	for (u64 page = 1; page < HEAP; page += 7)
		CHECK_EQ(peek(child, heap + page * PAGE + 16), pattern(9, page - 1, 2));
	CHECK_EQ(peek(child, heap + 8), 0x1122334455667788);
	ASK(PTRACE_POKEDATA, child, heap + 8, 42);
	ASK(PTRACE_POKEDATA, child, heap + 2 * PAGE - 4, 0x1111111122222222);	/* on two pages */
	CHECK_EQ(peek(child, heap + 2 * PAGE - 4), 0x1111111122222222);
	CHECK_EQ(peek(child, s->e.tcs[0] + TCS_FLAGS), 0);
	ASK(PTRACE_POKEDATA, child, s->e.tcs[0] + TCS_FLAGS, DBGOPTIN);
	CHECK_EQ(peek(child, s->e.tcs[0] + TCS_FLAGS), DBGOPTIN);
	CHECK_EQ(try(PTRACE_POKEDATA, child, s->e.tcs[0] + TCS_FLAGS, 2), -EIO);
	CHECK_EQ(try(PTRACE_POKEDATA, child, s->e.tcs[0] + 32, 2), -EIO);
	ASK(PTRACE_DETACH, child, 0, 0);
	expect_running();
	end_counting(child);
	CHECK_EQ(s->seen[0], 42);
	CHECK_EQ(s->seen[1] & 0xffffffff, 0x11111111);
}

static void production_enclave(void)
{
	pid_t child;
	u64 word;

	attributes = ATTR_MODE64;
	child = owner();
	ASK(PTRACE_ATTACH, child, 0, 0);
	CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
	CHECK_EQ(try(PTRACE_PEEKDATA, child, s->e.heap + 8, (u64)&word), -EIO);
	CHECK_EQ(try(PTRACE_POKEDATA, child, s->e.heap + 8, 1), -EIO);
	CHECK_EQ(try(PTRACE_PEEKDATA, child, s->e.tcs[0], (u64)&word), -EIO);
	ASK(PTRACE_DETACH, child, 0, 0);
	end_counting(child);
	CHECK_EQ(s->seen[0], 0x1122334455667788);
}

/* A stop inside: an asynchronous exit. Outside it stands at the AEP, about to resume; the rest is in its SSA. */
static void stop_inside(void)
{
	struct user_regs_struct regs;
	struct enclave e;
	pid_t child;

	share();
	child = fork();
	if (!child) {
		struct call *c;

		s->e = load((struct spec){ .heap = 4 });
		c = by_vdso(&s->e, 0);
		must(c, OP_NOP, 0, 0, 0, 0);
		must(c, OP_SPIN, (u64)&s->count, (u64)&s->stop, 0, 0);
		_exit(7);
	}
	until(&s->count, 1000);
	e = s->e;
	for (int i = 0; i < 6; i++) {
		if (i & 1) {
			ASK(PTRACE_SEIZE, child, 0, 0);
			ASK(PTRACE_INTERRUPT, child, 0, 0);
			CHECK_EQ(WAIT(child), STOPPED_FOR(PTRACE_EVENT_STOP));
		} else {
			ASK(PTRACE_ATTACH, child, 0, 0);
			CHECK_EQ(WAIT(child), STOPPED(SIGSTOP));
		}
		regs = regs_of(child);
		CHECK_EQ(regs.rax, ERESUME);
		CHECK_EQ(regs.rbx, e.tcs[0]);
		CHECK_EQ(regs.rip, regs.rcx);
		CHECK_EQ(peek(child, e.tcs[0] + 24) & 0xffffffff, 1);	/* CSSA */
		regs.rip = peek(child, gprsgx_address(&e, 0, 0) + SSA_RIP);
		CHECK(regs.rip >= e.base && regs.rip < e.base + e.size, "RIP in the SSA is %#llx", regs.rip);
		ASK(PTRACE_DETACH, child, 0, 0);
		until(&s->count, s->count + 1000);
	}
	end_counting(child);
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
		{ "signals_come_to_the_debugger_first", signals_come_to_the_debugger_first },
		{ "sigchld", sigchld },
		{ "interrupted_waits", interrupted_waits },
		{ "waitid_tells_the_same", waitid_tells_the_same },
		{ "breakpoints", breakpoints },
		{ "watchpoint", watchpoint },
		{ "registers", registers },
		{ "events", events },
		{ "events_of_a_seized", events_of_a_seized },
		{ "seize", seize },
		{ "one_thread_of_two", one_thread_of_two },
		{ "system_calls", system_calls },
		{ "enclave_memory", enclave_memory },
		{ "production_enclave", production_enclave },
		{ "stop_inside", stop_inside },
		{ "steps", steps },
		{ "among_page_faults", among_page_faults },
		{ "debugger_is_killed", debugger_is_killed },
		{ "tracee_is_killed", tracee_is_killed },
		{ "two_deep", two_deep },
	};

	return RUN(argc, argv, tests);
}
