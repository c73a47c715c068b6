/* The case runner, and what cases share. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include "check.h"

#define LIMIT_SECONDS 100
enum { FAILED = 1, SKIPPED = 77 };

static const char *running;

void fail(const char *file, int line, const char *format, ...)
{
	char text[600];
	const char *base = strrchr(file, '/');
	va_list list;

	va_start(list, format);
	vsnprintf(text, sizeof text, format, list);
	va_end(list);
	printf("not ok %s: %s:%d: %s\n", running, base ? base + 1 : file, line, text);
	fflush(stdout);
	_exit(FAILED);
}

void skip(const char *why)
{
	printf("ok %s # skip: %s\n", running, why);
	fflush(stdout);
	_exit(SKIPPED);
}

/* A hang must not take the other cases with it. */
static int wait_for(pid_t child, int *status)
{
	for (int i = 0; i < LIMIT_SECONDS * 100; i++) {
		if (waitpid(child, status, WNOHANG) == child)
			return 0;
		nanosleep(&(struct timespec){ 0, 10 * 1000 * 1000 }, NULL);
	}
	kill(child, SIGKILL);
	waitpid(child, status, 0);
	return -1;
}

static int run_one(const struct test *t)
{
	pid_t child;
	int status;

	running = t->name;
	fflush(stdout);
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		t->run();
		fflush(stdout);
		_exit(0);
	}
	if (child < 0 || wait_for(child, &status)) {
		printf("not ok %s: hung for %d s\n", t->name, LIMIT_SECONDS);
		return FAILED;
	}
	if (WIFSIGNALED(status))
		printf("not ok %s: killed by signal %d (%s)\n", t->name, WTERMSIG(status), strsignal(WTERMSIG(status)));
	else if (WEXITSTATUS(status) == 0)
		printf("ok %s\n", t->name);
	else if (WEXITSTATUS(status) == SKIPPED)
		return 0;
	else if (WEXITSTATUS(status) != FAILED)
		printf("not ok %s: exit status %d\n", t->name, WEXITSTATUS(status));
	return status ? FAILED : 0;
}

int run_tests(int argc, char **argv, const struct test *tests, size_t n)
{
	int bad = 0;

	for (size_t i = 0; i < n; i++) {
		int wanted = argc < 2;

		for (int a = 1; a < argc; a++)
			wanted |= !strcmp(argv[a], tests[i].name);
		if (wanted)
			bad |= run_one(&tests[i]);
		fflush(stdout);
	}
	return bad;
}

struct enclave load(struct spec spec)
{
	struct enclave e;

	if (enclave_load(&e, spec))
		fail(__FILE__, __LINE__, "loading the enclave: %s: %s", e.step, strerror(e.error));
	return e;
}

struct call *by_vdso(const struct enclave *e, unsigned thread)
{
	static void *function;

	if (!function)
		function = vdso_by_dynamic();
	CHECK(function, "no __vdso_sgx_enter_enclave");
	return call_new(e->tcs[thread], function);
}

struct call *by_enclu(const struct enclave *e, unsigned thread)
{
	return call_new(e->tcs[thread], NULL);
}

/* ---- signals ---- */

static __thread sigjmp_buf back;
static __thread struct caught *record;

static void catch(int signal, siginfo_t *info, void *context)
{
	const ucontext_t *u = context;
	const greg_t *g = u->uc_mcontext.gregs;
	const struct _libc_fpstate *f = u->uc_mcontext.fpregs;
	struct caught *c = record;

	if (!c) {	/* not ours to catch: die of it */
		struct sigaction normal = { .sa_handler = SIG_DFL };

		sigaction(signal, &normal, NULL);
		return;
	}
	memset(c, 0, sizeof *c);
	c->signal = signal;
	c->code = info->si_code;
	c->address = (u64)info->si_addr;
	c->trap = g[REG_TRAPNO];
	c->error = g[REG_ERR];
	c->rip = g[REG_RIP], c->rax = g[REG_RAX], c->rbx = g[REG_RBX], c->rcx = g[REG_RCX], c->rdx = g[REG_RDX];
	c->rsi = g[REG_RSI], c->rdi = g[REG_RDI], c->rsp = g[REG_RSP], c->rbp = g[REG_RBP];
	c->r8_15 = g[REG_R8] | g[REG_R9] | g[REG_R10] | g[REG_R11] | g[REG_R12] | g[REG_R13] | g[REG_R14] | g[REG_R15];
	for (int i = 0; i < 16; i++)
		for (int word = 0; word < 4; word++)
			c->xmm |= f->_xmm[i].element[word];
	c->mxcsr = f->mxcsr;
	c->fcw = f->cwd;
	siglongjmp(back, 1);
}

int guarded(struct call *c, u64 leaf, struct caught *caught)
{
	static const int signals[] = { SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGBUS };

	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
		handle(signals[i], catch, SA_NODEFER);
		unblock(signals[i]);
	}
	caught->signal = 0;
	record = caught;
	if (!sigsetjmp(back, 1))
		call_enter(c, leaf);
	record = NULL;
	return caught->signal;
}

int guarded_ask(struct call *c, struct caught *caught, u64 op, u64 a0, u64 a1, u64 a2, u64 a3)
{
	c->asked = (struct request){ .op = op, .a = { a0, a1, a2, a3 }, .result = ~0UL };
	return guarded(c, EENTER, caught);
}

void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags };

	sigemptyset(&action.sa_mask);
	CHECK(!sigaction(signal, &action, NULL), "sigaction");
}

static void change(int how, int signal)
{
	sigset_t set;

	if (signal) {
		sigemptyset(&set);
		sigaddset(&set, signal);
	} else {
		sigfillset(&set);
	}
	CHECK(!pthread_sigmask(how, &set, NULL), "sigmask");
}

void block(int signal)
{
	change(SIG_BLOCK, signal);
}

void unblock(int signal)
{
	change(SIG_UNBLOCK, signal);
}

int is_blocked(int signal)
{
	sigset_t now;

	CHECK(!pthread_sigmask(SIG_BLOCK, NULL, &now), "sigmask");
	return sigismember(&now, signal);
}

u64 host_ud2(void)
{
	u64 after = 0;

	asm volatile("ud2\n\tmov $1, %0" : "=r"(after) : "0"(after) : "memory");
	return after;
}

static void set_timer(long microseconds)
{
	struct itimerval every = { { 0, microseconds }, { 0, microseconds } };

	CHECK(!setitimer(ITIMER_REAL, &every, NULL), "setitimer");
}

void start_timer(long microseconds)
{
	set_timer(microseconds);
}

void stop_timer(void)
{
	set_timer(0);
}
