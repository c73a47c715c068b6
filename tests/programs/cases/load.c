/* One enclave with a heap, and something to do with it.  For tests that watch from outside and for the
 * benchmark; prints "ready" when the enclave works.
 *
 *     load hold PAGES          fill the heap, then touch it round and round until killed
 *     load watch PAGES         the same from outside: host code reads a word of each page
 *     load once PAGES          fill, check, exit 0; 3 if the contents were wrong, 4 if loading failed
 *     load close PAGES         fill, check, munmap and close, "closed", then wait for a line on stdin
 *     load fork PAGES          the same work, then a child with the mapping that outlives us by 0.3 s
 *     load touch PAGES I N [outside]
 *                              let page I of the heap be evicted untouched, N times load and change it and let it
 *                              be evicted again, then read it, from inside or from outside
 *     load pairs PAGES N SEED  time N random single-word updates; prints "PAGE TICKS" of each
 *     load loads PAGES B SEED  push the heap out with a second enclave of B pages, which then goes; time one
 *                              update of each page, in random order, while nothing needs to be evicted
 *     load exit STATUS         exit with STATUS after having used an enclave
 *     load signal NUMBER       die of a signal inside the enclave's owner
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/resource.h>
#include "check.h"

static struct enclave e;
static struct call *c;
static u64 pages;

static void load_only(void)
{
	if (enclave_load(&e, (struct spec){ .heap = pages, .threads = 2 })) {
		printf("%s: %s\n", e.step, strerror(e.error));
		fflush(stdout);
		_exit(4);
	}
	c = call_new(e.tcs[0], vdso_by_dynamic());
}

static void start(void)
{
	load_only();
	must(c, OP_FILL, e.heap, pages, 1, 0);
	printf("ready\n");
	fflush(stdout);
}

static int right(void)
{
	return must(c, OP_CHECK, e.heap, pages, 1, 0) == 0;
}

static int hold(void)
{
	while (right())
		;
	printf("the heap changed\n");
	return 3;
}

static int watch(void)
{
	static const char changed[] = "the heap changed\n";
	u64 *first = calloc(pages, 8);

	for (u64 round = 0; first; round++)
		for (u64 i = 0; i < pages; i++) {
			u64 word = *(volatile u64 *)(e.heap + i * PAGE);

			if (round && word != first[i])
				return write(1, changed, sizeof changed - 1) > 0 ? 3 : 2;
			first[i] = word;
		}
	return 2;
}

static int close_and_wait(void)
{
	char line[8];

	if (!right())
		return 3;
	enclave_unload(&e);
	printf("closed\n");
	fflush(stdout);
	return fgets(line, sizeof line, stdin) ? 0 : 1;
}

static int fork_and_leave(void)
{
	if (fork() == 0) {
		usleep(300000);
		c = call_new(e.tcs[1], vdso_by_dynamic());
		_exit(right() ? 0 : 3);
	}
	return right() ? 0 : 3;
}

/* Work on the pages before this one only: on a small machine it is evicted. */
static void leave_alone(u64 page)
{
	for (int i = 0; i < 3; i++)
		must(c, OP_FILL, e.heap, page, 1, 0);
}

/* Exit status 5: the access came back as an exception (inside), 3: with wrong contents. */
static int touch(u64 page, u64 changes, int outside)
{
	u64 value, want = changes;	/* the page was added with zeros */

	load_only();
	leave_alone(page);
	for (u64 i = 1; i <= changes; i++) {
		must(c, OP_PUT, e.heap + page * PAGE, i, 0, 0);
		leave_alone(page);
	}
	printf("touching page %lu of the enclave\n", (e.heap - e.base) / PAGE + page);
	fflush(stdout);
	if (outside)
		return *(volatile u64 *)(e.heap + page * PAGE) == want ? 0 : 3;
	if (ask(c, &value, OP_GET, e.heap + page * PAGE, 0, 0, 0)) {
		printf("exception: vector %u, code %#x, page %ld\n", c->result.vector, c->result.error_code,
		       (long)(c->result.address - e.heap) / (long)PAGE);
		return 5;
	}
	return value == want ? 0 : 3;
}

/* Touch the listed heap pages inside the enclave, timing each, and print what each took. */
static int time_touches(u64 *list, u64 n)
{
	u64 *ticks = calloc(n, 8);

	if (!ticks)
		return 2;
	for (u64 i = 0; i < n; i++) {
		list[i] = e.heap + list[i] * PAGE;
		ticks[i] = 1;		/* its page is there: only the listed pages fault while timed */
	}
	must(c, OP_TIMES, (u64)list, n, (u64)ticks, 0);
	for (u64 i = 0; i < n; i++)
		printf("%lu %lu\n", (list[i] - e.heap) / PAGE, ticks[i]);
	return 0;
}

static int time_pairs(u64 n, u64 seed)
{
	u64 *list = malloc(n * 8);

	for (u64 i = 0; list && i < n; i++)
		list[i] = next_random(&seed) % pages;
	return list ? time_touches(list, n) : 2;
}

static int time_loads(u64 other_pages, u64 seed)
{
	u64 *list = calloc(pages, 8);
	struct enclave other;
	struct call *there;

	if (!list || enclave_load(&other, (struct spec){ .heap = other_pages }))
		return 4;
	there = call_new(other.tcs[0], vdso_by_dynamic());
	for (int i = 0; i < 2; i++)
		must(there, OP_FILL, other.heap, other_pages, 2, 0);
	enclave_unload(&other);
	usleep(300000);			/* its pages are given back behind our back */
	for (u64 i = 0; i < pages; i++) {
		u64 j = next_random(&seed) % (i + 1);

		list[i] = list[j];
		list[j] = i;
	}
	return time_touches(list, pages);
}

static int die(int number)
{
	setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
	signal(number, SIG_DFL);
	raise(number);
	return 0;
}

static int usage(void)
{
	fprintf(stderr, "load hold|watch|once|close|fork|touch|pairs|loads|exit|signal NUMBER …: see the source\n");
	return 2;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 2 ? argv[1] : "";
	u64 number = argc > 2 ? strtoul(argv[2], NULL, 0) : 0;

	pages = !strcmp(mode, "exit") || !strcmp(mode, "signal") ? 20 : number;
	if (argc < 3 || !pages)
		return usage();
	if (!strcmp(mode, "touch") && argc > 4)
		return touch(strtoul(argv[3], NULL, 0), strtoul(argv[4], NULL, 0), argc > 5);
	start();
	if (!strcmp(mode, "hold"))
		return hold();
	if (!strcmp(mode, "watch"))
		return watch();
	if (!strcmp(mode, "once"))
		return right() ? 0 : 3;
	if (!strcmp(mode, "close"))
		return close_and_wait();
	if (!strcmp(mode, "fork"))
		return fork_and_leave();
	if (!strcmp(mode, "pairs") && argc > 4)
		return time_pairs(strtoul(argv[3], NULL, 0), strtoul(argv[4], NULL, 0));
	if (!strcmp(mode, "loads") && argc > 4)
		return time_loads(strtoul(argv[3], NULL, 0), strtoul(argv[4], NULL, 0));
	if (!strcmp(mode, "exit"))
		return right() ? (int)number : 3;
	if (!strcmp(mode, "signal"))
		return die(number);
	return usage();
}
