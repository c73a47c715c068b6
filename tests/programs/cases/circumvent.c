/* Ways around those that we look at: calls that no filter sees, a process that changes what calls of ours need, memory
 * and lists of the kernel's that lie in an enclave. Whatever it is told, the process's enclave and all others go on. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include "check.h"

#define HEAP 300
enum { IO_URING_SETUP = 425, IO_URING_ENTER, IO_URING_REGISTER, USER_DISPATCH = 59, MEMFD_SECRET = 447 };

static struct enclave e;
static struct call *c;

static void begin(void)
{
	e = load((struct spec){ .heap = HEAP, .threads = 3 });
	c = by_vdso(&e, 0);
	must(c, OP_FILL, e.heap, HEAP, 1, 0);
}

static void unchanged(void)
{
	CHECK_EQ(must(c, OP_CHECK, e.heap, HEAP, 1, 0), 0);
}

/* A second enclave, or an error; never a hang. */
static int another(void)
{
	struct enclave other;
	int result = enclave_load(&other, (struct spec){ .heap = 20 });

	if (!result)
		enclave_unload(&other);
	else if (other.fd >= 0)
		close(other.fd);
	return result;
}

/* ---- io_uring: its calls are the kernel's own ---- */

static struct io_uring_params ring;
static u8 *rings;
static struct io_uring_sqe *entries;

static int by_ring(int fd, struct io_uring_sqe what)
{
	unsigned *tail = (unsigned *)(rings + ring.sq_off.tail), *head = (unsigned *)(rings + ring.cq_off.head);
	struct io_uring_cqe *done = (struct io_uring_cqe *)(rings + ring.cq_off.cqes);
	unsigned slot = *tail & (ring.sq_entries - 1);

	entries[slot] = what;
	((unsigned *)(rings + ring.sq_off.array))[slot] = slot;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	CHECK_EQ(syscall(IO_URING_ENTER, fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0), 1);
	slot = *head & (ring.cq_entries - 1);
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return done[slot].res;
}

static void ring_of_calls(void)
{
	struct iovec pages[2];
	int fd = syscall(IO_URING_SETUP, 4, &ring), opened;
	u64 argument[4] = { 0 };

	begin();
	if (fd < 0)
		return;	/* kernel.io_uring_disabled, or none */
	rings = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
	entries = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
	CHECK(rings != MAP_FAILED && entries != MAP_FAILED, "mmap of rings");
	opened = by_ring(fd, (struct io_uring_sqe){ .opcode = IORING_OP_OPENAT, .fd = AT_FDCWD,
						    .addr = (u64)"/dev/sgx_enclave", .open_flags = O_RDWR });
	CHECK(opened < 0 || ioctl(opened, SGX_CREATE, argument) < 0, "an enclave that nobody knows");
	for (int i = 0; i < 20; i++) {
		void *page = (void *)(e.heap + (u64)i * 15 * PAGE);
		int zero = open("/proc/self/exe", O_RDONLY), null = open("/dev/null", O_WRONLY);

		by_ring(fd, (struct io_uring_sqe){ .opcode = IORING_OP_WRITE, .fd = null, .addr = (u64)page, .len = 4 * PAGE });
		by_ring(fd, (struct io_uring_sqe){ .opcode = IORING_OP_READ, .fd = e.fd, .addr = (u64)argument, .len = 8 });
		by_ring(fd, (struct io_uring_sqe){ .opcode = IORING_OP_MADVISE, .fd = -1, .addr = (u64)page, .len = PAGE,
						   .fadvise_advice = MADV_COLD });
		close(zero), close(null);
	}
	for (int i = 0; i < 2; i++)
		pages[i] = (struct iovec){ (void *)(e.heap + (u64)i * 150 * PAGE), 100 * PAGE };
	if (!syscall(IO_URING_REGISTER, fd, IORING_REGISTER_BUFFERS, pages, 2)) {
		must(by_vdso(&e, 1), OP_CHECK, e.heap, HEAP, 1, 0);
		syscall(IO_URING_REGISTER, fd, IORING_UNREGISTER_BUFFERS, NULL, 0);
	}
	unchanged();
}

/* ---- memory handed on by the page ---- */

static void pipes(void)
{
	int ends[2], other = memfd_create("other", 0);
	struct iovec pages;
	loff_t at = 0;
	u8 bytes[PAGE];

	begin();
	CHECK(!pipe2(ends, O_NONBLOCK), "pipe");
	for (int i = 0; i < 64; i++) {
		pages = (struct iovec){ (void *)(e.heap + (u64)(i * 37 % HEAP) * PAGE), 4 * PAGE };
		vmsplice(ends[1], &pages, 1, SPLICE_F_GIFT | SPLICE_F_NONBLOCK);
		if (i & 1)
			while (read(ends[0], bytes, sizeof bytes) > 0)
				;
	}
	must(by_vdso(&e, 1), OP_CHECK, e.heap, HEAP, 1, 0);
	while (read(ends[0], bytes, sizeof bytes) > 0)
		;
	splice(e.fd, &at, ends[1], NULL, 16 * PAGE, SPLICE_F_NONBLOCK);
	sendfile(other, e.fd, NULL, 1 << 20);
	at = 0;
	copy_file_range(e.fd, &at, other, NULL, 1 << 20, 0);
	unchanged();
}

static void read_by_another(void)
{
	static u8 bytes[HEAP * PAGE];
	pid_t parent = getpid(), child;
	int status;

	begin();
	child = fork();
	if (!child) {
		struct iovec mine = { bytes, sizeof bytes }, its = { (void *)e.heap, sizeof bytes };

		for (int i = 0; i < 3; i++)
			process_vm_readv(parent, &mine, 1, &its, 1, 0);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && !status, "the child ended with %#x", status);
	unchanged();
}

static void map_files(void)
{
	char path[100];
	int fd;

	begin();
	snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", e.heap, e.heap + HEAP * PAGE);
	fd = open(path, O_RDWR);
	if (fd >= 0) {
		u64 argument[4] = { 0 };

		CHECK(ioctl(fd, SGX_CREATE, argument) < 0, "created");
		CHECK(ftruncate(fd, 0), "ftruncate");
		close(fd);
	}
	unchanged();
}

/* ---- what calls made for us need ---- */

static volatile char selector;
static volatile int dispatched;

static void allow(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)info, (void)context;
	selector = 0, dispatched++;
}

/* Every call is a SIGSYS, those that are made for us too. */
static void user_dispatch(void)
{
	begin();
	handle(SIGSYS, allow, 0);
	for (int i = 0; i < 5; i++) {
		if (prctl(USER_DISPATCH, 1, 0, 0, &selector))
			return;
		selector = 1;
		close(open("/dev/sgx_enclave", O_RDWR));
		selector = 1;
		must(c, OP_FILL, e.heap, HEAP, 1, 0);
		selector = 1;
		mmap((void *)e.heap, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, e.fd, 0);
		selector = 0;
		CHECK(!prctl(USER_DISPATCH, 0, 0, 0, 0), "off");
	}
}

static void no_vdso(void)
{
	u64 vdso = getauxval(AT_SYSINFO_EHDR);

	begin();
	for (int i = -4; i < 4; i++)
		munmap((void *)(vdso + i * PAGE), PAGE);
	close(syscall(SYS_openat, AT_FDCWD, "/dev/sgx_enclave", O_RDWR));
	another();
	_exit(0);
}

static void no_stack_pointer(void)
{
	begin();
	long fd;

	for (int i = 0; i < 4; i++) {
		u64 rsp = (u64[]){ 0, 8, 1UL << 47, -4096UL }[i];

		asm volatile("mov %%rsp, %%r12; mov %[rsp], %%rsp; syscall; mov %%r12, %%rsp"
			     : "=a"(fd) : "a"(2), "D"("/dev/sgx_enclave"), "S"(O_RDWR), [rsp] "r"(rsp)
			     : "rcx", "r11", "r12", "memory");
		if (fd >= 0)
			close(fd);
	}
	unchanged();
}

static void other_abis(void)
{
	static const char *path;
	int fd;

	begin();
	path = mmap((void *)0x10000000, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	strcpy((char *)path, "/dev/sgx_enclave");
	asm volatile("int $0x80" : "=a"(fd) : "a"(5), "b"(path), "c"(O_RDWR) : "memory", "r8", "r9", "r10", "r11");
	if (fd >= 0)
		close(fd);
	asm volatile("int $0x80" : "=a"(fd) : "a"(125), "b"((u32)e.heap), "c"(PAGE), "d"(0) : "memory", "r8", "r9", "r10", "r11");
	fd = syscall(0x40000000 | 2, path, O_RDWR);
	if (fd >= 0)
		close(fd);
	syscall(0x40000000 | 514, e.fd, SGX_CREATE, path);
	unchanged();
}

static void limits(void)
{
	static const int all[] = { RLIMIT_AS, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_MEMLOCK, RLIMIT_NOFILE, RLIMIT_FSIZE,
				   RLIMIT_NPROC, RLIMIT_SIGPENDING, RLIMIT_NICE, RLIMIT_CPU };

	begin();
	for (unsigned i = 0; i < sizeof(all) / sizeof(*all); i++) {
		struct rlimit before, none = { all[i] == RLIMIT_CPU ? 60 : 0, 0 };

		CHECK(!getrlimit(all[i], &before), "getrlimit");
		none.rlim_max = before.rlim_max;
		CHECK(!setrlimit(all[i], &none), "setrlimit");
		must(c, OP_CHECK, e.heap, HEAP, 1, 0);
		another();
		mprotect((void *)e.heap, PAGE, PROT_READ), mprotect((void *)e.heap, PAGE, PROT_READ | PROT_WRITE);
		CHECK(!setrlimit(all[i], &before), "setrlimit back");
	}
	CHECK_EQ(another(), 0);
	unchanged();
}

static void described_wrongly(void)
{
	begin();
	prctl(PR_SET_PTRACER, -1, 0, 0, 0);
	for (int what = 1; what < 15; what++) {
		prctl(PR_SET_MM, what, e.heap, 0, 0);
		prctl(PR_SET_MM, what, 0x10000, 0, 0);
	}
	CHECK(!prctl(PR_SET_DUMPABLE, 0), "PR_SET_DUMPABLE");
	unchanged();
	CHECK_EQ(another(), 0);
	prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
	prctl(PR_SET_NAME, "\n) R 1 (");
	unchanged();
	CHECK_EQ(another(), 0);
}

static void elsewhere(void)
{
	begin();
	if (unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_FS) || mount("none", "/proc", "tmpfs", 0, NULL) || chroot("/proc") || chdir("/"))
		return;	/* not root's */
	unchanged();
	another();	/* devices are known by their name, in every root */
	CHECK(!setgid(65534) && !setuid(65534), "setuid");
	unchanged();
}

/* ---- what the kernel does by itself in an enclave ---- */

static void *ends_in_enclave(void *of)
{
	syscall(SYS_set_tid_address, e.heap + (u64)of * PAGE + 256);
	syscall(SYS_set_robust_list, e.heap + (u64)of * PAGE, 24);
	syscall(SYS_rseq, e.heap + (u64)of * PAGE, 32, 0, 0x53053053);
	syscall(SYS_exit, 0);
	return NULL;
}

static int child_of_memory(void *stack)
{
	(void)stack;
	CHECK_EQ(must(by_vdso(&e, 2), OP_GET, e.heap, 0, 0, 0), must(by_enclu(&e, 2), OP_GET, e.heap, 0, 0, 0));
	_exit(0);
}

static void kernels_own_writes(void)
{
	static u8 stack[1 << 16] __attribute__((aligned(16)));
	stack_t there;
	int status;
	pid_t child;

	begin();
	for (u64 i = 0; i < 20; i++) {
		pthread_t thread;

		CHECK(!pthread_create(&thread, NULL, ends_in_enclave, (void *)(i * 14)), "pthread_create");
		pthread_detach(thread);
	}
	there = (stack_t){ .ss_sp = (void *)e.heap, .ss_size = 32768 };
	CHECK(!sigaltstack(&there, NULL), "sigaltstack");
	handle(SIGUSR1, allow, SA_ONSTACK);
	raise(SIGUSR1);
	must(c, OP_FILL, e.heap, HEAP, 1, 0);
	child = clone(child_of_memory, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
	CHECK(waitpid(child, &status, 0) == child && !status, "the child ended with %#x", status);
	unchanged();
}

static void secret_source(void)
{
	int fd = syscall(MEMFD_SECRET, 0);
	u64 *page;

	begin();
	if (fd < 0 || ftruncate(fd, PAGE))
		return;
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		return;
	page[0] = (u64)page;
	ioctl(open("/dev/sgx_enclave", O_RDWR), SGX_CREATE, page);
	CHECK_EQ(another(), 0);
	unchanged();
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "ring_of_calls", ring_of_calls },
		{ "pipes", pipes },
		{ "read_by_another", read_by_another },
		{ "map_files", map_files },
		{ "user_dispatch", user_dispatch },
		{ "no_vdso", no_vdso },
		{ "no_stack_pointer", no_stack_pointer },
		{ "other_abis", other_abis },
		{ "limits", limits },
		{ "described_wrongly", described_wrongly },
		{ "elsewhere", elsewhere },
		{ "kernels_own_writes", kernels_own_writes },
		{ "secret_source", secret_source },
	};

	return RUN(argc, argv, tests);
}
