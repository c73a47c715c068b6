/* Arguments of ioctls on pages that the program itself must bring in (userfaultfd), late or never. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include "check.h"

#define SIZE (16 * PAGE)
#define WORD 0x1234567890abcdefUL

struct add_pages { u64 src, offset, length, secinfo, flags, count; };

static int faults, fd;
static u8 *lazy;			/* SECS, ADD_PAGES' argument, SECINFO, a page's contents: a page each */
static u8 pages[4][PAGE] __attribute__((aligned(4096)));

/* Reads the fault of each page, serves it a little later. */
static void *serve(void *limit)
{
	for (u64 served = 0; served < (u64)limit; served++) {
		struct uffd_msg message;
		struct uffdio_copy copy = { .len = PAGE };

		if (read(faults, &message, sizeof message) != sizeof message)
			return NULL;
		usleep(50000);
		copy.dst = message.arg.pagefault.address & -PAGE;
		copy.src = (u64)pages[(copy.dst - (u64)lazy) / PAGE];
		ioctl(faults, UFFDIO_COPY, &copy);
	}
	return NULL;
}

/* A range for an enclave, and what its first two ioctls need, all behind a userfaultfd. */
static u64 prepare(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	u8 *at = mmap(NULL, 2 * SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	u64 base = ((u64)at + SIZE - 1) & -SIZE, size = SIZE, attributes = ATTR_DEBUG | ATTR_MODE64, xfrm = 3;
	u64 word = WORD, secinfo = R | W | TYPE_REG << 8;
	struct add_pages add;

	lazy = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	faults = syscall(SYS_userfaultfd, O_CLOEXEC);
	range.range.start = (u64)lazy;
	range.range.len = 4 * PAGE;
	CHECK(faults >= 0 && !ioctl(faults, UFFDIO_API, &api) && !ioctl(faults, UFFDIO_REGISTER, &range), "no userfaultfd");
	memcpy(pages[0], &size, 8);
	memcpy(pages[0] + 8, &base, 8);
	memcpy(pages[0] + 16, &(u32){ 1 }, 4);
	memcpy(pages[0] + 48, &attributes, 8);
	memcpy(pages[0] + 56, &xfrm, 8);
	add = (struct add_pages){ (u64)lazy + 3 * PAGE, PAGE, PAGE, (u64)lazy + 2 * PAGE, 1, 0 };
	memcpy(pages[1], &add, sizeof add);
	memcpy(pages[2], &secinfo, 8);
	memcpy(pages[3], &word, 8);
	fd = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0, "no device");
	return base;
}

static void brought_in_late(void)
{
	u64 base = prepare(), secs = (u64)lazy;
	pthread_t thread;
	u64 *page;

	pthread_create(&thread, NULL, serve, (void *)4);
	CHECK_EQ(ioctl(fd, SGX_CREATE, &secs), 0);
	CHECK_EQ(ioctl(fd, SGX_ADD, lazy + PAGE), 0);
	pthread_join(thread, NULL);
	CHECK_EQ(((struct add_pages *)(lazy + PAGE))->count, PAGE);
	page = mmap((void *)(base + PAGE), PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
	CHECK(page != MAP_FAILED, "mmap: %s", strerror(errno));
	CHECK_EQ(*page, WORD);
}

static void *create_for_ever(void *unused)
{
	u64 secs = (u64)lazy;

	(void)unused;
	ioctl(fd, SGX_CREATE, &secs);
	_exit(9);
}

static void *add_for_ever(void *unused)
{
	(void)unused;
	ioctl(fd, SGX_ADD, lazy + PAGE);
	_exit(9);
}

static void others_work(void *(*blocked)(void *), u64 served)
{
	u64 secs;
	pthread_t thread, server;
	struct enclave e;

	prepare();
	secs = (u64)lazy;
	if (served) {
		pthread_create(&server, NULL, serve, (void *)served);
		CHECK_EQ(ioctl(fd, SGX_CREATE, &secs), 0);
	}
	pthread_create(&thread, NULL, blocked, NULL);
	usleep(served ? 400000 : 100000);	/* it waits by now */
	e = load((struct spec){ .heap = 4 });
	CHECK_EQ(must(by_vdso(&e, 0), OP_NOP, 0, 0, 0, 0), 0);
}

static void never_brought_in_at_create(void)
{
	others_work(create_for_ever, 0);
}

static void never_brought_in_at_add(void)
{
	others_work(add_for_ever, 3);		/* all but the contents */
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "brought_in_late", brought_in_late },
		{ "never_brought_in_at_create", never_brought_in_at_create },
		{ "never_brought_in_at_add", never_brought_in_at_add },
	};

	return RUN(argc, argv, tests);
}
