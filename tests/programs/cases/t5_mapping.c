/* Mappings and descriptors as real runtimes use them: mapped before ECREATE with base 0, probed while
 * fresh, sparse and huge. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/stat.h>
#include "check.h"

static int open_device(void)
{
	int fd = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);

	CHECK(fd >= 0, "open: %s", strerror(errno));
	return fd;
}

static int try_ioctl(int fd, u64 command, void *argument)
{
	return ioctl(fd, command, argument) ? errno : 0;
}

/* What loaders ask a fresh descriptor to learn what the driver can do. */
static void probes(void)
{
	u64 zeros[6] = { 0 };
	int fd = open_device();

	CHECK_EQ(try_ioctl(fd, SGX_REMOVE, zeros), EINVAL);
	CHECK_EQ(try_ioctl(fd, SGX_RESTRICT, zeros), EINVAL);
	CHECK_EQ(try_ioctl(fd, SGX_MODT, zeros), EINVAL);
	CHECK_EQ(try_ioctl(fd, SGX_ADD, zeros), EINVAL);
	CHECK_EQ(try_ioctl(fd, SGX_INIT, zeros), EINVAL);
	CHECK_EQ(try_ioctl(fd, 0xa4f0, zeros), ENOTTY);
	CHECK_EQ(try_ioctl(fd, 0x5401, zeros), ENOTTY);		/* TCGETS */
	CHECK_EQ(try_ioctl(fd, SGX_CREATE, (void *)8), EFAULT);
	zeros[0] = 99;
	CHECK_EQ(try_ioctl(fd, SGX_PROVISION, zeros), EINVAL);
	close(fd);
}

/* The commands of drivers before the kernel's, and of patches: loaders go on to the next kind of driver. */
static void legacy_ioctls(void)
{
	static const u64 commands[] = {
		0x4008a401UL,	/* isgx, an argument of another size: ADD_PAGE */
		0x4018a402UL,	/* INIT with a launch token */
		0x4010a402UL, 0xa408UL, 0x401aa401UL, 0x4020a401UL, 0x4008a404UL, 0x4008a410UL, 0xc020a409UL,
	};
	struct enclave e = load((struct spec){ 0 });
	u64 zeros[8] = { 0 };
	int fresh = open_device();

	for (unsigned i = 0; i < sizeof commands / sizeof *commands; i++) {
		CHECK_EQ(try_ioctl(fresh, commands[i], zeros), ENOTTY);
		CHECK_EQ(try_ioctl(e.fd, commands[i], zeros), ENOTTY);
	}
}

/* Any of these may be tried first, several times, each opened and closed; the old names lead nowhere. */
static void device_names(void)
{
	static const char *const good[] = { "/dev/sgx_enclave", "/dev/sgx/enclave", "/dev/sgx_provision",
					    "/dev/sgx/provision" };
	u64 argument;
	int fd, provision;

	for (int i = 0; i < 20; i++) {
		CHECK((fd = open(good[i % 4], O_RDWR | O_CLOEXEC)) >= 0, "%s: %s", good[i % 4], strerror(errno));
		CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
		close(fd);
	}
	CHECK(open("/dev/isgx", O_RDWR) < 0 && errno == ENOENT, "/dev/isgx");
	CHECK(open("/dev/sgx", O_RDWR) < 0, "/dev/sgx");
	provision = open("/dev/sgx_provision", O_RDONLY);
	CHECK(provision >= 0, "/dev/sgx_provision: %s", strerror(errno));
	fd = open_device();
	argument = provision;
	CHECK_EQ(try_ioctl(fd, SGX_PROVISION, &argument), 0);
	argument = fd;
	CHECK_EQ(try_ioctl(fd, SGX_PROVISION, &argument), EINVAL);
	close(fd);
	close(provision);
	CHECK(!access("/dev/sgx_enclave", F_OK), "access: %s", strerror(errno));
}

static void use(struct enclave *e, u64 heap)
{
	struct call *c = by_vdso(e, 0), *bare = by_enclu(e, 0);

	must(c, OP_FILL, e->heap, heap, 1, 0);
	CHECK_EQ(must(bare, OP_CHECK, e->heap, heap, 1, 0), 0);
	must(bare, OP_FILL, e->heap, heap, 2, 0);
	CHECK_EQ(must(c, OP_CHECK, e->heap, heap, 2, 0), 0);
}

/* The first 64 KiB stay unmapped, SECS.BASE is 0, the mapping is older than the enclave. */
static void mapped_before_create(void)
{
	struct enclave e = load((struct spec){ .base_zero = 1, .start = 0x10000, .size = 64 << 20, .heap = 300 });

	use(&e, 300);
	enclave_unload(&e);
}

static void unmapped_below(void)
{
	struct enclave e = load((struct spec){ .base_zero = 1, .start = 0x10000, .size = 64 << 20, .heap = 10 });
	struct call *c = by_vdso(&e, 0);

	EXPECT_FAULT(c, ask(c, NULL, OP_GET, 0x3000, 0, 0, 0), 14, 4, 0x3000);
}

/* The old mapping (RWX over everything) serves pages added after INIT. */
static void old_mapping_takes_new_pages(void)
{
	struct enclave e = load((struct spec){ .base_zero = 1, .start = 0x10000, .size = 64 << 20, .heap = 10 });
	struct call *c = by_vdso(&e, 0);
	u64 page = 32 << 20;

	CHECK_EQ(must(c, OP_ACCEPT, page, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
	must(c, OP_PUT, page, 5, 0, 0);
	CHECK_EQ(must(c, OP_GET, page, 0, 0, 0), 5);
}

/* A loader that maps a page of the fresh descriptor just to see whether it may. */
static void trial_mapping(void)
{
	int fd = open_device();
	void *at = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);

	CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
	CHECK(!munmap(at, 4096), "munmap");
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED && errno == EINVAL, "MAP_PRIVATE was accepted");
	close(fd);
	use(&(struct enclave[]){ load((struct spec){ .heap = 50 }) }[0], 50);
}

static void permissions(void)
{
	struct enclave e = load((struct spec){ .heap = 10 });
	u64 end = e.base + e.size;

	CHECK(mmap((void *)e.heap, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, e.fd, 0) == MAP_FAILED &&
		      errno == EACCES, "an R W page was mapped executable");
	CHECK(mprotect((void *)e.base, PAGE, PROT_READ | PROT_WRITE) && errno == EACCES, "an R X page became writable");
	CHECK(mmap((void *)end, PAGE, PROT_READ, MAP_SHARED, e.fd, 0) == MAP_FAILED && errno == EACCES,
	      "a mapping outside of ELRANGE was accepted");
	CHECK(!mprotect((void *)e.heap, PAGE, PROT_NONE), "PROT_NONE: %s", strerror(errno));
	CHECK(!mprotect((void *)e.heap, PAGE, PROT_READ | PROT_WRITE), "R W: %s", strerror(errno));
	use(&e, 10);
}

/* The READ_IMPLIES_EXEC personality cannot map or change enclave memory. */
static void read_implies_exec(void)
{
	struct enclave e = load((struct spec){ .heap = 10 });

	CHECK(personality(READ_IMPLIES_EXEC) >= 0, "personality: %s", strerror(errno));
	CHECK(mprotect((void *)e.heap, PAGE, PROT_READ) && errno == EACCES, "mprotect was allowed");
	CHECK(mmap((void *)e.heap, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, e.fd, 0) == MAP_FAILED && errno == EACCES,
	      "mmap was allowed");
	CHECK(personality(0) >= 0 && !mprotect((void *)e.heap, PAGE, PROT_READ | PROT_WRITE), "%s", strerror(errno));
	use(&e, 10);
}

/* munmap and a second mmap bring the same pages back. */
static void remapped(void)
{
	struct enclave e = load((struct spec){ .heap = 200 });
	struct call *c = by_vdso(&e, 0);

	must(c, OP_FILL, e.heap, 200, 1, 0);
	CHECK(!munmap((void *)e.heap, 200 * PAGE), "munmap");
	EXPECT_FAULT(c, ask(c, NULL, OP_GET, e.heap, 0, 0, 0), 14, 4, e.heap);
	CHECK(mmap((void *)e.heap, 200 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, e.fd, 0) == (void *)e.heap,
	      "mmap: %s", strerror(errno));
	CHECK_EQ(call_enter(c, ERESUME), 0);
	CHECK_EQ(c->asked.result, pattern(1, 0, 0));
	CHECK_EQ(must(c, OP_CHECK, e.heap, 200, 1, 0), 0);
}

static void huge_and_sparse(void)
{
	struct enclave e = load((struct spec){ .size = 1UL << 40, .heap = 20, .hole = 1 });
	struct call *c = by_vdso(&e, 0);
	u64 far = e.base + (1023UL << 30);

	CHECK(mmap((void *)far, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, e.fd, 0) == (void *)far,
	      "mmap: %s", strerror(errno));
	CHECK_EQ(must(c, OP_ACCEPT, far, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
	must(c, OP_PUT, far, 1, 0, 0);
	use(&e, 20);
	CHECK_EQ(must(c, OP_GET, far, 0, 0, 0), 1);
}

static void descriptor_survives_dup_and_close(void)
{
	struct enclave e = load((struct spec){ .heap = 60 });
	int copy = fcntl(e.fd, F_DUPFD_CLOEXEC, 50);

	CHECK_EQ(copy, 50);
	close(e.fd);
	e.fd = copy;
	use(&e, 60);
}

/* ---- calls that bring other memory in ---- */

static void map_again(struct enclave *e, u64 start, u64 pages, int flags)
{
	CHECK(mmap((void *)start, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | flags, e->fd, 0) ==
		      (void *)start, "mmap: %s", strerror(errno));
}

static void accept(struct call *c, u64 start, u64 pages)
{
	for (u64 page = start; page < start + pages * PAGE; page += PAGE)
		CHECK_EQ(must(c, OP_ACCEPT, page, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
}

/* MAP_POPULATE and MAP_LOCKED mean nothing for device memory: pages that are evicted stay so, holes stay holes. */
static void populated(void)
{
	struct enclave e = load((struct spec){ .heap = 300, .hole = 20 });
	struct call *c = by_vdso(&e, 0);

	must(c, OP_FILL, e.heap, 300, 1, 0);
	map_again(&e, e.heap, 300, MAP_POPULATE);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 300, 1, 0), 0);
	map_again(&e, e.heap, 300, MAP_LOCKED);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 300, 1, 0), 0);
	map_again(&e, e.hole, 10, MAP_POPULATE);
	map_again(&e, e.hole + 10 * PAGE, 10, MAP_LOCKED);
	accept(c, e.hole, 20);
}

/* mlock goes over enclave memory as if it were none, and locks what else is in its range. */
static void mlocked(void)
{
	struct enclave e = load((struct spec){ .heap = 300, .hole = 20 });
	struct call *c = by_vdso(&e, 0);
	u64 begin = e.base, end = e.hole + 20 * PAGE;
	u8 *beside = (u8 *)e.base + e.size;

	must(c, OP_FILL, e.heap, 300, 1, 0);
	CHECK(!mlock((void *)begin, end - begin) && !mlock2((void *)begin, end - begin, MLOCK_ONFAULT), "mlock: %s",
	      strerror(errno));
	CHECK(mmap(beside, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
		      beside, "mmap: %s", strerror(errno));
	for (u8 *page = (u8 *)end; page < beside; page += PAGE)
		mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(!mlock((void *)e.hole, (u64)beside + PAGE - e.hole), "mlock of both: %s", strerror(errno));
	CHECK(madvise(beside, PAGE, MADV_DONTNEED) && errno == EINVAL, "what lies beside is not locked");
	CHECK(!madvise(beside + PAGE, PAGE, MADV_DONTNEED), "what lies behind is locked: %s", strerror(errno));
	CHECK_EQ(must(c, OP_CHECK, e.heap, 300, 1, 0), 0);
	accept(c, e.hole, 20);
	CHECK(!munlock((void *)begin, end - begin), "munlock: %s", strerror(errno));
}

static void mlockall_beside_an_enclave(void)
{
	struct enclave e = load((struct spec){ .heap = 300, .hole = 20 });
	struct call *c = by_vdso(&e, 0);

	must(c, OP_FILL, e.heap, 300, 1, 0);
	CHECK(!mlockall(MCL_CURRENT | MCL_FUTURE), "mlockall: %s", strerror(errno));
	CHECK_EQ(must(c, OP_CHECK, e.heap, 300, 1, 0), 0);
	map_again(&e, e.heap, 300, 0);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 300, 1, 0), 0);
	accept(c, e.hole, 20);
}

/* A program that locks all it will ever map, and then loads enclaves. */
static void mlockall_before(void)
{
	struct enclave e, lib;
	struct call *c;

	CHECK(!mlockall(MCL_FUTURE), "mlockall: %s", strerror(errno));
	e = load((struct spec){ .heap = 300, .hole = 20 });
	c = by_vdso(&e, 0);
	must(c, OP_FILL, e.heap, 300, 1, 0);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 300, 1, 0), 0);
	accept(c, e.hole, 20);
	lib = load((struct spec){ .base_zero = 1, .start = 0x10000, .size = 64 << 20, .heap = 300 });
	use(&lib, 300);
}

static struct enclave shared;
static volatile int replaced;

static void *check_all_the_time(void *unused)
{
	struct call *c = by_vdso(&shared, 1);

	while (!replaced)
		CHECK_EQ(must(c, OP_CHECK, shared.heap, 300, 1, 0), 0);
	return unused;
}

/* A mapping is replaced by its like while another thread uses it: no page comes but by a fault. */
static void replaced_under_a_thread(void)
{
	struct stat of;
	pthread_t thread;
	u32 a, b, low, high;

	shared = load((struct spec){ .threads = 2, .heap = 300 });
	must(by_vdso(&shared, 0), OP_FILL, shared.heap, 300, 1, 0);
	CHECK(!pthread_create(&thread, NULL, check_all_the_time, NULL), "pthread_create");
	for (int i = 0; i < 100; i++)
		map_again(&shared, shared.heap, 300, 0);
	replaced = 1;
	pthread_join(thread, NULL);
	__cpuid_count(0x12, 2, a, b, low, high);
	CHECK(!fstat(shared.fd, &of) && (u64)of.st_blocks * 512 <= (low & ~0xfffU), "%lu KiB are in an EPC of %u KiB",
	      of.st_blocks / 2, (low & ~0xfffU) / 1024);
}

/* No core dump shows enclave memory, or walks through the whole of a sparse range. */
static void not_dumped(void)
{
	struct enclave early = load((struct spec){ .base_zero = 1, .start = 0x10000, .size = 64 << 20, .heap = 10 });
	struct enclave e = load((struct spec){ .heap = 10 });
	FILE *smaps = fopen("/proc/self/smaps", "r");
	char line[512];
	int found = 0, ours = 0;

	while (smaps && fgets(line, sizeof line, smaps)) {
		u64 start, end;

		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			ours = strstr(line, "sgx_enclave") != NULL;
		if (ours && !strncmp(line, "VmFlags:", 8)) {
			CHECK(strstr(line, " dd"), "%s", line);
			found++;
		}
	}
	CHECK(found >= 4, "%d mappings of enclaves", found);
	CHECK(madvise((void *)e.heap, PAGE, MADV_DODUMP) && errno == EINVAL, "MADV_DODUMP");
	use(&early, 10);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "probes", probes },
		{ "legacy_ioctls", legacy_ioctls },
		{ "device_names", device_names },
		{ "mapped_before_create", mapped_before_create },
		{ "unmapped_below", unmapped_below },
		{ "old_mapping_takes_new_pages", old_mapping_takes_new_pages },
		{ "trial_mapping", trial_mapping },
		{ "permissions", permissions },
		{ "read_implies_exec", read_implies_exec },
		{ "remapped", remapped },
		{ "huge_and_sparse", huge_and_sparse },
		{ "descriptor_survives_dup_and_close", descriptor_survives_dup_and_close },
		{ "populated", populated },
		{ "mlocked", mlocked },
		{ "mlockall_beside_an_enclave", mlockall_beside_an_enclave },
		{ "mlockall_before", mlockall_before },
		{ "replaced_under_a_thread", replaced_under_a_thread },
		{ "not_dumped", not_dumped },
	};

	return RUN(argc, argv, tests);
}
