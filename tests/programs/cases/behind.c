/* Pages that come and go behind the machine's back, by the descriptor of the device, which is a file here: the
 * program that does it may lose contents of its own enclave, and must neither hang nor hurt anybody else. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "check.h"

#define HEAP 200
#define HOLE 20
#define MSEAL 462
#define USERFAULTFD 323
#define UFFDIO_API 0xc018aa3fUL
#define UFFDIO_REGISTER 0xc020aa00UL
#define UFFDIO_UNREGISTER 0x8010aa01UL

static struct enclave e;
static struct call *c;
static u8 junk[PAGE];

static void begin(void)
{
	e = load((struct spec){ .heap = HEAP, .hole = HOLE });
	c = by_vdso(&e, 0);
	must(c, OP_FILL, e.heap, HEAP, 1, 0);
	memset(junk, 0x5a, PAGE);
}

/* The enclave pages as ever, with what it writes itself. */
static void goes_on(void)
{
	for (u64 round = 2; round < 5; round++) {
		must(c, OP_FILL, e.heap, HEAP, round, 0);
		CHECK_EQ(must(c, OP_CHECK, e.heap, HEAP, round, 0), 0);
	}
}

static void no_seals(void)
{
	begin();
	for (int seal = 1; seal < 0x40; seal <<= 1)
		CHECK(fcntl(e.fd, F_ADD_SEALS, seal) < 0 && errno == EPERM, "seal %#x: %s", seal, strerror(errno));
	CHECK(ftruncate(e.fd, 0) && ftruncate(e.fd, 2 * e.size), "it was resized");
	CHECK_EQ(must(c, OP_CHECK, e.heap, HEAP, 1, 0), 0);
	goes_on();
}

/* chattr +i or +a, as root: pages could not be punched out any more. */
static void immutable(void)
{
	begin();
	for (long flags = FS_IMMUTABLE_FL; flags <= FS_APPEND_FL; flags <<= 1) {
		long flag = flags;

		CHECK(!ioctl(e.fd, FS_IOC_SETFLAGS, &flag) || errno == EPERM || errno == ENOTTY || errno == EOPNOTSUPP,
		      "FS_IOC_SETFLAGS: %s", strerror(errno));
		CHECK_EQ(must(c, OP_CHECK, e.heap, HEAP, 1, 0), 0);
	}
	goes_on();
}

/* Pages that are evicted come to be in the file all the same. */
static void written(void)
{
	begin();
	for (u64 page = 0; page < HEAP; page++)
		CHECK_EQ(pwrite(e.fd, junk, PAGE, e.heap - e.base + page * PAGE), PAGE);
	goes_on();
}

static void holes_filled(void)
{
	u64 at;

	begin();
	CHECK(!fallocate(e.fd, 0, e.hole - e.base, HOLE * PAGE), "fallocate: %s", strerror(errno));
	for (at = e.hole; at < e.hole + HOLE * PAGE; at += PAGE) {
		CHECK_EQ(must(c, OP_ACCEPT, at, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
		CHECK_EQ(must(c, OP_GET, at, 0, 0, 0), 0);
	}
	CHECK_EQ(must(c, OP_CHECK, e.heap, HEAP, 1, 0), 0);
}

/* Stored before there was an enclave, in what is a page of it later. */
static void written_before(void)
{
	int early = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);

	CHECK(early >= 0 && !ftruncate(early, 1 << 20) && pwrite(early, junk, PAGE, 0) == PAGE, "%s", strerror(errno));
	close(early);
	begin();
	CHECK_EQ(must(c, OP_CHECK, e.heap, HEAP, 1, 0), 0);
}

/* A resident page that is gone is a SIGBUS, zeros if it was evicted meanwhile; the others are as they were. */
static void punched_out(void)
{
	u64 lost = 0, out;
	int got;

	begin();
	for (u64 page = 0; page < HEAP; page++) {
		struct call *one = by_vdso(&e, 0);

		CHECK_EQ(must(c, OP_GET, e.heap + page * PAGE, 0, 0, 0), pattern(1, page, 0));
		if (page % 2)
			CHECK(!fallocate(e.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					 e.heap - e.base + page * PAGE, PAGE), "%s", strerror(errno));
		got = ask(one, &out, OP_GET, e.heap + page * PAGE, 0, 0, 0);
		if (got == EXCEPTION) {
			CHECK(page % 2 && one->result.vector == 14 && !(one->result.error_code & 1), "vector %u, code %#x",
			      one->result.vector, one->result.error_code);
			call_unwind(&e, one, 0, 0);
			lost++;
		} else {
			CHECK(!got && ((page % 2 && !out) || out == pattern(1, page, 0)), "page %lu: %d, %#lx", page, got, out);
		}
	}
	CHECK(lost, "no page is lost");
}

static volatile int over;

static void *meddle(void *unused)
{
	u64 state = 7;

	while (!over) {
		u64 at = e.heap - e.base + next_random(&state) % (HEAP + HOLE) * PAGE;
		long flags = FS_IMMUTABLE_FL;

		switch (next_random(&state) % 4) {
		case 0:
			fallocate(e.fd, FALLOC_FL_KEEP_SIZE, at, 8 * PAGE);
			break;
		case 1:
			ioctl(e.fd, FS_IOC_SETFLAGS, &flags);
			break;
		default:
			(void)!pwrite(e.fd, junk, PAGE, at);
		}
	}
	return unused;
}

static void written_all_the_time(void)
{
	pthread_t thread;

	begin();
	CHECK(!pthread_create(&thread, NULL, meddle, NULL), "pthread_create");
	for (u64 round = 0; round < 20; round++) {
		must(c, OP_FILL, e.heap, HEAP, round, 0);
		must(c, OP_CHECK, e.heap, HEAP, round, 0);
	}
	over = 1;
	pthread_join(thread, NULL);
	goes_on();
}

static int again(int fd, int flags)
{
	char name[64];
	int second;

	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	second = open(name, flags | O_CLOEXEC);
	CHECK(second >= 0, "%s: %s", name, strerror(errno));
	return second;
}

/* Closing a second open of it does not close the first. */
static void opened_again(void)
{
	u64 zeros[6] = { 0 };
	int fresh = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);

	close(again(fresh, O_RDONLY));
	close(again(fresh, O_RDWR));
	usleep(200000);		/* long enough for whoever looks for closed ones */
	CHECK(ioctl(fresh, SGX_ADD, zeros) && errno == EINVAL, "ADD_PAGES: %s", strerror(errno));
	begin();
	close(again(e.fd, O_RDWR));
	munmap((void *)e.base, e.size);
	usleep(200000);
	CHECK(ioctl(e.fd, SGX_ADD, zeros) && errno == EINVAL, "ADD_PAGES of the unmapped: %s", strerror(errno));
}

/* ---- what cannot be served ends the program, and is told ---- */

static void expect_killed(void (*harm)(void))
{
	int status;
	pid_t child = fork();

	CHECK(child >= 0, "fork: %s", strerror(errno));
	if (!child) {
		harm();
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child, "waitpid: %s", strerror(errno));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %#x", status);
}

static void create_at(int fd, u64 base, u64 size)
{
	static u8 secs[PAGE];
	u64 argument = (u64)secs, fields[2] = { size, base };

	memcpy(secs, fields, sizeof(fields));
	*(u32 *)(secs + 16) = 1;			/* SSAFRAMESIZE */
	*(u64 *)(secs + 48) = ATTR_DEBUG | ATTR_MODE64;
	*(u64 *)(secs + 56) = 3;			/* XFRM */
	CHECK(!ioctl(fd, SGX_CREATE, &argument), "CREATE: %s", strerror(errno));
}

static const u64 place = 1UL << 46;

static void seal_and_create(void)
{
	int fd = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);

	CHECK(!fcntl(fd, F_ADD_SEALS, 0x10 /* FUTURE_WRITE */), "seal: %s", strerror(errno));
	create_at(fd, place, 1 << 20);
}

static void sealed_before(void)
{
	expect_killed(seal_and_create);
}

static void seal_mapping_and_create(void)
{
	int fd = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);
	void *early = mmap((void *)place, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);

	CHECK(early == (void *)place, "mmap: %s", strerror(errno));
	if (syscall(MSEAL, place, 1 << 20, 0))
		kill(getpid(), SIGKILL);		/* the kernel has no such call */
	create_at(fd, place, 1 << 20);
}

static void mapping_sealed_before(void)
{
	expect_killed(seal_mapping_and_create);
}

static void *take_over(void *unused)
{
	u64 api[3] = { 0xaa }, range[4] = { e.heap, PAGE, 1 };
	int fd = syscall(USERFAULTFD, O_CLOEXEC | O_NONBLOCK | 1 /* UFFD_USER_MODE_ONLY */);

	if (ioctl(fd, UFFDIO_API, api))
		return unused;
	while (!over)
		if (!ioctl(fd, UFFDIO_REGISTER, range))
			ioctl(fd, UFFDIO_UNREGISTER, range);
	return unused;
}

static void map_while_taken_over(void)
{
	pthread_t thread;

	begin();
	CHECK(!pthread_create(&thread, NULL, take_over, NULL), "pthread_create");
	for (int i = 0; i < 100; i++)
		if (mmap((void *)e.heap, HEAP * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, e.fd, 0) !=
		    (void *)e.heap)
			_exit(1);
	over = 1;
	pthread_join(thread, NULL);
	CHECK_EQ(must(c, OP_CHECK, e.heap, HEAP, 1, 0), 0);
}

/* Who serves the faults: another userfaultfd may be faster than ours, but then the program does not go on. */
static void own_userfaultfd(void)
{
	int status;
	pid_t child = fork();

	if (!child) {
		map_while_taken_over();
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child, "waitpid: %s", strerror(errno));
	CHECK(!status || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL), "status %#x", status);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "no_seals", no_seals },
		{ "immutable", immutable },
		{ "written", written },
		{ "holes_filled", holes_filled },
		{ "written_before", written_before },
		{ "punched_out", punched_out },
		{ "written_all_the_time", written_all_the_time },
		{ "opened_again", opened_again },
		{ "sealed_before", sealed_before },
		{ "mapping_sealed_before", mapping_sealed_before },
		{ "own_userfaultfd", own_userfaultfd },
	};

	return RUN(argc, argv, tests);
}
