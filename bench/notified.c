/* Median nanoseconds of system calls by which a container runtime finds out about its cgroups, and of some that it
 * makes all the time.  Arguments: the cgroup root, rounds.  Prints "NAME NANOSECONDS" lines. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/statfs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 16 };	/* calls between two looks at the clock, of the cheap ones */

static const char *root;
static char *amid;
static int directory, zero, file, listed, polled, ends[2];

static void call_statfs(void) { struct statfs s; statfs(root, &s); }
static void call_fstatfs(void) { struct statfs s; fstatfs(directory, &s); }
static void call_bpf(void)
{
	union bpf_attr a;

	memset(&a, 0, sizeof a);
	a.query.target_fd = directory;
	a.query.attach_type = BPF_CGROUP_DEVICE;
	syscall(SYS_bpf, BPF_PROG_QUERY, &a, sizeof a);
}
static void call_mount(void) { mount("none", "/nowhere", "tmpfs", 0, NULL); }
static void call_clone3(void) { long a[11] = { 0 }; syscall(SYS_clone3, a, 8L); }
static void call_getppid(void) { syscall(SYS_getppid); }
static void call_read(void) { char c[64]; if (read(zero, c, sizeof c) < 0) exit(1); }
static void call_pread(void) { char c[4096]; if (pread(file, c, sizeof c, 0) < 0) exit(1); }
static void call_fstat(void) { struct stat s; fstat(zero, &s); }
static void call_futex(void) { static int word; syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1); }
static void call_sigaction(void) { struct sigaction s; sigaction(SIGUSR1, NULL, &s); }
static void call_sigprocmask(void) { sigset_t s; sigprocmask(SIG_SETMASK, NULL, &s); }
static void call_sigaltstack(void) { stack_t s; sigaltstack(NULL, &s); }
static void call_prctl(void) { prctl(PR_CAPBSET_READ, 0); }
static void call_fcntl(void) { fcntl(zero, F_GETFL); }
static void call_epoll_pwait(void) { struct epoll_event e; epoll_pwait(polled, &e, 1, 0, NULL); }
static void call_epoll_ctl(void)
{
	struct epoll_event e = { .events = EPOLLIN };

	epoll_ctl(polled, EPOLL_CTL_MOD, ends[0], &e);
}
static void call_write(void) { if (write(ends[1], "x", 1) != 1) exit(1); }
static void call_drain(void) { char c[512]; if (read(ends[0], c, 1) != 1) exit(1); }
static void call_close(void) { syscall(SYS_close, dup(zero)); }
/* Amid pages that stay: else it is chance whether a page table goes with them, which costs more than a call. */
static void call_mmap(void)
{
	char *p = mmap(amid, 65536, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	*p = 1;
	mprotect(p, 4096, PROT_READ);
	munmap(p, 65536);
}
static void call_getdents(void)
{
	char c[32768];

	lseek(listed, 0, SEEK_SET);
	while (syscall(SYS_getdents64, listed, c, sizeof c) > 0)
		;
}
static void open_close(const char *path) { int fd = open(path, O_RDONLY); if (fd < 0) exit(1); close(fd); }
static void open_mountinfo(void) { open_close("/proc/self/mountinfo"); }
static void open_cgroup(void) { open_close("/proc/self/cgroup"); }

static int by_value(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;

	return (x > y) - (x < y);
}

static void measure(const char *name, void (*call)(void), int rounds, int batch)
{
	long *t = calloc(rounds, sizeof *t);

	for (int i = 0; i < rounds; i++) {
		struct timespec a, b;

		clock_gettime(CLOCK_MONOTONIC, &a);
		for (int j = 0; j < batch; j++)
			call();
		clock_gettime(CLOCK_MONOTONIC, &b);
		t[i] = ((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec) / batch;
	}
	qsort(t, rounds, sizeof *t, by_value);
	printf("%s %ld\n", name, t[rounds / 2]);
	free(t);
}

int main(int argc, char **argv)
{
	int rounds = argc > 2 ? atoi(argv[2]) : 1000;

	root = argc > 1 ? argv[1] : "/sys/fs/cgroup";
	directory = open(root, O_RDONLY | O_DIRECTORY);
	zero = open("/dev/zero", O_RDONLY);
	file = open("/proc/self/exe", O_RDONLY);
	listed = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
	polled = epoll_create1(0);
	amid = mmap(NULL, 6 << 20, PROT_READ, MAP_POPULATE | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + (2 << 20);
	if (directory < 0 || zero < 0 || file < 0 || listed < 0 || polled < 0 || pipe(ends))
		return 1;
	epoll_ctl(polled, EPOLL_CTL_ADD, ends[0], &(struct epoll_event){ .events = EPOLLIN });
	measure("statfs", call_statfs, rounds, 1);
	measure("fstatfs", call_fstatfs, rounds, 1);
	measure("bpf", call_bpf, rounds, 1);
	measure("mount", call_mount, rounds, 1);
	measure("clone3", call_clone3, rounds, 1);
	measure("mountinfo", open_mountinfo, rounds / 4, 1);
	measure("cgroup", open_cgroup, rounds / 4, 1);
	measure("getppid", call_getppid, 4 * rounds, BATCH);
	measure("read", call_read, 4 * rounds, BATCH);
	measure("pread", call_pread, 4 * rounds, BATCH);
	measure("fstat", call_fstat, 4 * rounds, BATCH);
	measure("futex", call_futex, 4 * rounds, BATCH);
	measure("rt_sigaction", call_sigaction, 4 * rounds, BATCH);
	measure("rt_sigprocmask", call_sigprocmask, 4 * rounds, BATCH);
	measure("sigaltstack", call_sigaltstack, 4 * rounds, BATCH);
	measure("prctl", call_prctl, 4 * rounds, BATCH);
	measure("fcntl", call_fcntl, 4 * rounds, BATCH);
	measure("epoll_pwait", call_epoll_pwait, 4 * rounds, BATCH);
	measure("epoll_ctl", call_epoll_ctl, 4 * rounds, BATCH);
	measure("write", call_write, rounds, BATCH);
	measure("drain", call_drain, rounds, BATCH);
	measure("dup+close", call_close, 4 * rounds, BATCH);
	measure("mmap+mprotect+munmap", call_mmap, 4 * rounds, 1);
	measure("lseek+getdents64", call_getdents, rounds, 1);
	return 0;
}
