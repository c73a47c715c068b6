/* Many of one thing: `together N` threads that open and own at the same time, `enclaves N` in one
 * process, `again N [K]` times closed and made anew at changing addresses, `fds N` descriptors left.
 * Each prints one line: what, how many, how many failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include "check.h"

static pthread_barrier_t start;

static void *one(void *unused)
{
	struct enclave e;
	struct call *c;
	long bad;

	(void)unused;
	pthread_barrier_wait(&start);
	e = load((struct spec){ .heap = 4 });
	c = by_enclu(&e, 0);
	must(c, OP_FILL, e.heap, 4, 3, 0);
	bad = must(c, OP_CHECK, e.heap, 4, 3, 0);
	enclave_unload(&e);
	return (void *)bad;
}

static long together(long n)
{
	pthread_t ids[64];
	void *result;
	long bad = 0;

	pthread_barrier_init(&start, NULL, n);
	for (long i = 0; i < n; i++)
		pthread_create(&ids[i], NULL, one, NULL);
	for (long i = 0; i < n; i++) {
		pthread_join(ids[i], &result);
		bad += (long)result;
	}
	return bad;
}

/* All alive at once, each with contents of its own, entered in turn. */
static long enclaves(long n)
{
	static struct enclave all[64];
	struct call *calls[64];
	long bad = 0;

	for (long i = 0; i < n; i++) {
		all[i] = load((struct spec){ .heap = 8 });
		calls[i] = i % 2 ? by_vdso(&all[i], 0) : by_enclu(&all[i], 0);
		must(calls[i], OP_FILL, all[i].heap, 8, i + 1, 0);
	}
	for (int round = 0; round < 3; round++)
		for (long i = 0; i < n; i++)
			bad += must(calls[i], OP_CHECK, all[i].heap, 8, i + 1, 0) != 0;
	for (long i = 0; i < n; i++)
		enclave_unload(&all[i]);
	return bad;
}

/* ECREATE and close, the address space and the descriptor used again; now and then at another place. */
static long again(long n, long places)
{
	static u8 secs[4096] __attribute__((aligned(4096)));
	const u64 size = 1 << 20;
	u8 *area = mmap(NULL, (places + 1) * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	u64 base = ((u64)area + size - 1) & ~(size - 1);
	long bad = 0;

	for (long i = 0; i < n; i++) {
		int fd = open("/dev/sgx_enclave", O_RDWR);
		u64 at = base + i % places * size, argument = (u64)secs;

		memset(secs, 0, sizeof secs);
		*(u64 *)secs = size;
		*(u64 *)(secs + 8) = at;
		*(u32 *)(secs + 16) = 1;
		*(u64 *)(secs + 48) = ATTR_DEBUG | ATTR_MODE64;
		*(u64 *)(secs + 56) = 3;
		bad += fd < 0 || ioctl(fd, SGX_CREATE, &argument);
		if (fd >= 0)
			close(fd);
	}
	return bad;
}

/* With n descriptors left: opens until none is; then frees one and owns an enclave. */
static long fds(long n)
{
	struct rlimit limit = { n + 4, n + 4 };
	int held[64], count = 0;
	struct enclave e;

	for (int fd = 3; fd < 64; fd++)
		close(fd);
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
	while (count < 64 && (held[count] = open("/dev/sgx_enclave", O_RDWR)) >= 0)
		count++;
	CHECK_EQ(errno, EMFILE);
	CHECK(count == n + 1 || count == n, "%d devices with room for %ld", count, n + 1);
	close(held[--count]);	/* one is left, for the enclave, and none for anybody else */
	if (!enclave_load(&e, (struct spec){ .heap = 4 }))
		return must(by_enclu(&e, 0), OP_GET, e.heap, 0, 0, 0);	/* whoever can raise limits did */
	CHECK(e.error == EMFILE || e.error == ENFILE, "%s: %s", e.step, strerror(e.error));
	enclave_unload(&e);
	close(held[--count]);
	e = load((struct spec){ .heap = 4 });
	must(by_enclu(&e, 0), OP_FILL, e.heap, 4, 3, 0);
	return must(by_vdso(&e, 0), OP_CHECK, e.heap, 4, 3, 0);
}

int main(int argc, char **argv)
{
	long n = argc > 2 ? atol(argv[2]) : 1, bad;

	if (!strcmp(argv[1], "together"))
		bad = together(n);
	else if (!strcmp(argv[1], "enclaves"))
		bad = enclaves(n);
	else if (!strcmp(argv[1], "again"))
		bad = again(n, argc > 3 ? atol(argv[3]) : 1);
	else
		bad = fds(n);
	printf("%s %ld %ld\n", argv[1], n, bad);
	return bad != 0;
}
