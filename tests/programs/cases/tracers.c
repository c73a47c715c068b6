/* Debuggers that mean harm: hunters make ptrace requests of any kind, by chance, of preys and of each other, while
 * preys enter enclaves, page, fork, exec, make threads, ask to be traced and raise signals.
 *
 *     tracers SECONDS SEED      exit 0 if in the end everybody could be killed and waited for, else 8
 *
 * Nobody here calls kill(2) with a number of another's making, so that changed registers hurt nobody outside. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <time.h>
#include "tracing.h"

enum { PREYS = 3, HUNTERS = 3, ALL = PREYS + HUNTERS, ENCLAVE_PAGES = 40 };

struct arena {
	volatile pid_t pids[ALL];
	volatile u64 requests, granted, stops, entries, births;
	struct enclave e;	/* everybody's, by fork */
};
static struct arena *arena;
static __thread u64 state;

static u64 chance(u64 n)
{
	return next_random(&state) % n;
}

#define PICK(...) ((u64[]){ __VA_ARGS__ })[chance(sizeof((u64[]){ __VA_ARGS__ }) / 8)]
#define COUNT(what) __atomic_add_fetch(&arena->what, 1, __ATOMIC_RELAXED)

static void nothing(int sig)
{
	(void)sig;
}

/* ---- prey ---- */

static void *short_thread(void *e)
{
	u64 out;

	ask(by_enclu(e, 1 + chance(2)), &out, OP_GET, ((struct enclave *)e)->heap, 0, 0, 0);
	if (!chance(16))
		execl("/bin/true", "true", NULL);
	return NULL;
}

static void live(int number)
{
	struct enclave *e = &arena->e;
	struct call *c = by_enclu(e, number), *v = by_vdso(e, number);
	pthread_t thread;
	u64 out;
	pid_t child;

	for (;;) {
		switch (chance(12)) {
		case 0:
			child = fork();
			if (!child) {
				if (chance(2))
					ptrace(PTRACE_TRACEME, 0, 0, 0);
				ask(c, &out, OP_NOP, 0, 0, 0, 0);
				syscall(SYS_exit_group, 3);
			}
			COUNT(births);
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
			break;
		case 1:
			child = vfork();
			if (!child) {
				execl("/bin/true", "true", NULL);
				_exit(1);
			}
			COUNT(births);
			break;
		case 2:
			if (!pthread_create(&thread, NULL, short_thread, e))
				pthread_detach(thread);
			break;
		case 3:
			syscall(SYS_tgkill, getpid(), (pid_t)syscall(SYS_gettid), (int)PICK(SIGUSR1, SIGUSR1, SIGCHLD, SIGTRAP, SIGSTOP));
			break;
		case 4:
			ptrace(PTRACE_TRACEME, 0, 0, 0);
			break;
		case 5:
			ask(v, &out, OP_RAISE, RAISE_UD2, 0, 0, 0);
			call_unwind(e, v, number, 0);
			break;
		case 6:
			close(open("/dev/sgx_enclave", O_RDWR));
			break;
		default:
			ask(chance(2) ? c : v, &out, OP_FILL, e->heap, ENCLAVE_PAGES, number, 0);
		}
		COUNT(entries);
	}
}

/* ---- hunter ---- */

static u8 scratch[8192] __attribute__((aligned(4096)));

static u64 address_of(pid_t pid)
{
	struct user_regs_struct regs = { 0 };

	try(PTRACE_GETREGS, pid, 0, (u64)&regs);
	return PICK(0, 8, regs.rsp, regs.rsp - 64, regs.rsp + 8 * chance(64), (u64)scratch, (u64)scratch + 4093, arena->e.base,
		    arena->e.tcs[0], arena->e.tcs[1] + 8, arena->e.heap + 8 * chance(4096), arena->e.heap + 4092,
		    arena->e.base + arena->e.size - 4, (u64)live & -8UL, 1UL << 47, -8UL, 0xffff800000000000);
}

static void change_registers(pid_t pid)
{
	struct user_regs_struct regs;
	unsigned long *words = (void *)&regs;

	if (try(PTRACE_GETREGS, pid, 0, (u64)&regs))
		return;
	switch (chance(5)) {
	case 0: regs.rip = PICK(0, 1UL << 47, (u64)live, (u64)nothing, arena->e.base, regs.rip + 2, regs.rip - 2); break;
	case 1: regs.orig_rax = PICK(-1UL, SYS_getpid, SYS_pause, SYS_exit, SYS_exit_group, SYS_rt_sigreturn, SYS_munmap,
				     SYS_brk, 9999, 1UL << 30 | SYS_getpid); break;
	case 2: regs.eflags ^= PICK(0x100, 0x400, 0x40, 0x10000, 0x200); break;
	case 3: words[chance(sizeof(regs) / 8)] = PICK(0, 2, 3, 4, (u64)scratch, arena->e.tcs[0], 1UL << 47, -512UL, -516UL); break;
	case 4: regs.rax = PICK(0, 2, 3, -512UL, -513UL, -514UL, -516UL); break;
	}
	try(PTRACE_SETREGS, pid, 0, (u64)&regs);
}

/* Anything that asks or changes something of a stopped one; most fail when it is not. */
static void meddle(pid_t pid)
{
	struct { void *base; u64 length; } set = { scratch, PICK(0, 7, 8, 216, 512, 832, 2696, 4096, -1UL) };
	u64 word;

	switch (chance(10)) {
	case 0: try(PTRACE_PEEKDATA, pid, address_of(pid), PICK((u64)&word, 0, arena->e.heap)); break;
	case 1: try(PTRACE_POKEDATA, pid, address_of(pid), PICK(0, -1UL, 0xccccccccccccccccUL, 0x0b0f0b0fd7010fUL, 1, 2)); break;
	case 2: change_registers(pid); break;
	case 3: try(PTRACE_SETOPTIONS, pid, 0, chance(2) ? chance(256) : PICK(0, 0x100000, 0x7f, 0x1000ff, 0x200000, -1UL)); break;
	case 4:
		try(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg) + 8 * chance(8),
		    PICK(0, arena->e.heap, arena->e.base, (u64)scratch, 1, 0xd0001, 0x10001, 0xf0003, -1UL));
		break;
	case 5:
		memset(scratch, PICK(0, 0xff, 0x55, 1), sizeof scratch);
		try(PICK(PTRACE_GETREGSET, PTRACE_SETREGSET), pid, PICK(1, 2, 0x202, 0x200, 0x99, -1UL), PICK((u64)&set, (u64)&set, 8));
		break;
	case 6:
		*(u64 *)scratch = PICK(0, -1UL, 1UL << (SIGILL - 1), 1UL << (SIGTRAP - 1), 1UL << (SIGSEGV - 1));
		try(PICK(PTRACE_GETSIGMASK, PTRACE_SETSIGMASK), pid, PICK(8, 8, 8, 4, 128), (u64)scratch);
		break;
	case 7: try(PICK(PTRACE_GETSIGINFO, PTRACE_SETSIGINFO, PTRACE_GETEVENTMSG), pid, 0, PICK((u64)scratch, 0)); break;
	case 8: try(PTRACE_GET_SYSCALL_INFO, pid, PICK(0, 8, 88, 4096, -1UL), (u64)scratch); break;
	default: try(PICK(chance(40), 0x4200 + chance(20)), pid, PICK(0, 8, (u64)scratch), PICK(0, (u64)scratch, arena->e.heap, 8));
	}
}

static void look(pid_t pid)
{
	struct itimerspec soon = { .it_value = { .tv_nsec = 5000000 } };
	int status, blocking = !chance(6);
	siginfo_t info;
	timer_t timer;

	if (blocking && timer_create(CLOCK_MONOTONIC, NULL, &timer))
		blocking = 0;
	if (blocking)
		soon.it_interval = soon.it_value, timer_settime(timer, 0, &soon, NULL);
	if (chance(3))
		status = waitpid(chance(2) ? -1 : pid, &status, (blocking ? 0 : WNOHANG) | (int)PICK(__WALL, __WALL, 0, WUNTRACED, __WNOTHREAD)) > 0;
	else
		status = !waitid(PICK(P_ALL, P_PID, P_PGID), pid, &info,
				 (blocking ? 0 : WNOHANG) | WEXITED | (int)PICK(__WALL, WSTOPPED, WNOWAIT, WCONTINUED));
	if (status)
		COUNT(stops);
	if (blocking)
		timer_delete(timer);
}

static void hunt_once(void)
{
	pid_t pid = chance(40) ? arena->pids[chance(chance(4) ? PREYS : ALL)] : (pid_t)PICK(0, getpid(), 1, 0x7fffffff);
	u64 sig = chance(3) ? 0 : PICK(SIGUSR1, SIGCONT, SIGSTOP, SIGTRAP, SIGCHLD, 64, 65, -1UL, SIGSEGV);

	if (pid <= 1)
		pid = getpid();
	COUNT(requests);
	switch (chance(20)) {
	case 0: COUNT(granted); try(PTRACE_ATTACH, pid, 0, 0); break;
	case 1: COUNT(granted); try(PTRACE_SEIZE, pid, chance(20) == 0, chance(2) ? 0x7f : chance(256)); break;
	case 2: try(PTRACE_INTERRUPT, pid, 0, 0); break;
	case 3: try(PTRACE_LISTEN, pid, 0, 0); break;
	case 4: try(PTRACE_DETACH, pid, 0, sig); break;
	case 5: case 6: case 7: case 8:
		try(PICK(PTRACE_CONT, PTRACE_SYSCALL, PTRACE_SINGLESTEP, PTRACE_SINGLESTEP, 31, 32, 33), pid, 0, sig);
		break;
	case 9: case 10: case 11: case 12: case 13: look(pid); break;
	case 14:
		if (!chance(30))
			try(PTRACE_KILL, pid, 0, 0);
		break;
	default: meddle(pid);
	}
}

static void *hunt(void *of)
{
	state = (u64)of * 77 + 1;
	for (;;)
		hunt_once();
	return NULL;
}

/* ---- whoever looks after them ---- */

static pid_t begin(int number, u64 seed)
{
	pid_t child = fork();
	pthread_t thread;

	if (child)
		return child;
	state = seed * 1000003 + number + 1;
	(void)!freopen("/dev/null", "w", stdout);
	signal(SIGUSR1, nothing), signal(SIGALRM, nothing), signal(SIGCHLD, nothing);
	if (number < PREYS)
		live(number);
	pthread_create(&thread, NULL, hunt, (void *)(seed + number));
	hunt((void *)(seed + 100 + number));
	_exit(1);
}

/* Everybody who is there; 0 if nobody is. */
static int kill_all(void)
{
	char path[64], text[4096], *at = text;
	ssize_t length;
	int fd, count = 0;

	snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
	fd = open(path, O_RDONLY);
	length = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[length > 0 ? length : 0] = 0;
	for (pid_t pid; (pid = strtol(at, &at, 10)) > 0; count++)
		kill(pid, SIGKILL);
	return count;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

/* Reaps; whoever made us its debugger by TRACEME goes on. */
static void reap(double end, u64 seed)
{
	int status;
	pid_t pid = waitpid(-1, &status, WNOHANG | __WALL);

	if (pid <= 0) {
		usleep(2000);
	} else if (WIFSTOPPED(status)) {
		try(PTRACE_CONT, pid, 0, 0);
	} else if (now() < end) {
		for (int i = 0; i < ALL; i++)
			if (arena->pids[i] == pid)
				arena->pids[i] = begin(i, seed);
	}
}

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 1, end = now() + seconds;
	u64 seed = argc > 2 ? strtoul(argv[2], NULL, 0) : 1;

	arena = mmap(NULL, sizeof *arena, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	arena->e = load((struct spec){ .threads = PREYS + 1, .heap = ENCLAVE_PAGES });
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (int i = 0; i < ALL; i++)
		arena->pids[i] = begin(i, seed);
	state = seed;
	for (u64 round = 1; now() < end; round++) {
		pid_t pid = arena->pids[chance(ALL)];

		if (!chance(8) && pid > 0)	/* most are stopped for good before long */
			kill(pid, SIGKILL);
		reap(end, seed + round * 16);
	}
	for (end = now() + 40; now() < end; reap(0, 0))
		if (!kill_all() && waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD) {
			printf("%lu requests, %lu to join, %lu stops seen, %lu entries, %lu births\n", arena->requests, arena->granted,
			       arena->stops, arena->entries, arena->births);
			return 0;
		}
	if (!fork())
		execlp("sh", "sh", "-c", "ps -eLo pid,tid,ppid,stat,wchan:20,args | grep '[t]racers\\|/bin/true' >&2", NULL);
	sleep(2);
	return 8;
}
