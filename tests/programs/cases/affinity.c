/* On which processors the threads of an enclave's owner may run, as they see it, while they page.
 * For a machine with two processors or more and less EPC than the heap. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <time.h>
#include "check.h"

#define HEAP 512
#define CHUNK 64
#define PATIENCE 60		/* s */

static struct enclave e;
static struct call *c;
static int all;			/* processors that we may run on */

/* What the kernel says; nobody is asked, as sched_getaffinity is. */
static int processors(void)
{
	char line[4096];
	int count = 0;
	FILE *status = fopen("/proc/thread-self/status", "r");

	CHECK(status, "fopen");
	while (fgets(line, sizeof line, status))
		if (sscanf(line, "Cpus_allowed:%*[ \t]%4000[0-9a-f,]", line) == 1)
			for (char *digit = line; *digit; digit++)
				count += *digit == ',' ? 0 : __builtin_popcount(strtol((char[]){ *digit, 0 }, NULL, 16));
	fclose(status);
	return count;
}

static int processors_asked_for(void)
{
	cpu_set_t set;

	CHECK(!sched_getaffinity(0, sizeof set, &set), "sched_getaffinity");
	return CPU_COUNT(&set);
}

static int bind_to(int processor)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (processor < 0 || i == processor)
			CPU_SET(i, &set);
	return sched_setaffinity(0, sizeof set, &set);
}

static void page(void)
{
	static u64 at;

	CHECK_EQ(must(c, OP_CHECK, e.heap + at * PAGE, CHUNK, 1, 0), 0);
	at = (at + CHUNK) % HEAP;
}

static void page_until_bound(void)
{
	for (time_t end = time(NULL) + PATIENCE; processors() != 1; page())
		CHECK(time(NULL) < end, "it never shared a processor with its page service");
}

static void wait_until_free(void)
{
	for (time_t end = time(NULL) + PATIENCE; processors() != all; usleep(5000))
		CHECK(time(NULL) < end, "it pages no more, and still has %d of %d processors", processors(), all);
}

static void start(void)
{
	all = processors();
	e = load((struct spec){ .threads = 2, .heap = HEAP });
	c = by_vdso(&e, 0);
	for (u64 at = 0; at < HEAP; at += CHUNK)
		must(c, OP_FILL, e.heap + at * PAGE, CHUNK, 1, 0);
}

static void free_when_it_pages_no_more(void)
{
	start();
	CHECK(all > 1, "one processor is not enough for this test");
	page_until_bound();
	wait_until_free();
	page_until_bound();
	enclave_unload(&e);
	wait_until_free();
}

static void asked(void)
{
	start();
	page_until_bound();
	CHECK_EQ(processors_asked_for(), all);
	for (int i = 0; i < 50; i++) {
		page();
		CHECK_EQ(processors_asked_for(), all);
	}
}

static void *thread(void *found)
{
	*(int *)found = processors();
	return NULL;
}

static int status_of(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status), "waitpid");
	return WEXITSTATUS(status);
}

static void born_of_a_bound_one(void)
{
	pthread_t other;
	int found = 0;
	pid_t pid;

	start();
	page_until_bound();
	CHECK(!pthread_create(&other, NULL, thread, &found) && !pthread_join(other, NULL), "thread");
	CHECK_EQ(found, all);
	page_until_bound();
	pid = fork();
	if (pid == 0)
		_exit(processors());
	CHECK_EQ(status_of(pid), all);
	page_until_bound();
	pid = vfork();
	if (pid == 0) {
		execl("/proc/self/exe", "affinity", "count", NULL);
		_exit(0);
	}
	CHECK_EQ(status_of(pid), all);
	wait_until_free();
}

static void *run_anew(void *unused)
{
	c = by_vdso(&e, 1);
	page_until_bound();
	execl("/proc/self/exe", "affinity", "count", NULL);
	return unused;
}

static void new_image(void)
{
	pthread_t other;
	pid_t pid;

	start();
	pid = fork();
	if (pid == 0) {
		page_until_bound();
		execl("/proc/self/exe", "affinity", "count", NULL);
		_exit(0);
	}
	CHECK_EQ(status_of(pid), all);
	pid = fork();
	if (pid == 0) {		/* a thread takes over its process's number */
		pthread_create(&other, NULL, run_anew, NULL);
		pthread_join(other, NULL);
		_exit(0);
	}
	CHECK_EQ(status_of(pid), all);
}

static void its_own_choice(void)
{
	int mine;

	start();
	page_until_bound();
	mine = sched_getcpu();
	CHECK(!bind_to(mine), "sched_setaffinity");
	for (int i = 0; i < 100; i++) {
		page();
		CHECK_EQ(processors(), 1);
		CHECK_EQ(sched_getcpu(), mine);
	}
	usleep(300000);
	CHECK_EQ(processors(), 1);
	CHECK(!bind_to(-1), "sched_setaffinity");
	CHECK_EQ(processors(), all);
	page_until_bound();
	wait_until_free();
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "free_when_it_pages_no_more", free_when_it_pages_no_more },
		{ "asked", asked },
		{ "born_of_a_bound_one", born_of_a_bound_one },
		{ "new_image", new_image },
		{ "its_own_choice", its_own_choice },
	};

	if (argc == 2 && !strcmp(argv[1], "count"))
		return processors();
	return RUN(argc, argv, tests);
}
