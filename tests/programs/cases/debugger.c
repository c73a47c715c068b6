/* Enclave memory through /proc/PID/mem: what runtimes, profilers and debuggers do (EDBGRD, EDBGWR). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "check.h"

#define HEAP 200	/* pages: more than the machine of the test has EPC */
#define TCS_FLAGS 8
#define DBGOPTIN 1

static struct enclave e;
static struct call *c;
static int mem;

static void start(u64 attributes)
{
	e = load((struct spec){ .heap = HEAP, .hole = 1, .attributes = attributes });
	c = by_vdso(&e, 0);
	mem = open("/proc/self/mem", O_RDWR);
	CHECK(mem >= 0, "open: %s", strerror(errno));
}

static u64 peek(u64 at)
{
	u64 value = 0;

	CHECK(pread(mem, &value, 8, at) == 8, "pread at %#lx: %s", at, strerror(errno));
	return value;
}

static int refused(u64 at)
{
	u64 value = 0;

	if (pread(mem, &value, 8, at) != -1)
		return 0;
	return errno;
}

static int store(u64 at, u64 value)
{
	ssize_t done = pwrite(mem, &value, 8, at);

	return done == 8 ? 0 : done < 0 ? errno : -1;
}

/* Touch all of the heap, so that what was used before is evicted. */
static void stir(void)
{
	must(c, OP_FILL, e.heap + PAGE, HEAP - 1, 9, 0);
}

static void heap_resident_and_evicted(void)
{
	u64 at = e.heap + 8;

	start(0);
	at = e.heap + 8;
	must(c, OP_PUT, at, 0x1122334455667788, 0, 0);
	CHECK_EQ(peek(at), 0x1122334455667788);
	stir();
	CHECK_EQ(peek(at), 0x1122334455667788);
	stir();
	CHECK_EQ(store(at, 42), 0);
	stir();
	CHECK_EQ(must(c, OP_GET, at, 0, 0, 0), 42);
}

/* What Gramine does with statistics on: set DBGOPTIN in every TCS. */
static void dbgoptin(void)
{
	start(0);
	for (int i = 0; i < 2; i++) {
		u64 flags = peek(e.tcs[0] + TCS_FLAGS);

		CHECK_EQ(flags, i ? DBGOPTIN : 0);
		CHECK_EQ(store(e.tcs[0] + TCS_FLAGS, flags | DBGOPTIN), 0);
		CHECK_EQ(peek(e.tcs[0] + TCS_FLAGS), DBGOPTIN);
		stir();
	}
	CHECK_EQ(must(c, OP_NOP, 0, 0, 0, 0), 0);
	CHECK_EQ(store(e.tcs[0] + TCS_FLAGS, 0), 0);
	CHECK_EQ(peek(e.tcs[0] + TCS_FLAGS), 0);
}

static void rest_of_a_tcs(void)
{
	u64 entry;

	start(0);
	entry = peek(e.tcs[0] + 32);
	CHECK_EQ(store(e.tcs[0] + 32, entry + 1), EIO);
	CHECK_EQ(store(e.tcs[0] + TCS_FLAGS, 2), EIO);
	CHECK_EQ(peek(e.tcs[0] + 32), entry);
}

/* Whatever the page's permissions: a breakpoint in measured code. */
static void read_only_code(void)
{
	u64 word, rip;

	start(0);
	must(c, OP_NOP, 0, 0, 0, 0);
	rip = e.base + peek(e.tcs[0] + 32);	/* OENTRY */
	word = peek(rip);
	CHECK_EQ(store(rip, (word & ~0xffUL) | 0xcc), 0);
	CHECK_EQ(peek(rip) & 0xff, 0xcc);
	CHECK_EQ(store(rip, word), 0);
	CHECK_EQ(must(c, OP_NOP, 0, 0, 0, 0), 0);
}

static void production_enclave(void)
{
	start(ATTR_MODE64);
	must(c, OP_PUT, e.heap, 7, 0, 0);
	CHECK_EQ(refused(e.heap), EIO);
	CHECK_EQ(refused(e.tcs[0] + TCS_FLAGS), EIO);
	CHECK_EQ(store(e.heap, 1), EIO);
	CHECK_EQ(must(c, OP_GET, e.heap, 0, 0, 0), 7);
}

static void nothing_there(void)
{
	u64 value;

	start(0);
	CHECK_EQ(refused(e.hole), EIO);
	/* what comes before the end counts */
	CHECK_EQ(pread(mem, &value, 8, e.heap + HEAP * PAGE - 4), 4);
	CHECK(syscall(SYS_pread64, mem, 64UL, 8UL, e.heap) == -1 && errno == EFAULT, "a bad buffer: %s", strerror(errno));
}

static void large_and_crossing(void)
{
	static u8 there[50 * PAGE], again[50 * PAGE];

	start(0);
	must(c, OP_FILL, e.heap, HEAP, 5, 0);
	CHECK_EQ(pread(mem, there, sizeof there - 100, e.heap + 50), sizeof there - 100);
	for (u64 word = 8; word < 512; word++) {
		u64 value;

		memcpy(&value, there + 49 * PAGE + word * 8 - 50 - PAGE, 8);
		CHECK_EQ(value, must(c, OP_GET, e.heap + 48 * PAGE + word * 8, 0, 0, 0));
		word += 50;
	}
	CHECK_EQ(pwrite(mem, there, sizeof there - 100, e.heap + 100 * PAGE + 50), sizeof there - 100);
	CHECK_EQ(pread(mem, again, sizeof there - 100, e.heap + 100 * PAGE + 50), sizeof there - 100);
	CHECK(!memcmp(there, again, sizeof there - 100), "what was written is not what is read");
}

/* read, write and lseek go by the file's position. */
static void by_position(void)
{
	u64 values[2] = { 3, 4 }, back[2];

	start(0);
	CHECK_EQ(lseek(mem, e.heap + PAGE - 8, SEEK_SET), e.heap + PAGE - 8);
	CHECK_EQ(write(mem, values, 16), 16);
	CHECK_EQ(lseek(mem, 0, SEEK_CUR), e.heap + PAGE + 8);
	CHECK_EQ(lseek(mem, -16, SEEK_CUR), e.heap + PAGE - 8);
	CHECK_EQ(read(mem, back, 8), 8);
	CHECK_EQ(read(mem, back + 1, 8), 8);
	CHECK(!memcmp(values, back, 16), "read %lu, %lu", back[0], back[1]);
	CHECK_EQ(must(c, OP_GET, e.heap + PAGE, 0, 0, 0), 4);
}

/* The same descriptor reads ordinary memory, and its number may stand for something else later. */
static void other_uses(void)
{
	u64 here = 77;
	int ends[2];
	char byte = 0;

	start(0);
	CHECK_EQ(peek((u64)&here), 77);
	CHECK_EQ(store((u64)&here, 78), 0);
	CHECK_EQ(here, 78);
	CHECK(!pipe(ends), "pipe");
	CHECK(write(ends[1], "x", 1) == 1 && dup2(ends[0], mem) == mem, "dup2");
	CHECK(read(mem, &byte, 1) == 1 && byte == 'x', "read a pipe: %s", strerror(errno));
}

static void names(void)
{
	char path[3][64];

	start(0);
	must(c, OP_PUT, e.heap, 99, 0, 0);
	stir();
	snprintf(path[0], 64, "/proc/%d/mem", getpid());
	snprintf(path[1], 64, "/proc/self/task/%d/mem", getpid());
	snprintf(path[2], 64, "/proc/thread-self/mem");
	for (int i = 0; i < 3; i++) {
		mem = open(path[i], O_RDONLY | O_CLOEXEC);
		CHECK(mem >= 0, "open %s: %s", path[i], strerror(errno));
		CHECK_EQ(peek(e.heap), 99);
		CHECK_EQ(store(e.heap, 1), EBADF);
	}
}

static void *in_thread(void *unused)
{
	(void)unused;
	CHECK_EQ(peek(e.heap), 5);
	return NULL;
}

/* Another thread, and a child that inherits the descriptor, see the parent's memory. */
static void threads_and_children(void)
{
	pthread_t thread;
	int status;
	pid_t child;

	start(0);
	must(c, OP_PUT, e.heap, 5, 0, 0);
	stir();
	CHECK(!pthread_create(&thread, NULL, in_thread, NULL) && !pthread_join(thread, NULL), "thread");
	child = fork();
	if (!child) {
		CHECK_EQ(peek(e.heap), 5);
		CHECK_EQ(store(e.heap, 6), 0);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && !status, "the child failed: %#x", status);
	CHECK_EQ(must(c, OP_GET, e.heap, 0, 0, 0), 6);
}

/* A process without an enclave of its own looks into its parent's, opened before or after it was loaded. */
static void from_another_process(void)
{
	int ends[2], back[2], status;
	u64 at, old;
	char path[64];
	pid_t child;

	CHECK(!pipe(ends) && !pipe(back), "pipe");
	snprintf(path, sizeof path, "/proc/%d/mem", getpid());
	child = fork();
	if (!child) {
		mem = open(path, O_RDWR);
		CHECK(mem >= 0 && read(ends[0], &at, 8) == 8, "open: %s", strerror(errno));
		CHECK_EQ(peek(at), 5);
		close(mem);
		mem = open(path, O_RDWR);
		CHECK_EQ(store(at, 6), 0);
		old = peek(at + PAGE);
		_exit(old != pattern(9, 0, 1));
	}
	start(0);
	at = e.heap + 8;
	must(c, OP_PUT, at, 5, 0, 0);
	stir();
	CHECK_EQ(write(ends[1], &at, 8), 8);
	CHECK(waitpid(child, &status, 0) == child && !status, "the child failed: %#x", status);
	CHECK_EQ(must(c, OP_GET, at, 0, 0, 0), 6);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "heap_resident_and_evicted", heap_resident_and_evicted },
		{ "dbgoptin", dbgoptin },
		{ "rest_of_a_tcs", rest_of_a_tcs },
		{ "read_only_code", read_only_code },
		{ "production_enclave", production_enclave },
		{ "nothing_there", nothing_there },
		{ "large_and_crossing", large_and_crossing },
		{ "by_position", by_position },
		{ "other_uses", other_uses },
		{ "names", names },
		{ "threads_and_children", threads_and_children },
		{ "from_another_process", from_another_process },
	};

	return RUN(argc, argv, tests);
}
