/* Enter, do what is asked, enter again; and what to do when a thread comes out by an exception. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include "host.h"

/* The host's half of a thread: one way in for the thread, one for its exceptions. */
struct gate {
	struct call *call, *handler;
	struct block *block;
	pthread_t thread;
	int used, status;
};

static struct gate gates[OS_THREADS];
static __thread struct gate *mine;
extern char **environ;

static void died(const struct block *b)
{
	static const char text[] = "libos: the program died inside";
	char line[200];
	int n = snprintf(line, sizeof line, "%s: vector %lu at %#lx, rax %#lx, address %#lx\n", text, b->vector, b->rip,
			 b->rax, b->address);

	if (write(2, line, n) != n)
		_exit(124);
	_exit(125);
}

/* The thread stands at the AEP, about to resume.  The handler inside sees to it that it resumes well. */
static void exception(int number, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)info;
	if (!mine || regs[REG_RIP] != (greg_t)bare_aep || regs[REG_RAX] != ERESUME) {
		signal(number, SIG_DFL);	/* the host's own */
		return;
	}
	if (call_enter(mine->handler, EENTER) || mine->block->died)
		died(mine->block);
}

static void *run_thread(void *gate);

static void begin_thread(struct gate *g)
{
	if (g->used)
		pthread_join(g->thread, NULL);	/* the last one has left this TCS */
	g->used = 1;
	errno = pthread_create(&g->thread, NULL, run_thread, g);
	if (errno) {
		perror("libos: pthread_create");
		_exit(125);
	}
}

static void cpuid(long *args)
{
	u32 a, b, c, d;

	__cpuid_count(args[0], args[1], a, b, c, d);
	args[0] = a, args[1] = b, args[2] = c, args[3] = d;
}

static void *run_thread(void *gate)
{
	struct gate *g = gate;
	struct block *b = g->block;

	for (mine = g;;) {
		if (call_enter(g->call, EENTER) || b->died)
			died(b);
		switch (b->ask) {
		case ASK_CALL:
			b->result = syscall(b->number, b->args[0], b->args[1], b->args[2], b->args[3], b->args[4], b->args[5]);
			if (b->result == -1)
				b->result = -errno;
			break;
		case ASK_CPUID:
			cpuid(b->args);
			break;
		case ASK_THREAD:
			begin_thread(&gates[b->args[0]]);
			break;
		case ASK_THREAD_ENDED:
			return NULL;
		case ASK_EXIT:
			exit(b->args[0]);
		}
	}
}

static void tell(struct start *s, const struct enclave *e, const struct options *options, int argc, char **argv)
{
	const u64 ids[] = { getuid(), geteuid(), getgid(), getegid() };

	memset(s, 0, offsetof(struct start, strings));
	s->heap_size = options->heap;
	s->edmm = options->edmm;
	s->fd = e->fd;
	s->pid = getpid();
	s->argc = argc;
	s->hwcap = getauxval(AT_HWCAP);
	s->hwcap2 = getauxval(AT_HWCAP2);
	memcpy(s->ids, ids, sizeof ids);
	if (getrandom(s->random, 16, 0) != 16)
		perror("libos: getrandom");
	for (int i = 0; i < argc || environ[i - argc]; i++) {
		const char *string = i < argc ? argv[i] : environ[i - argc];
		u64 n = strlen(string) + 1;

		if (s->length + n > sizeof s->strings) {
			fprintf(stderr, "libos: arguments and environment are longer than %zu bytes\n", sizeof s->strings);
			exit(125);
		}
		memcpy(s->strings + s->length, string, n);
		s->length += n;
		s->envc += i >= argc;
	}
}

int serve(struct enclave *e, const struct options *options, int argc, char **argv)
{
	static const int raised[] = { SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGTRAP };
	struct sigaction action = { .sa_sigaction = exception, .sa_flags = SA_SIGINFO };

	for (unsigned i = 0; i < sizeof raised / sizeof *raised; i++)
		sigaction(raised[i], &action, NULL);
	for (unsigned i = 0; i < OS_THREADS; i++) {
		struct gate *g = &gates[i];

		g->block = calloc(1, sizeof *g->block);
		g->call = call_new(e->tcs[i], NULL);
		g->handler = call_new(e->tcs[i], NULL);
		g->call->request = g->handler->request = (struct request *)g->block;
	}
	gates[0].used = 1;
	gates[0].thread = pthread_self();
	tell((struct start *)gates[0].block->data, e, options, argc, argv);
	run_thread(&gates[0]);
	pthread_exit(NULL);	/* the first thread has ended, others go on */
}
