/* /dev/sgx_vepc: what a virtual machine monitor does with its guest's EPC.
 *
 * `vepc hold N [DELAY]`: map N pages, touch them one by one, print how many came, wait for a line. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include "check.h"

#define REMOVE_ALL 0xa404UL

static sigjmp_buf touched;
static volatile siginfo_t seen;

static void abandoned(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	seen = *info;
	siglongjmp(touched, 1);
}

/* The signal that a store at `at` gives, or 0. */
static int touch(volatile u8 *at)
{
	handle(SIGSEGV, abandoned, 0);
	handle(SIGBUS, abandoned, 0);
	if (sigsetjmp(touched, 1))
		return seen.si_signo;
	*at = 1;
	return 0;
}

static int vepc(void)
{
	int fd = open("/dev/sgx_vepc", O_RDWR);

	CHECK(fd >= 0, "open: %s", strerror(errno));
	return fd;
}

static u8 *map_at(int fd, u64 pages, u64 first)
{
	u8 *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, first * PAGE);

	CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
	return at;
}

static void device(void)
{
	struct stat status;

	CHECK(!stat("/dev/sgx_vepc", &status) && S_ISCHR(status.st_mode), "no such device");
	CHECK(!access("/dev/sgx_vepc", R_OK | W_OK), "access: %s", strerror(errno));
	CHECK(close(vepc()) == 0, "close");
}

static void private_is_refused(void)
{
	int fd = vepc();

	CHECK(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED && errno == EINVAL, "private mapping");
	CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED, "shared mapping: %s", strerror(errno));
}

/* Pages read as ones until they are stored to, and stay what they are. */
static void pages_come(void)
{
	u8 *at = map_at(vepc(), 20, 0);

	for (int i = 0; i < 20; i++)
		CHECK_EQ(at[i * PAGE + 7], 0xff);
	for (int i = 0; i < 20; i++)
		at[i * PAGE + 7] = i;
	for (int i = 0; i < 20; i++)
		CHECK_EQ(at[i * PAGE + 7], i);
}

/* MAP_POPULATE and mlockall bring nothing: no page is there before it is touched. */
static void nothing_comes_before(void)
{
	u8 *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, vepc(), 0), *later;

	CHECK(at != MAP_FAILED && !mlockall(MCL_CURRENT | MCL_FUTURE), "mmap, mlockall: %s", strerror(errno));
	later = map_at(vepc(), 4, 0);
	for (int i = 0; i < 4; i++) {
		CHECK_EQ(at[i * PAGE], 0xff);
		CHECK_EQ(later[i * PAGE], 0xff);
	}
}

/* The offset names the page: two mappings of it show one, cut mappings show what they showed. */
static void any_offset(void)
{
	int fd = vepc();
	u8 *low = map_at(fd, 8, 0), *same = map_at(fd, 4, 4), *far = map_at(fd, 1, 1UL << 40);

	low[5 * PAGE] = 42;
	CHECK_EQ(same[PAGE], 42);
	CHECK_EQ(touch(far), 0);
	CHECK(!munmap(low + PAGE, 5 * PAGE), "munmap");
	low[6 * PAGE] = 43;
	CHECK_EQ(same[2 * PAGE], 43);
	CHECK_EQ(touch(low + PAGE), SIGSEGV);
	CHECK(mremap(same, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT, "it grew");
}

/* Each open is an instance of its own. */
static void two_instances(void)
{
	u8 *a = map_at(vepc(), 1, 0), *b = map_at(vepc(), 1, 0);

	*a = 1;
	*b = 2;
	CHECK_EQ(*a, 1);
}

static void remove_all(void)
{
	int fd = vepc();
	u8 *at = map_at(fd, 4, 0);

	CHECK_EQ(ioctl(fd, REMOVE_ALL, 0), 0);
	CHECK_EQ(touch(at), 0);
	CHECK_EQ(ioctl(fd, REMOVE_ALL, 0), 0);
	CHECK_EQ(*at, 0xff);
	CHECK(ioctl(fd, REMOVE_ALL, 1) == -1 && errno == EINVAL, "an argument of 1");
	CHECK(ioctl(fd, REMOVE_ALL, 1UL << 40) == -1 && errno == EINVAL, "an argument in the upper half");
	CHECK(ioctl(fd, SGX_CREATE, 0) == -1 && errno == ENOTTY, "CREATE on a virtual EPC");
	CHECK(ioctl(fd, 0xa405UL, 0) == -1 && errno == ENOTTY, "an unknown ioctl");
}

/* VM_DONTCOPY: a child has the descriptor, not the mapping. */
static void not_inherited(void)
{
	int fd = vepc(), status;
	u8 *at = map_at(fd, 2, 0);
	pid_t child;

	*at = 7;
	CHECK(madvise(at, 2 * PAGE, MADV_DOFORK) == -1 && errno == EINVAL, "MADV_DOFORK");
	child = fork();
	if (!child) {
		if (touch(at) != SIGSEGV || touch(at + PAGE) != SIGSEGV)
			_exit(1);
		_exit(*map_at(fd, 1, 0) == 7 ? 0 : 2);
	}
	CHECK(waitpid(child, &status, 0) == child, "waitpid");
	CHECK_EQ(status, 0);
	CHECK_EQ(touch(at + PAGE), 0);
}

/* A system call may be the first to touch a page. */
static void touched_by_a_system_call(void)
{
	u8 *at = map_at(vepc(), 1, 0);
	int ends[2];

	CHECK(!pipe(ends) && write(ends[1], "x", 1) == 1, "pipe");
	CHECK(read(ends[0], at, 1) == 1 || errno == EFAULT, "read: %s", strerror(errno));
}

static void protections(void)
{
	u8 *at = map_at(vepc(), 2, 0);

	CHECK_EQ(touch(at), 0);
	CHECK(!mprotect(at, 2 * PAGE, PROT_READ), "mprotect: %s", strerror(errno));
	CHECK_EQ(touch(at), SIGSEGV);
	CHECK_EQ(at[PAGE], 0xff);
	CHECK(!mprotect(at, 2 * PAGE, PROT_READ | PROT_WRITE), "mprotect: %s", strerror(errno));
	CHECK_EQ(touch(at + PAGE), 0);
}

static int hold(int argc, char **argv)
{
	int fd = vepc(), came = 0;
	u64 pages = strtoul(argv[2], NULL, 0);
	u8 *at = map_at(fd, pages, 0);
	char line[8];

	while ((u64)came < pages && !touch(at + came * PAGE))
		came++;
	printf("%d pages\n", came);
	if ((u64)came < pages)
		printf("signal %d code %d at page %ld\n", seen.si_signo, seen.si_code, ((u8 *)seen.si_addr - at) / PAGE);
	fflush(stdout);
	if (argc > 3 && fgets(line, sizeof line, stdin)) {
		u64 kept = 0;

		for (int i = 0; i < came; i++)
			kept += at[i * PAGE] == 1;
		printf("%lu kept\n", kept);
		munmap(at, pages * PAGE);
		close(fd);
		printf("closed\n");
		fflush(stdout);
		if (fgets(line, sizeof line, stdin))
			printf("%s", touch(map_at(vepc(), 1, 0)) ? "refused\n" : "again\n");
	}
	return 0;
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "device", device },
		{ "private_is_refused", private_is_refused },
		{ "pages_come", pages_come },
		{ "nothing_comes_before", nothing_comes_before },
		{ "any_offset", any_offset },
		{ "two_instances", two_instances },
		{ "remove_all", remove_all },
		{ "not_inherited", not_inherited },
		{ "touched_by_a_system_call", touched_by_a_system_call },
		{ "protections", protections },
	};

	if (argc > 2 && !strcmp(argv[1], "hold"))
		return hold(argc, argv);
	return RUN(argc, argv, tests);
}
