/* Median nanoseconds of system calls by which a container runtime finds out about its cgroups, and of some that it
 * makes all the time.  Arguments: the cgroup root, rounds.  Prints "NAME NANOSECONDS" lines. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/statfs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 16 };	/* calls between two looks at the clock, of the cheap ones */

static const char *root;
static int directory, zero, file;

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
	if (directory < 0 || zero < 0 || file < 0)
		return 1;
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
	return 0;
}
