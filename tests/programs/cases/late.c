/* A program that ran long before SGX came, and does what its standard input says, line by line.
 *
 * Each command prints one line when it is done.  Beside it a thread computes and a thread sleeps
 * in short calls all the time: neither may ever see an error.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include "check.h"

static struct enclave mine;
static struct call *mine_call;
static volatile int broken;

static void *compute(void *unused)
{
	volatile u64 x = 1;

	while (unused == NULL)
		x = x * 6364136223846793005UL + 1;
	return NULL;
}

static void *doze(void *unused)
{
	struct timespec t = { .tv_nsec = 500000 };

	while (unused == NULL)
		if (nanosleep(&t, NULL))
			broken = errno;
	return NULL;
}

static void look(void)
{
	struct stat s;
	u32 a, b, c, d;
	int fd = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC), error = fd < 0 ? errno : 0;

	__cpuid_count(7, 0, a, b, c, d);
	printf("look cpuid %d open %d stat %d broken %d\n", b >> 2 & 1, error,
	       stat("/dev/sgx_enclave", &s) ? errno : !S_ISCHR(s.st_mode), broken);
	if (fd >= 0)
		close(fd);
}

/* CPUID alone, and the names: what asks without opening anything. */
static void ask_cpuid(void)
{
	u32 a, b, c, d;

	__cpuid_count(7, 0, a, b, c, d);
	printf("cpuid %d\n", b >> 2 & 1);
}

static void own(unsigned pages)
{
	mine = load((struct spec){ .heap = pages });
	mine_call = by_vdso(&mine, 0);
	must(mine_call, OP_FILL, mine.heap, pages, 7, 0);
	printf("own %u\n", pages);
}

static void check(void)
{
	struct call *bare = by_enclu(&mine, 0);

	printf("check %lu %lu\n", must(mine_call, OP_CHECK, mine.heap, mine.spec.heap, 7, 0),
	       must(bare, OP_CHECK, mine.heap, mine.spec.heap, 7, 0));
}

static void in_child(void)
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		own(50);
		check();
		fflush(stdout);
		_exit(0);
	}
	waitpid(child, &status, 0);
	printf("fork %d\n", status);
}

static void *own_50(void *unused)
{
	own(50);
	return unused;
}

static void in_thread(void)
{
	pthread_t id;

	pthread_create(&id, NULL, own_50, NULL);
	pthread_join(id, NULL);
	check();
}

/* Sleeps in one system call, and tells how it ended. */
static void long_sleep(long milliseconds)
{
	struct timespec t = { milliseconds / 1000, milliseconds % 1000 * 1000000 }, from, to;
	int bad;

	printf("sleeping\n");
	clock_gettime(CLOCK_MONOTONIC, &from);
	bad = nanosleep(&t, NULL) ? errno : 0;
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("slept %d %d\n", bad,
	       (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000 >= milliseconds);
}

int main(void)
{
	pthread_t id;
	char line[256];

	setvbuf(stdout, NULL, _IOLBF, 0);
	pthread_create(&id, NULL, compute, NULL);
	pthread_create(&id, NULL, doze, NULL);
	printf("ready\n");
	while (fgets(line, sizeof line, stdin)) {
		long n = strchr(line, ' ') ? atol(strchr(line, ' ')) : 0;

		if (!strncmp(line, "look", 4))
			look();
		else if (!strncmp(line, "cpuid", 5))
			ask_cpuid();
		else if (!strncmp(line, "own", 3))
			own(n);
		else if (!strncmp(line, "check", 5))
			check();
		else if (!strncmp(line, "drop", 4))
			enclave_unload(&mine), printf("drop\n");
		else if (!strncmp(line, "fork", 4))
			in_child();
		else if (!strncmp(line, "thread", 6))
			in_thread();
		else if (!strncmp(line, "sleep", 5))
			long_sleep(n);
		else if (!strncmp(line, "exec ", 5)) {
			line[strcspn(line, "\n")] = 0;
			execl(line + 5, line + 5, NULL);
		}
	}
	return 0;
}
