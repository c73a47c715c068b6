/* What the programs that debug others share: requests, waits, and children to debug. Needs _GNU_SOURCE. */
#ifndef TRACING_H
#define TRACING_H

#include <errno.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include "check.h"

#define HEAP 200	/* pages: more than the machine of the test has EPC */

/* What debugger and tracee share. */
struct shared {
	volatile u64 count, stop, ready, seen[4], at, length;
	struct enclave e;
};
static struct shared *s;

static inline void *share(void)
{
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(s != MAP_FAILED, "mmap");
	return s;
}

static inline long try(int request, pid_t pid, u64 addr, u64 data)
{
	errno = 0;
	return syscall(SYS_ptrace, request, pid, addr, data) < 0 ? -errno : 0;
}

static inline void ask_for(const char *file, int line, int request, pid_t pid, u64 addr, u64 data)
{
	long error = try(request, pid, addr, data);

	if (error)
		fail(file, line, "request %#x: %s", request, strerror(-error));
}
#define ASK(request, pid, addr, data) ask_for(__FILE__, __LINE__, request, pid, (u64)(addr), (u64)(data))

/* Wait for pid; its status. */
static inline int wait_status(const char *file, int line, pid_t pid)
{
	int status = 0;
	pid_t found = waitpid(pid, &status, __WALL);

	if (found != pid && (pid != -1 || found < 0))
		fail(file, line, "waitpid(%d) returned %d: %s", pid, found, strerror(errno));
	return status;
}
#define WAIT(pid) wait_status(__FILE__, __LINE__, pid)
#define STOPPED(sig) ((sig) << 8 | 0x7f)
#define STOPPED_FOR(event) ((event) << 16 | SIGTRAP << 8 | 0x7f)
#define EXITED(code) ((code) << 8)

static inline u64 peek(pid_t pid, u64 at)
{
	u64 word = 0;

	CHECK(!try(PTRACE_PEEKDATA, pid, at, (u64)&word), "PEEKDATA at %#lx: %s", at, strerror(errno));
	return word;
}

static inline struct user_regs_struct regs_of(pid_t pid)
{
	struct user_regs_struct regs;

	ASK(PTRACE_GETREGS, pid, 0, &regs);
	return regs;
}

static inline void until(volatile u64 *word, u64 least)
{
	for (int i = 0; *word < least; i++) {
		CHECK(i < 60000, "it does not go on: %lu of %lu", *word, least);
		usleep(1000);
	}
}

/* Whether the tracee goes on counting. */
static inline void expect_running(void)
{
	until(&s->count, s->count + 3);
}

static inline void count_until_stop(volatile u64 *counter)
{
	while (!s->stop) {
		(*counter)++;
		usleep(100);
	}
}

/* Attach to the one that a child wrote into `at`, and stop it. */
static inline pid_t attach_to_announced(void)
{
	pid_t pid;

	until(&s->at, 1);
	pid = s->at;
	ASK(PTRACE_ATTACH, pid, 0, 0);
	CHECK_EQ(WAIT(pid), STOPPED(SIGSTOP));
	return pid;
}

/* A child that counts until it is told to stop, and ends with 7. */
static inline pid_t counting(void)
{
	pid_t child;

	share();
	child = fork();
	if (child)
		return child;
	count_until_stop(&s->count);
	_exit(7);
}

static inline void end_counting(pid_t child)
{
	s->stop = 1;
	CHECK_EQ(WAIT(child), EXITED(7));
}

/* A child that is traced and has stopped itself. */
static inline pid_t stopped_child(void (*then)(void))
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

#endif
