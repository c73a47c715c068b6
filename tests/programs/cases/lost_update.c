/* Threads of two processes increment counters all over one enclave's heap, half of them atomically, half
 * in slots of their own by plain read-modify-write.  Afterwards every counter is exact.
 *
 *     lost_update PAGES UPDATES BURST WORKERS PROCESSES
 *
 * UPDATES is per worker (thread), WORKERS per process.  BURST updates in a row hit one page, so that it is
 * being written when it is chosen for eviction.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include "check.h"

static struct enclave e;
static u64 pages, updates, burst, workers, processes;
static struct updates *jobs;

static void *work(void *argument)
{
	struct updates *u = argument;
	struct call *c = u->worker & 1 ? by_enclu(&e, u->worker) : by_vdso(&e, u->worker);

	must(c, OP_UPDATES, (u64)u, 0, 0, 0);
	call_free(c);
	return NULL;
}

static void work_of_process(u64 process)
{
	pthread_t id[MAX_THREADS];

	for (u64 i = 0; i < workers; i++)
		CHECK(!pthread_create(&id[i], NULL, work, &jobs[process * workers + i]), "pthread_create");
	for (u64 i = 0; i < workers; i++)
		pthread_join(id[i], NULL);
}

static void expect(u64 *wanted)
{
	for (u64 w = 0; w < workers * processes; w++) {
		u64 random = jobs[w].seed;

		for (u64 done = 0; done < updates;) {
			u64 page = next_random(&random) % pages;

			for (u64 i = 0; i < burst && done < updates; i++, done++) {
				int atomic;
				u64 slot = pick_slot(next_random(&random), w, &atomic);

				wanted[page * 512 + slot]++;
			}
		}
	}
}

static void compare(void)
{
	u64 *wanted = calloc(pages, PAGE), lost = 0, wrong = 0, found[512];
	struct call *c = by_vdso(&e, 0);

	CHECK(wanted, "malloc");
	expect(wanted);
	for (u64 page = 0; page < pages; page++) {
		must(c, OP_COPY, (u64)found, e.heap + page * PAGE, PAGE, 0);
		for (u64 slot = 0; slot < 512; slot++) {
			wrong += found[slot] != wanted[page * 512 + slot];
			lost += wanted[page * 512 + slot] - found[slot];
		}
	}
	CHECK(!wrong, "%lu counters are wrong; %ld of %lu updates lost", wrong, (long)lost,
	      updates * workers * processes);
}

static void lost_update(void)
{
	int status;

	e = load((struct spec){ .threads = workers * processes, .heap = pages });
	jobs = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(jobs != MAP_FAILED, "mmap");
	for (u64 w = 0; w < workers * processes; w++)
		jobs[w] = (struct updates){ .base = e.heap, .pages = pages, .count = updates, .burst = burst,
					    .worker = w, .seed = 88172645463325252UL + w * 7919 };
	for (u64 p = 1; p < processes; p++)
		if (fork() == 0) {
			work_of_process(p);
			_exit(0);
		}
	work_of_process(0);
	for (u64 p = 1; p < processes; p++) {
		CHECK(wait(&status) > 0, "wait");
		CHECK(!status, "a process ended with status %#x", status);
	}
	compare();
}

int main(int argc, char **argv)
{
	static const struct test tests[] = { { "lost_update", lost_update } };

	if (argc != 6) {
		fprintf(stderr, "usage: lost_update PAGES UPDATES BURST WORKERS PROCESSES\n");
		return 2;
	}
	pages = strtoul(argv[1], NULL, 0);
	updates = strtoul(argv[2], NULL, 0);
	burst = strtoul(argv[3], NULL, 0);
	workers = strtoul(argv[4], NULL, 0);
	processes = strtoul(argv[5], NULL, 0);
	if (!pages || !burst || !workers || !processes || workers * processes > MAX_THREADS)
		return 2;
	return RUN(1, argv, tests);
}
