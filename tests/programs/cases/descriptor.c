/* What the descriptor of an SGX device and its path answer to calls that have nothing to do with SGX: as a character
 * device that has ioctl and mmap and nothing else. What is not asked here is told apart in docs/live.md. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include "check.h"

static const char *const names[] = { "/dev/sgx_enclave", "/dev/sgx_provision", "/dev/sgx_vepc" };
#define EACH_NAME(i) for (unsigned i = 0; i < sizeof(names) / sizeof(*names); i++)

static int error_of(long result)
{
	return result < 0 ? errno : 0;
}

static void opened_in_odd_ways(void)
{
	static const struct {
		int flags, answer;
	} ways[] = {
		{ O_RDONLY, 0 }, { O_WRONLY, 0 }, { O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0 }, { O_RDWR | O_TRUNC, 0 },
		{ O_RDWR | O_CREAT, 0 }, { O_RDWR | O_CREAT | O_EXCL, EEXIST }, { O_RDONLY | O_DIRECTORY, ENOTDIR },
		{ O_RDWR | O_TMPFILE, ENOTDIR }, { O_RDWR | O_DIRECT, EINVAL },
	};
	struct stat of;
	u64 numbers = 0;
	u8 byte;

	EACH_NAME(i) {
		for (unsigned way = 0; way < sizeof(ways) / sizeof(*ways); way++) {
			int fd = open(names[i], ways[way].flags, 0600), got = error_of(fd);

			CHECK(got == ways[way].answer, "%s with %#o: %s", names[i], ways[way].flags, strerror(got));
			if (fd >= 0)
				close(fd);
		}
		CHECK(!stat(names[i], &of) && S_ISCHR(of.st_mode) && major(of.st_rdev) == 10, "%s is no device", names[i]);
		numbers |= 1UL << (minor(of.st_rdev) & 63);
	}
	CHECK_EQ(__builtin_popcountl(numbers), 3);
	CHECK(creat(names[0], 0600) >= 0, "creat: %s", strerror(errno));
	CHECK(access(names[0], X_OK) && errno == EACCES, "access");
	CHECK(read(open(names[0], O_WRONLY), &byte, 1) < 0 && errno == EBADF, "read of O_WRONLY");
	CHECK(write(open(names[0], O_RDONLY), &byte, 1) < 0 && errno == EBADF, "write of O_RDONLY");
	CHECK(mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, open(names[0], O_RDONLY), 0) == MAP_FAILED && errno == EACCES,
	      "mmap of O_RDONLY: %s", strerror(errno));
}

static void calls_on_the_descriptor(void)
{
	struct enclave e = load((struct spec){ .heap = 10 });
	struct epoll_event event = { .events = EPOLLIN };
	struct pollfd polled = { .fd = e.fd, .events = POLLIN | POLLOUT };
	struct flock lock = { .l_type = F_WRLCK };
	char *arguments[] = { (char *)"x", NULL };

	CHECK(epoll_ctl(epoll_create1(0), EPOLL_CTL_ADD, e.fd, &event) && errno == EPERM, "epoll_ctl");
	CHECK(poll(&polled, 1, 0) == 1 && polled.revents == (POLLIN | POLLOUT), "poll: %#x", polled.revents);
	CHECK_EQ(fcntl(e.fd, F_GETFL) & O_ACCMODE, O_RDWR);
	CHECK(fcntl(e.fd, F_GETPIPE_SZ) < 0 && errno == EBADF, "F_GETPIPE_SZ");
	CHECK(fcntl(e.fd, F_ADD_SEALS, 1) < 0, "F_ADD_SEALS");
	CHECK(!fcntl(e.fd, F_SETLK, &lock) && !flock(e.fd, LOCK_EX | LOCK_NB), "locks: %s", strerror(errno));
	CHECK(!posix_fadvise(e.fd, 0, 0, POSIX_FADV_DONTNEED), "fadvise");
	CHECK(ftruncate(e.fd, 0), "ftruncate");
	CHECK(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, e.fd, 0) == MAP_FAILED && errno == EINVAL, "MAP_PRIVATE");
	CHECK(execveat(e.fd, "", arguments, arguments + 1, AT_EMPTY_PATH), "execveat");
	CHECK_EQ(must(by_vdso(&e, 0), OP_GET, e.heap, 0, 0, 0), 0);
}

static void foreign_ioctls(void)
{
	static const u64 commands[] = {
		0x5401 /* TCGETS */, 0x5413 /* TIOCGWINSZ */, 0x5452 /* FIOASYNC */, 0x80081272 /* BLKGETSIZE64 */,
		0x80087601 /* FS_IOC_GETVERSION */, 0xae00 /* KVM_GET_API_VERSION */,
	};
	u64 argument[16] = { 1 };

	EACH_NAME(i) {
		int fd = open(names[i], O_RDWR);

		for (unsigned n = 0; n < sizeof(commands) / sizeof(*commands); n++)
			CHECK(ioctl(fd, commands[n], argument) && errno == ENOTTY, "%s, %#lx: %s", names[i], commands[n],
			      strerror(errno));
		close(fd);
	}
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "opened_in_odd_ways", opened_in_odd_ways },
		{ "calls_on_the_descriptor", calls_on_the_descriptor },
		{ "foreign_ioctls", foreign_ioctls },
	};

	return RUN(argc, argv, tests);
}
