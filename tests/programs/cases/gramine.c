/* How a library OS comes up and runs: the order of calls of Gramine's loader, with and without EDMM.
 *
 * `gramine attest IN OUT`: the child of `local_attestation`. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include "check.h"

#define START 0x10000UL		/* mmap_min_addr: what lies below stays unmapped */

static u64 xcr0(void)
{
	u32 low, high;

	asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return low | (u64)high << 32;
}

/* XFRM bits the certificate leaves open. */
static void dont_care(u8 *sigstruct, int signed_already)
{
	u64 mask = 3, none = 0;

	if (signed_already)
		return;
	memcpy(sigstruct + 936, &mask, 8);
	memcpy(sigstruct + 952, &mask, 8);
	memcpy(sigstruct + 944, &none, 8);
	sigstruct[928] |= 2;
}

static void expect_edmm(void)
{
	u64 range[3] = { 0 };
	int fd = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);

	CHECK(fd >= 0 && ioctl(fd, SGX_REMOVE, range) == -1 && errno == EINVAL, "REMOVE_PAGES {0, 0}: %s", strerror(errno));
	close(fd);
}

static struct spec library_os(u64 size, unsigned heap)
{
	return (struct spec){ .base_zero = 1, .start = START, .size = size, .heap = heap, .threads = 4, .ssa_pages = 4,
			      .miscselect = 1, .xfrm = xcr0() & 0xe7, .edit_sigstruct = dont_care };
}

/* The very first thing inside: a report for nobody, for its ATTRIBUTES and XFRM. */
static void first_report(struct enclave *e, struct call *c)
{
	static u8 target[512] __attribute__((aligned(512))), data[64], made[432];
	u64 attributes, xfrm;

	must(c, OP_REPORT, (u64)target, (u64)data, (u64)made, 0);
	memcpy(&attributes, made + 48, 8);
	memcpy(&xfrm, made + 56, 8);
	CHECK_EQ(attributes, e->spec.attributes | 1);
	CHECK_EQ(xfrm, e->spec.xfrm);
	CHECK(!memcmp(made + 64, e->mrenclave, 32) && !memcmp(made + 128, e->mrsigner, 32), "identity in the report");
	for (u8 policy = 1; policy <= 2; policy++) {
		u8 request[512] = { 4, 0, policy }, key[16];

		memset(request + 24, 0xff, 16);
		CHECK_EQ(must(c, OP_KEY, (u64)request, (u64)key, 0, 0), 0);
	}
}

static void accept_run(struct call *c, u64 from, u64 pages, u64 flags)
{
	for (u64 page = from; page < from + pages * PAGE; page += PAGE)
		CHECK_EQ(must(c, OP_ACCEPT, page, flags, 0, 0), 0);
}

#define NEW (R | W | TYPE_REG << 8 | SECINFO_PENDING)
#define LIMITED (TYPE_REG << 8 | SECINFO_PR)

/* 1 TiB of address space, 70 pages at first; memory comes, changes and goes far above. */
static void with_edmm(void)
{
	struct enclave e;
	struct call *c;
	u64 at = 512UL << 30, n = 200, result;

	expect_edmm();
	e = load(library_os(1UL << 40, 30));
	c = by_vdso(&e, 0);
	first_report(&e, c);
	accept_run(c, at, n, NEW);
	must(c, OP_FILL, at, n, 1, 0);
	for (u64 page = at; page < at + 20 * PAGE; page += PAGE) {
		must(c, OP_PUT, page, 0xc3UL << 40 | (page >> 12 & 0xff) << 8 | 0xb8, 0, 0);	/* mov $n, %eax; ret */
		must(c, OP_EXTEND, page, R | W | X | TYPE_REG << 8, 0, 0);
	}
	CHECK_EQ(restrict_permissions(&e, at, 20 * PAGE, R | X, &result), 0);
	accept_run(c, at, 20, R | X | LIMITED);
	for (u64 page = at; page < at + 20 * PAGE; page += PAGE)
		CHECK_EQ(must(c, OP_CALL, page, 0, 0, 0), page >> 12 & 0xff);
	EXPECT_FAULT(c, ask(c, NULL, OP_PUT, at, 1, 0, 0), 14, 0x8007, at);
	call_unwind(&e, c, 0, 0);
	CHECK_EQ(restrict_permissions(&e, at + 20 * PAGE, 20 * PAGE, R, &result), 0);
	accept_run(c, at + 20 * PAGE, 20, R | LIMITED);
	CHECK_EQ(restrict_permissions(&e, at + 40 * PAGE, 10 * PAGE, 0, &result), 0);
	accept_run(c, at + 40 * PAGE, 10, LIMITED);
	EXPECT_FAULT(c, ask(c, NULL, OP_GET, at + 45 * PAGE, 0, 0, 0), 14, 0x8005, at + 45 * PAGE);
	call_unwind(&e, c, 0, 0);
	CHECK_EQ(must(c, OP_CHECK, at + 50 * PAGE, n - 50, 1, 0), n - 50);	/* pattern by place: other places differ */
	CHECK_EQ(modify_type(&e, at, n * PAGE, TYPE_TRIM, &result), 0);
	accept_run(c, at, n, TYPE_TRIM << 8 | SECINFO_MODIFIED);
	CHECK_EQ(remove_pages(&e, at, n * PAGE), 0);
	accept_run(c, at, 5, NEW);
	CHECK_EQ(must(c, OP_GET, at, 0, 0, 0), 0);
	enclave_unload(&e);
}

/* A hole is touched, the handler inside (CSSA 1) accepts it, and the access goes on. */
static void lazily(void)
{
	struct enclave e = load(library_os(1UL << 40, 30));
	struct call *c = by_vdso(&e, 0), *handler = by_vdso(&e, 0);

	for (u64 i = 0; i < 100; i++) {
		u64 page = (300UL << 30) + i * 17 * PAGE;

		EXPECT_FAULT(c, ask(c, NULL, OP_PUT, page + 8 * i, i, 0, 0), 14, 0x8007, page);
		CHECK_EQ(must(handler, OP_GET, gprsgx_address(&e, 0, 0) - 16, 0, 0, 0), page + 8 * i);	/* MADDR */
		CHECK_EQ(must(handler, OP_GET, gprsgx_address(&e, 0, 0) - 8, 0, 0, 0) & 0xffffffff, 0x8007);
		CHECK_EQ(must(handler, OP_ACCEPT, page, NEW, 0, 0), 0);
		CHECK_EQ(call_enter(c, ERESUME), 0);
	}
	for (u64 i = 0; i < 100; i++)
		CHECK_EQ(must(c, OP_GET, (300UL << 30) + i * 17 * PAGE + 8 * i, 0, 0, 0), i);
}

/* All memory is there from the beginning, readable, writable and executable, not measured, in one ioctl. */
static void without_edmm(void)
{
	struct spec spec = library_os(64UL << 20, 2000);
	struct enclave e;
	struct call *c;

	spec.heap_secinfo = R | W | X | TYPE_REG << 8;
	e = load(spec);
	c = by_vdso(&e, 0);
	first_report(&e, c);
	CHECK(!mprotect((void *)e.heap, 2000 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC), "mprotect: %s", strerror(errno));
	must(c, OP_FILL, e.heap, 2000, 1, 0);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 2000, 1, 0), 0);
	must(c, OP_PUT, e.heap + 777 * PAGE, 0xc3UL << 40 | 77 << 8 | 0xb8, 0, 0);
	CHECK_EQ(must(c, OP_CALL, e.heap + 777 * PAGE, 0, 0, 0), 77);
}

/* ---- threads ---- */

struct worker {
	struct call *call;
	u64 at, wrong;
	volatile int done;
};

static int work(void *argument)
{
	struct worker *w = argument;

	for (u64 round = 0; round < 5; round++) {
		must(w->call, OP_FILL, w->at, 40, round, 0);
		w->wrong += must(w->call, OP_CHECK, w->at, 40, round, 0);
	}
	w->done = 1;
	return 0;
}

/* Threads as the loader makes them: clone(2) without TLS, and a TCS goes from one to the next. */
static void raw_clone_threads(void)
{
	static const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM | CLONE_THREAD | CLONE_SIGHAND |
				 CLONE_PTRACE | CLONE_PARENT_SETTID;
	struct enclave e = load(library_os(64UL << 20, 200));
	struct worker workers[12] = { 0 };

	for (unsigned i = 0; i < 12; i++) {
		struct worker *w = &workers[i];
		u8 *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		int tid;

		for (int tries = 0; i >= 4 && !workers[i - 4].done; tries++)
			CHECK(tries < 60000 && !usleep(1000), "worker %u does not end", i - 4);
		*w = (struct worker){ .call = by_vdso(&e, i % 4), .at = e.heap + i % 4 * 40 * PAGE };
		CHECK(clone(work, stack + 65536, flags, w, &tid, NULL, NULL) > 0, "clone: %s", strerror(errno));
	}
	for (unsigned i = 0; i < 12; i++) {
		for (int tries = 0; !workers[i].done; tries++)
			CHECK(tries < 60000 && !usleep(1000), "worker %u does not end", i);
		CHECK_EQ(workers[i].wrong, 0);
	}
}

/* ---- an AEP of the loader's own ---- */

__attribute__((visibility("hidden"))) volatile u64 exits;
extern const char counting_aep[];

asm(".text\n"
    ".globl counting_aep\n"
    ".hidden counting_aep\n"
    "counting_aep:\n"
    "	lock incq exits(%rip)\n"
    "	nop\n"
    "	enclu\n"
    "	ud2\n");

static volatile u64 count, stop;
static volatile int ticks, at_aep;
static struct enclave mended;

static void tick(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info;
	ticks++;
	at_aep += ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] == (long)counting_aep;
	stop = ticks >= 20;
}

static void mend(int signal, siginfo_t *info, void *context)
{
	u64 rip = gprsgx_address(&mended, 0, 0) + SSA_RIP;
	struct call *handler = by_enclu(&mended, 0);

	(void)signal, (void)info;
	at_aep += ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] == (long)counting_aep;
	must(handler, OP_PUT, rip, must(handler, OP_GET, rip, 0, 0, 0) + 2, 0, 0);
}

/* It counts exits before it resumes; every exit passes through it, and a handler finds RIP there. */
static void own_aep(void)
{
	struct call *c;

	mended = load((struct spec){ .threads = 1 });
	c = by_enclu(&mended, 0);
	c->aep = counting_aep;
	handle(SIGALRM, tick, 0);
	unblock(SIGALRM);
	start_timer(2000);
	must(c, OP_SPIN, (u64)&count, (u64)&stop, 0, 0);
	stop_timer();
	/* several signals may find the thread at the AEP before it goes on */
	CHECK(exits > 0 && exits <= (u64)at_aep, "%d signals at the AEP, %lu exits counted", at_aep, exits);
	at_aep = exits = 0;
	handle(SIGILL, mend, 0);
	unblock(SIGILL);
	for (int i = 0; i < 10; i++)
		CHECK_EQ(must(c, OP_RAISE, RAISE_UD2, 0, 0, 0), 1);
	CHECK_EQ(at_aep, 10);
	CHECK_EQ(exits, 10);
}

/* ---- a child process with an enclave of its own ---- */

static void transfer(int fd, void *data, size_t n, int out)
{
	for (size_t done = 0; done < n;) {
		ssize_t now = out ? write(fd, (u8 *)data + done, n - done) : read(fd, (u8 *)data + done, n - done);

		CHECK(now > 0, "pipe: %s", now ? strerror(errno) : "closed");
		done += now;
	}
}

/* Each makes a report for the other and verifies the other's. */
static void attest(struct enclave *e, int in, int out)
{
	static u8 target[512] __attribute__((aligned(512))), data[64] = "hello", report[432];
	struct call *c = by_vdso(e, 0);
	u8 request[512] = { 3 }, theirs[32], key[16], mac[16];

	memcpy(target, e->mrenclave, 32);
	memcpy(target + 32, &(u64){ e->spec.attributes | 1 }, 8);
	memcpy(target + 40, &e->spec.xfrm, 8);
	transfer(out, target, 512, 1);
	transfer(in, target, 512, 0);
	memcpy(theirs, target, 32);
	must(c, OP_REPORT, (u64)target, (u64)data, (u64)report, 0);
	transfer(out, report, 432, 1);
	transfer(in, report, 432, 0);
	memcpy(request + 40, report + 384, 32);
	CHECK_EQ(must(c, OP_KEY, (u64)request, (u64)key, 0, 0), 0);
	aes_cmac(key, report, 384, mac);
	CHECK(!memcmp(mac, report + 416, 16), "the other's report does not verify");
	CHECK(!memcmp(report + 64, theirs, 32) && memcmp(theirs, e->mrenclave, 32), "another enclave's report");
}

static void local_attestation(void)
{
	struct enclave e = load((struct spec){ .heap = 150 });
	int there[2], back[2], status;
	char in[16], out[16];
	pid_t child;

	must(by_vdso(&e, 0), OP_FILL, e.heap, 150, 1, 0);
	CHECK(!pipe(there) && !pipe(back), "pipe");
	snprintf(in, sizeof in, "%d", there[0]);
	snprintf(out, sizeof out, "%d", back[1]);
	child = vfork();
	if (!child) {
		execl("/proc/self/exe", "gramine", "attest", in, out, NULL);
		_exit(99);
	}
	CHECK(child > 0, "vfork: %s", strerror(errno));
	close(there[0]);
	close(back[1]);
	attest(&e, back[0], there[1]);
	CHECK(waitpid(child, &status, 0) == child && !status, "the child: status %#x", status);
	CHECK_EQ(must(by_vdso(&e, 0), OP_CHECK, e.heap, 150, 1, 0), 0);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "with_edmm", with_edmm },
		{ "lazily", lazily },
		{ "without_edmm", without_edmm },
		{ "raw_clone_threads", raw_clone_threads },
		{ "own_aep", own_aep },
		{ "local_attestation", local_attestation },
	};

	if (argc == 4 && !strcmp(argv[1], "attest")) {
		struct enclave e = load((struct spec){ .heap = 20 });

		attest(&e, atoi(argv[2]), atoi(argv[3]));
		return 0;
	}
	return RUN(argc, argv, tests);
}
