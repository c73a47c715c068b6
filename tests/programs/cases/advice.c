/* madvise and its like on enclave memory: as for any mapping of device memory (VM_IO, VM_PFNMAP). */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include "check.h"

#define HEAP 300
#define HOLE 20
enum { PROCESS_MADVISE = 440, PIDFD_OPEN = 434, REMAP_FILE_PAGES = 216, MSEAL = 462 };

static struct enclave e;
static struct call *c;

static void begin(void)
{
	e = load((struct spec){ .heap = HEAP, .hole = HOLE, .threads = 2 });
	c = by_vdso(&e, 0);
	must(c, OP_FILL, e.heap, HEAP, 1, 0);
}

static void unchanged(void)
{
	CHECK_EQ(must(c, OP_CHECK, e.heap, HEAP, 1, 0), 0);
	for (u64 page = e.hole; page < e.hole + HOLE * PAGE; page += PAGE)
		CHECK_EQ(must(c, OP_ACCEPT, page, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
}

static const struct {
	int advice, answer;
} table[] = {
	{ MADV_NORMAL, 0 }, { MADV_RANDOM, 0 }, { MADV_SEQUENTIAL, 0 }, { MADV_WILLNEED, 0 }, { MADV_DONTNEED, EINVAL },
	{ MADV_FREE, EINVAL }, { MADV_REMOVE, EINVAL }, { MADV_DOFORK, EINVAL }, { MADV_HUGEPAGE, 0 },
	{ MADV_NOHUGEPAGE, 0 }, { MADV_DONTDUMP, 0 }, { MADV_DODUMP, EINVAL }, { MADV_WIPEONFORK, EINVAL },
	{ MADV_COLD, EINVAL }, { MADV_PAGEOUT, EINVAL }, { 22 /* POPULATE_READ */, EINVAL },
	{ 23 /* POPULATE_WRITE */, EINVAL }, { 24 /* DONTNEED_LOCKED */, EINVAL }, { 25 /* COLLAPSE */, EINVAL },
	{ MADV_HWPOISON, EFAULT }, { 102 /* GUARD_INSTALL */, EINVAL }, { 103 /* GUARD_REMOVE */, EINVAL }, { 99, EINVAL },
};

static void advised(void)
{
	begin();
	for (unsigned i = 0; i < sizeof(table) / sizeof(*table); i++)
		for (int part = 0; part < 2; part++) {
			u64 at = part ? e.hole - 10 * PAGE : e.heap, pages = part ? HOLE : HEAP;
			int got = madvise((void *)at, pages * PAGE, table[i].advice) ? errno : 0;

			CHECK(got == table[i].answer, "advice %d: %s", table[i].advice, strerror(got));
		}
	unchanged();
}

/* The same by process_madvise, by which Linux 6.13 lets a process give itself any advice. */
static void advised_by_a_list(void)
{
	struct iovec ranges[2] = { { &c, 0 }, { 0 } };
	int self = syscall(PIDFD_OPEN, getpid(), 0);

	begin();
	ranges[1] = (struct iovec){ (void *)e.heap, HEAP * PAGE };
	for (unsigned i = 0; i < sizeof(table) / sizeof(*table); i++)
		if (table[i].answer)
			CHECK(syscall(PROCESS_MADVISE, self, ranges, 2, table[i].advice, 0) < 0, "advice %d was taken",
			      table[i].advice);
	unchanged();
}

/* MADV_DONTFORK: a child has no such mapping, and what touches it finds nothing. */
static void not_inherited(void)
{
	u64 out, kept = e.heap;
	int status;
	pid_t child;

	begin();
	kept = e.heap + 100 * PAGE;
	CHECK(!madvise((void *)kept, PAGE, MADV_DONTFORK), "MADV_DONTFORK: %s", strerror(errno));
	child = fork();
	if (!child) {
		struct call *mine = by_vdso(&e, 1);

		CHECK_EQ(must(mine, OP_CHECK, e.heap, 100, 1, 0), 0);
		EXPECT_FAULT(mine, ask(mine, &out, OP_GET, kept, 0, 0, 0), 14, 4, kept);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && !status, "the child ended with %#x", status);
	unchanged();
}

/* The address decides which page is seen. */
static void remapped_pages(void)
{
	begin();
	CHECK(!syscall(REMAP_FILE_PAGES, e.heap, HEAP * PAGE, 0, 0, 0), "remap_file_pages: %s", strerror(errno));
	CHECK(syscall(REMAP_FILE_PAGES, e.heap, HEAP * PAGE, PROT_READ, 0, 0) && errno == EINVAL, "with a protection");
	unchanged();
}

static void synced(void)
{
	begin();
	CHECK(msync((void *)e.heap, HEAP * PAGE, MS_SYNC) && errno == EINVAL, "MS_SYNC");
	CHECK(!msync((void *)e.heap, HEAP * PAGE, MS_ASYNC | MS_INVALIDATE), "MS_ASYNC: %s", strerror(errno));
	unchanged();
}

/* Refused, as by a kernel that does not know it; memory beside an enclave can be sealed. */
static void not_sealed(void)
{
	void *other = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	begin();
	CHECK(syscall(MSEAL, e.heap, HEAP * PAGE, 0) && errno == ENOSYS, "mseal");
	CHECK(!munmap((void *)(e.hole + (HOLE - 1) * PAGE), PAGE), "munmap: %s", strerror(errno));
	CHECK(!syscall(MSEAL, other, PAGE, 0) || errno == ENOSYS, "mseal beside it: %s", strerror(errno));
	CHECK_EQ(must(c, OP_CHECK, e.heap, HEAP, 1, 0), 0);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "advised", advised },
		{ "advised_by_a_list", advised_by_a_list },
		{ "not_inherited", not_inherited },
		{ "remapped_pages", remapped_pages },
		{ "synced", synced },
		{ "not_sealed", not_sealed },
	};

	return RUN(argc, argv, tests);
}
