/* Paging at speed, for the benchmark: nothing is checked here that the tests do not check elsewhere.
 *
 *     paging add PAGES MEASURE      one ADD_PAGES of PAGES pages of random bytes (MEASURE: 1 or 0); prints "ns N"
 *     paging sweep PAGES ROUNDS     fill the heap, then write to its pages in order, ROUNDS times; prints "ns N"
 *     paging threads PAGES N T SEED T threads update N words each in random pages; prints the ticks of each
 *     paging idle PAGES ZERO        fill the heap (with zeros if ZERO), print "ready", wait for the end of stdin
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include "check.h"

static struct enclave e;
static u64 pages, touches, *lists[MAX_THREADS], *ticks[MAX_THREADS];

static u64 now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000UL + t.tv_nsec;
}

static int add(int measured)
{
	static u8 secs[4096] __attribute__((aligned(4096)));
	struct { u64 flags; u8 reserved[56]; } info __attribute__((aligned(64))) = { R | W | TYPE_REG << 8, { 0 } };
	struct { u64 src, offset, length, secinfo, flags, count; } request = { 0 };
	u64 size = 2 * PAGE, base, start, argument = (u64)secs, *source;
	int fd = open("/dev/sgx_enclave", O_RDWR);

	while (size < pages * PAGE)
		size *= 2;
	source = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	base = (u64)mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (fd < 0 || source == MAP_FAILED || base == (u64)MAP_FAILED)
		return 2;
	for (u64 word = 0, seed = 88172645463325252; word < pages * 512; word++)
		source[word] = next_random(&seed);
	base = (base + size - 1) & ~(size - 1);
	memcpy(secs, &size, 8);
	memcpy(secs + 8, &base, 8);
	secs[16] = 1;
	secs[48] = ATTR_MODE64 | ATTR_DEBUG;
	secs[56] = 3;
	if (ioctl(fd, SGX_CREATE, &argument))
		return 3;
	request.src = (u64)source;
	request.length = pages * PAGE;
	request.secinfo = (u64)&info;
	request.flags = measured;
	start = now();
	while (request.length) {
		if (ioctl(fd, SGX_ADD, &request) && errno != EINTR)
			return 4;
		request.src += request.count;
		request.offset += request.count;
		request.length -= request.count;
		request.count = 0;
	}
	printf("ns %lu\n", now() - start);
	return 0;
}

static int sweep(u64 rounds)
{
	struct call *c = call_new(e.tcs[0], vdso_by_dynamic());
	u64 *list = calloc(pages, 8), *took = calloc(pages, 8), start;

	must(c, OP_FILL, e.heap, pages, 1, 0);
	for (u64 i = 0; i < pages; i++) {
		list[i] = e.heap + i * PAGE;
		took[i] = 1;
	}
	start = now();
	for (u64 i = 0; i < rounds; i++)
		must(c, OP_TIMES, (u64)list, pages, (u64)took, 0);
	printf("ns %lu\n", now() - start);
	return 0;
}

static void *touch(void *argument)
{
	u64 thread = (u64)argument;
	struct call *c = call_new(e.tcs[thread], vdso_by_dynamic());

	must(c, OP_TIMES, (u64)lists[thread], touches, (u64)ticks[thread], 0);
	return NULL;
}

static int threads(u64 count, u64 seed)
{
	struct call *c = call_new(e.tcs[0], vdso_by_dynamic());
	pthread_t id[MAX_THREADS];

	must(c, OP_FILL, e.heap, pages, 1, 0);
	for (u64 t = 0; t < count; t++) {
		lists[t] = calloc(touches, 8);
		ticks[t] = calloc(touches, 8);
		for (u64 i = 0; i < touches; i++) {
			lists[t][i] = e.heap + next_random(&seed) % pages * PAGE;
			ticks[t][i] = 1;
		}
	}
	for (u64 t = 0; t < count; t++)
		pthread_create(&id[t], NULL, touch, (void *)t);
	for (u64 t = 0; t < count; t++)
		pthread_join(id[t], NULL);
	for (u64 t = 0; t < count; t++)
		for (u64 i = 0; i < touches; i++)
			printf("%lu %lu\n", (lists[t][i] - e.heap) / PAGE, ticks[t][i]);
	return 0;
}

static int idle(int zero)
{
	struct call *c = call_new(e.tcs[0], vdso_by_dynamic());

	if (zero)
		for (u64 i = 0; i < pages; i++)
			must(c, OP_PUT, e.heap + i * PAGE, 0, 0, 0);
	else
		must(c, OP_FILL, e.heap, pages, 1, 0);
	printf("ready\n");
	fflush(stdout);
	return getchar() == EOF ? 0 : 1;
}

int main(int argc, char **argv)
{
	u64 arguments[4] = { 0 };

	for (int i = 2; i < argc && i < 6; i++)
		arguments[i - 2] = strtoul(argv[i], NULL, 0);
	pages = arguments[0];
	touches = arguments[1];
	if (argc < 4 || !pages || (!strcmp(argv[1], "threads") && argc < 6) || arguments[2] > MAX_THREADS) {
		fprintf(stderr, "paging add|sweep|threads|idle PAGES …: see the source\n");
		return 2;
	}
	if (!strcmp(argv[1], "add"))
		return add(touches != 0);
	if (enclave_load(&e, (struct spec){ .heap = pages, .threads = arguments[2] ? arguments[2] : 1 })) {
		printf("%s: %s\n", e.step, strerror(e.error));
		return 4;
	}
	if (!strcmp(argv[1], "sweep"))
		return sweep(touches);
	if (!strcmp(argv[1], "idle"))
		return idle(touches != 0);
	return threads(arguments[2], arguments[3]);
}
