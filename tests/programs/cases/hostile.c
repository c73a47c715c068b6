/* A program that means harm, from many threads at once, for a while.  An enclave of its own (`mine`) is left in
 * peace and must keep its contents and its threads' registers through the signals; the other (`prey`) is not.
 *
 *     hostile SECONDS SEED      prints what it did; exit 0, 3 if the contents of `mine` were wrong, 9 after a fault
 *                               that no wild access of its own explains, which it tells on stderr
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include "check.h"

#define HEAP 60
#define BUFFER (16 * PAGE)
#define FILL 8
#define WORKERS 2
#define CALLERS 3
#define INTRUDERS 2

static struct enclave mine, prey;
static volatile int over, wrong;
static u8 *buffer;			/* source of ADD_PAGES, arguments: rewritten, unmapped, moved */
static pthread_t workers[WORKERS], intruders[INTRUDERS];
static u64 seed, calls, entries, changes, signals;

static __thread sigjmp_buf escape;
static __thread volatile int armed;
static __thread const char *role = "main";

static void count_signal(int sig)
{
	(void)sig;
	__atomic_add_fetch(&signals, 1, __ATOMIC_RELAXED);
}

static void fault(int sig, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	char text[160];
	int length;

	if (armed)
		siglongjmp(escape, sig);
	length = snprintf(text, sizeof(text), "%s: signal %d, code %d, address %p, rip %#llx, rsp %#llx, prey %#lx\n",
			  role, sig, info->si_code, info->si_addr, regs[REG_RIP], regs[REG_RSP], prey.base);
	(void)!write(2, text, length);
	_exit(9);
}

static void own_stack(void)
{
	stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };

	sigaltstack(&stack, NULL);
}

static u64 pick(u64 *state, const u64 *from, u64 n)
{
	return from[next_random(state) % n];
}

#define PICK(state, ...) pick(state, (u64[]){ __VA_ARGS__ }, sizeof((u64[]){ __VA_ARGS__ }) / 8)

/* Nothing that is written to one of these can hurt us. */
static u64 wild_pointer(u64 *state)
{
	u64 inside = (u64)buffer + next_random(state) % BUFFER;

	return PICK(state, 0, 1, 8, PAGE, inside, inside, inside & -8UL, inside & -PAGE, (u64)buffer + BUFFER - 8,
		    prey.base, prey.heap, prey.heap + next_random(state) % (HEAP * PAGE), prey.base + prey.size - 4,
		    0x7ffffffff000, 0x800000000000, 0xffff800000000000, 0xffffffff81000000, -8UL, -1UL);
}

static u64 wild_length(u64 *state)
{
	return PICK(state, 0, 1, PAGE, 2 * PAGE, 5 * PAGE, BUFFER, prey.size, 1UL << 31, 1UL << 40, 1UL << 63, -PAGE, -1UL,
		    next_random(state));
}

static u64 wild_offset(u64 *state)
{
	return PICK(state, 0, PAGE, (next_random(state) % HEAP) * PAGE, prey.heap - prey.base, prey.size - PAGE, prey.size,
		    1UL << 40, -PAGE, next_random(state));
}

static u64 wild_word(u64 *state)
{
	u64 buffer_page = (u64)buffer + (next_random(state) % 16) * PAGE;

	switch (next_random(state) % 6) {
	case 0: return wild_pointer(state);
	case 1: return wild_length(state);
	case 2: return wild_offset(state);
	case 3: return PICK(state, 0, 1, 3, 0x203, 0x207, 0x100, 0x400, 0x200, 1UL << 63);
	default: return buffer_page;
	}
}

/* ioctls with whatever lies in the buffer by now, or with pointers to nowhere */
static void *call_round(void *number)
{
	u64 state = seed * 31 + (u64)number + 1, own[8];
	int fd = -1;

	role = "call";
	while (!over) {
		u64 command = PICK(&state, SGX_CREATE, SGX_ADD, SGX_ADD, SGX_ADD, SGX_INIT, SGX_PROVISION, SGX_RESTRICT,
				   SGX_MODT, SGX_REMOVE, 0x4008a408, 0xc030a4ff, 0xa400, next_random(&state));
		u64 arg = next_random(&state) % 4 ? (u64)own : wild_pointer(&state);

		if (fd < 0 || next_random(&state) % 64 == 0) {
			if (fd >= 0)
				close(fd);
			fd = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);
		}
		for (int i = 0; i < 8; i++)
			own[i] = wild_word(&state);
		syscall(SYS_ioctl, (int)PICK(&state, fd, fd, prey.fd, prey.fd, -1, 1 << 20), command, arg);
		__atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void swap_mapping(u64 *state)
{
	u8 *at = buffer + (next_random(state) % 16) * PAGE, *moved;
	static u8 *aside;

	switch (next_random(state) % 5) {
	case 0:
		munmap(at, PAGE);
		break;
	case 1:
		mprotect(at, PAGE, PICK(state, PROT_NONE, PROT_READ, PROT_WRITE));
		break;
	case 2:
		madvise(at, PAGE, MADV_DONTNEED);
		break;
	case 3:
		moved = mremap(at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, aside ? aside : (aside = buffer + BUFFER + PAGE));
		if (moved != MAP_FAILED)
			sched_yield();
		break;
	}
	sched_yield();
	mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void swap_enclave(u64 *state)
{
	u64 at = prey.base + (next_random(state) % (prey.size / PAGE)) * PAGE;
	u64 length = PICK(state, PAGE, PAGE, 3 * PAGE);
	int prot = PICK(state, PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC);

	if (at + length > prey.base + prey.size)
		length = PAGE;
	switch (next_random(state) % 6) {
	case 0:
		munmap((void *)at, length);
		break;
	case 1:
		mprotect((void *)at, length, prot);
		break;
	case 2:
		madvise((void *)at, length, PICK(state, MADV_DONTNEED, MADV_REMOVE, MADV_DONTFORK, MADV_PAGEOUT));
		break;
	case 3:
		mremap((void *)at, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, buffer + BUFFER + 8 * PAGE);
		break;
	case 4:
		mmap((void *)at, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		break;
	}
	sched_yield();
	mmap((void *)at, length, prot, MAP_SHARED | MAP_FIXED, prey.fd, 0);
}

/* The only thread that maps and unmaps, so that nobody else's memory gets in the way. */
static void *change_round(void *unused)
{
	u64 state = seed * 37 + 5;

	(void)unused;
	own_stack();
	role = "change";
	while (!over) {
		for (int i = 0; i < 200 && !over; i++) {
			volatile u64 *word = (u64 *)(buffer + next_random(&state) % BUFFER / 8 * 8);

			armed = 1;
			if (!sigsetjmp(escape, 1))
				*word = wild_word(&state);
			armed = 0;
		}
		if (next_random(&state) % 2)
			swap_mapping(&state);
		else
			swap_enclave(&state);
		if (++changes % 400 == 0) {
			enclave_unload(&prey);
			enclave_load(&prey, (struct spec){ .heap = HEAP, .threads = INTRUDERS });
		}
	}
	return NULL;
}

/* Enters the prey by TCSes that are none, with requests that are none, while it is taken apart. */
static void *enter_round(void *number)
{
	u64 state = seed * 41 + (u64)number, out;
	void *vdso = vdso_by_dynamic();
	struct call *c = call_new(0, NULL);	/* one for all: to map a stack now would be to get in the way */

	own_stack();
	role = "enter";
	while (!over) {
		u64 tcs = next_random(&state) % 3 ? prey.tcs[(u64)number] : wild_pointer(&state);
		u64 op = PICK(&state, OP_NOP, OP_GET, OP_PUT, OP_COPY, OP_FILL, OP_CHECK, OP_ENCLU, OP_RAISE, OP_ACCEPT, OP_EXTEND);
		int writes = op == OP_PUT || op == OP_COPY || op == OP_FILL;	/* must not reach beyond what is theirs */
		u64 near = PICK(&state, prey.heap + next_random(&state) % (HEAP - FILL) * PAGE, (u64)buffer, 0, -PAGE);
		u64 at = writes || next_random(&state) % 2 ? near : wild_pointer(&state);

		armed = 1;
		if (!sigsetjmp(escape, 1)) {
			c->tcs = tcs;
			c->vdso = next_random(&state) % 2 ? vdso : NULL;
			ask(c, &out, op, at, op == OP_FILL || op == OP_CHECK ? next_random(&state) % FILL : wild_word(&state), PAGE,
			    wild_word(&state));
		}
		armed = 0;
		__atomic_add_fetch(&entries, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *work_round(void *number)
{
	struct call *c = call_new(mine.tcs[(u64)number], vdso_by_dynamic());
	u64 half = mine.heap + (u64)number * HEAP * PAGE, round = 0;

	role = "work";
	while (!over && !wrong) {
		must(c, OP_FILL, half, HEAP, round, 0);
		if (must(c, OP_CHECK, half, HEAP, round, 0))
			wrong = 1;
		round++;
	}
	return NULL;
}

static void *signal_round(void *unused)
{
	u64 state = seed * 43 + 7;

	(void)unused;
	role = "signal";
	while (!over) {
		pthread_t to = next_random(&state) % 2 ? workers[next_random(&state) % WORKERS]
						       : intruders[next_random(&state) % INTRUDERS];

		pthread_kill(to, SIGUSR1);
		usleep(next_random(&state) % 2000);
	}
	return NULL;
}

static void storm(void)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
	struct itimerspec every = { { 0, 1000000 }, { 0, 1000000 } };
	timer_t timer;

	CHECK(!timer_create(CLOCK_MONOTONIC, &event, &timer) && !timer_settime(timer, 0, &every, NULL), "no timer");
}

static pthread_t begin(void *(*round)(void *), u64 number)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, round, (void *)number), "no thread");
	return thread;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = fault, .sa_flags = SA_ONSTACK | SA_SIGINFO };
	pthread_t others[CALLERS + 2];
	u64 seconds;

	CHECK(argc == 3, "usage: hostile SECONDS SEED");
	seconds = strtoul(argv[1], NULL, 0);
	seed = strtoul(argv[2], NULL, 0) + 1;
	/* room behind the buffer for what is moved away */
	buffer = mmap(NULL, 2 * BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(buffer != MAP_FAILED, "no memory");
	mine = load((struct spec){ .heap = WORKERS * HEAP, .threads = WORKERS });
	prey = load((struct spec){ .heap = HEAP, .threads = INTRUDERS });
	for (const int *sig = (int[]){ SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS, 0 }; *sig; sig++)
		sigaction(*sig, &action, NULL);
	signal(SIGALRM, count_signal);
	signal(SIGUSR1, count_signal);
	for (u64 i = 0; i < WORKERS; i++)
		workers[i] = begin(work_round, i);
	for (u64 i = 0; i < INTRUDERS; i++)
		intruders[i] = begin(enter_round, i);
	for (u64 i = 0; i < CALLERS; i++)
		others[i] = begin(call_round, i);
	others[CALLERS] = begin(change_round, 0);
	others[CALLERS + 1] = begin(signal_round, 0);
	storm();
	for (time_t end = time(NULL) + seconds; time(NULL) < end && !wrong;)
		usleep(10000);
	over = 1;
	for (u64 i = 0; i < CALLERS + 2; i++)
		pthread_join(others[i], NULL);
	for (u64 i = 0; i < WORKERS; i++)
		pthread_join(workers[i], NULL);
	for (u64 i = 0; i < INTRUDERS; i++)
		pthread_join(intruders[i], NULL);
	printf("%lu ioctls, %lu entries, %lu changes, %lu signals\n", calls, entries, changes, signals);
	return wrong ? 3 : 0;
}
