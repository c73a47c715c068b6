/* Signals during a long ioctl: what is done counts, and nothing done is made again, or EINTR. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include "check.h"

#define PAGES 4000UL

struct secinfo { u64 flags, reserved[7]; } __attribute__((aligned(64)));

static volatile long ticks;
static unsigned calls, cut, eintr;

static void tick(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	ticks++;
}

static int create(void)
{
	static u8 secs[4096] __attribute__((aligned(4096)));
	u64 size = 64 << 20, argument = (u64)secs, base;
	int fd = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);
	u8 *at = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	base = ((u64)at + size - 1) & -size;
	memcpy(secs, &size, 8);
	memcpy(secs + 8, &base, 8);
	secs[16] = 1;		/* SSAFRAMESIZE */
	secs[48] = ATTR_MODE64;
	secs[56] = 3;		/* XFRM */
	CHECK(fd >= 0 && !ioctl(fd, SGX_CREATE, &argument), "create: %s", strerror(errno));
	return fd;
}

/* Adds all pages, with a signal every 2 ms during the first calls. */
static void add_all(int handler_flags)
{
	struct secinfo info = { .flags = R | W | TYPE_REG << 8 };
	u8 *source = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct { u64 src, offset, length, secinfo, flags, count; } add = { .secinfo = (u64)&info };
	int fd = create();

	memset(source, 7, PAGES * PAGE);
	handle(SIGALRM, tick, handler_flags);
	unblock(SIGALRM);
	start_timer(2000);
	for (u64 done = 0; done < PAGES * PAGE; done += add.count) {
		int failed;

		add.src = (u64)source + done;
		add.offset = done;
		add.length = PAGES * PAGE - done;
		add.count = 0;
		failed = ioctl(fd, SGX_ADD, &add);
		if (++calls == 50)
			stop_timer();
		CHECK(!failed || (errno == EINTR && !add.count), "ADD_PAGES: %s after %lu bytes", strerror(errno), add.count);
		eintr += failed != 0;
		cut += !failed && add.count < add.length;
	}
	stop_timer();
	CHECK(ticks > 0, "no signal came");
}

static void made_again(void)
{
	add_all(SA_RESTART);
	CHECK_EQ(eintr, 0);
	CHECK(cut > 0, "%u calls, %ld signals, and none was cut short", calls, ticks);
}

static void not_made_again(void)
{
	add_all(0);
	CHECK(cut > 0, "%u calls, %ld signals, and none was cut short", calls, ticks);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "made_again", made_again },
		{ "not_made_again", not_made_again },
	};

	return RUN(argc, argv, tests);
}
