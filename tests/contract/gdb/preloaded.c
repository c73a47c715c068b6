/* Loaded into gdb: makes it see an enclave's own registers, as sgx-gdb of library OSes does. Of one thread only.
 *
 * Where a stopped thread is at the AEP, its registers are those in the enclave's last SSA frame, which is found by
 * the TCS; a step begins at the program's ERESUME; a breakpoint leaves RIP at the INT3, not behind it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
#include "inside.h"

static struct info info;
static int memory = -1, stepping;

static long host(long request, pid_t tid, void *address, void *data)
{
	long word, result;
	int peeks = request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER;

	errno = 0;
	result = syscall(SYS_ptrace, request, tid, address, peeks ? &word : data);
	return result < 0 || !peeks ? result : word;
}

/* Whether the program has said where its enclave is; DBGOPTIN is set when it has. */
static int known(pid_t tid)
{
	unsigned long flags = 0;
	char path[40];

	if (memory >= 0)
		return 1;
	for (unsigned i = 0; i < sizeof info / 8; i++) {
		((long *)&info)[i] = host(PTRACE_PEEKDATA, tid, (void *)(INFO + 8 * i), NULL);
		if (errno)
			return 0;
	}
	if (!info.pid)
		return 0;
	snprintf(path, sizeof path, "/proc/%d/mem", tid);
	memory = open(path, O_RDWR);
	if (pread(memory, &flags, 8, info.tcs + 8) != 8 || (flags |= 1, pwrite(memory, &flags, 8, info.tcs + 8) != 8))
		perror("DBGOPTIN");
	return 1;
}

static int inside(pid_t tid, struct user_regs_struct *outer)
{
	return known(tid) && !host(PTRACE_GETREGS, tid, NULL, outer) && outer->rip == info.aep;
}

/* Where GPRSGX of the last frame is. */
static unsigned long gprsgx(void)
{
	struct { unsigned long ossa; unsigned cssa, nssa; } tcs = { 0 };

	if (pread(memory, &tcs, sizeof tcs, info.tcs + 16) != sizeof tcs || !tcs.cssa)
		fprintf(stderr, "no frame: CSSA %u\n", tcs.cssa);
	return info.base + tcs.ossa + info.frame * tcs.cssa - 184;
}

static unsigned long long *word_of(struct user_regs_struct *r, int i)
{
	unsigned long long *words[] = { &r->rax, &r->rcx, &r->rdx, &r->rbx, &r->rsp, &r->rbp, &r->rsi, &r->rdi, &r->r8,
					&r->r9, &r->r10, &r->r11, &r->r12, &r->r13, &r->r14, &r->r15, &r->eflags, &r->rip };

	return words[i];
}

static long exchange(struct user_regs_struct *regs, int out)
{
	unsigned long words[18], at = gprsgx();

	if (pread(memory, words, sizeof words, at) != sizeof words)
		return errno = EFAULT, -1;
	for (int i = 0; i < 18; i++)
		if (out)
			words[i] = *word_of(regs, i);
		else
			*word_of(regs, i) = words[i];
	return !out || pwrite(memory, words, sizeof words, at) == sizeof words ? 0 : -1;
}

long ptrace(enum __ptrace_request request, ...)
{
	struct user_regs_struct outer, inner;
	void *address, *data;
	va_list arguments;
	pid_t tid;

	va_start(arguments, request);
	tid = va_arg(arguments, pid_t);
	address = va_arg(arguments, void *);
	data = va_arg(arguments, void *);
	va_end(arguments);
	if (request == PTRACE_TRACEME || !inside(tid, &outer))
		return host(request, tid, address, data);
	switch ((int)request) {
	case PTRACE_GETREGS:
		*(struct user_regs_struct *)data = outer;
		return exchange(data, 0);
	case PTRACE_SETREGS:
		return exchange(data, 1);
	case PTRACE_PEEKUSER:
		if ((unsigned long)address >= sizeof inner)
			break;
		inner = outer;
		exchange(&inner, 0);
		return *(long *)((char *)&inner + (unsigned long)address);
	case PTRACE_SINGLESTEP:
		outer.rip = info.resume;
		host(PTRACE_SETREGS, tid, NULL, &outer);
		stepping = 1;
	}
	return host(request, tid, address, data);
}

pid_t waitpid(pid_t pid, int *status, int options)
{
	pid_t tid = syscall(SYS_wait4, pid, status, options, NULL);
	struct user_regs_struct outer, inner;
	unsigned char code = 0;

	if (tid <= 0 || !status || !WIFSTOPPED(*status) || WSTOPSIG(*status) != SIGTRAP)
		return tid;
	if (stepping || !inside(tid, &outer)) {
		stepping = 0;
		return tid;
	}
	inner = outer;
	exchange(&inner, 0);
	if (pread(memory, &code, 1, inner.rip) == 1 && code == 0xcc) {
		inner.rip++;
		exchange(&inner, 1);
	}
	return tid;
}
