/* Enclaves and processes: fork, exec, exit, descriptors. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sys/wait.h>
#include "check.h"

static int child_status(pid_t child)
{
	int status;

	CHECK(waitpid(child, &status, 0) == child, "waitpid");
	CHECK(WIFEXITED(status), "child killed by signal %d", WTERMSIG(status));
	return WEXITSTATUS(status);
}

static void fork_shares(void)
{
	struct enclave e = load((struct spec){ .threads = 2, .heap = 200 });
	struct call *c = by_vdso(&e, 0);
	pid_t child;

	must(c, OP_FILL, e.heap, 100, 1, 0);
	child = fork();
	if (child == 0) {
		struct call *mine = by_vdso(&e, 1);

		CHECK_EQ(must(mine, OP_CHECK, e.heap, 100, 1, 0), 0);
		must(mine, OP_FILL, e.heap, 200, 2, 0);
		CHECK_EQ(must(c, OP_CHECK, e.heap, 200, 2, 0), 0);
		_exit(0);
	}
	CHECK_EQ(child_status(child), 0);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 200, 2, 0), 0);
}

/* The parent goes, the enclave stays with the child. */
static void child_outlives_parent(void)
{
	int pipes[2];
	char verdict = 0;
	pid_t middle;

	CHECK(!pipe(pipes), "pipe");
	middle = fork();
	if (middle == 0) {
		struct enclave e = load((struct spec){ .heap = 150 });
		struct call *c = by_vdso(&e, 0);
		pid_t parent = getpid();

		must(c, OP_FILL, e.heap, 150, 5, 0);
		if (fork() == 0) {
			while (getppid() == parent)
				usleep(1000);
			verdict = must(c, OP_CHECK, e.heap, 150, 5, 0) == 0 ? 'y' : 'n';
			_exit(write(pipes[1], &verdict, 1) != 1);
		}
		_exit(0);
	}
	CHECK_EQ(child_status(middle), 0);
	close(pipes[1]);
	CHECK_EQ(read(pipes[0], &verdict, 1), 1);
	CHECK_EQ(verdict, 'y');
}

static const char *self;

static void exec_with_an_enclave(void)
{
	struct enclave e = load((struct spec){ .heap = 50 });
	struct call *c = by_enclu(&e, 0);

	must(c, OP_FILL, e.heap, 50, 1, 0);
	execl("/proc/self/exe", self, "close_while_mapped", "dup_and_many", NULL);
	CHECK(0, "exec: %s", strerror(errno));
}

/* The mapping alone keeps the enclave. */
static void close_while_mapped(void)
{
	struct enclave e = load((struct spec){ .heap = 100 });
	struct call *c = by_vdso(&e, 0);

	must(c, OP_FILL, e.heap, 100, 3, 0);
	close(e.fd);
	CHECK_EQ(must(c, OP_CHECK, e.heap, 100, 3, 0), 0);
}

static void dup_and_many(void)
{
	for (int i = 0; i < 12; i++) {
		struct enclave e = load((struct spec){ .heap = 30 });
		struct call *c = i & 1 ? by_vdso(&e, 0) : by_enclu(&e, 0);
		int second = dup(e.fd);

		must(c, OP_FILL, e.heap, 30, i, 0);
		close(e.fd);
		e.fd = second;
		CHECK_EQ(must(c, OP_CHECK, e.heap, 30, i, 0), 0);
		enclave_unload(&e);
		call_free(c);
	}
}

static struct enclave shared;

static void *go_on_alone(void *first)
{
	struct call *c;

	CHECK(!pthread_join(*(pthread_t *)first, NULL), "join");
	c = by_vdso(&shared, 0);
	must(c, OP_FILL, shared.heap, 200, 4, 0);
	CHECK_EQ(must(c, OP_CHECK, shared.heap, 200, 4, 0), 0);
	enclave_unload(&shared);
	shared = load((struct spec){ .heap = 200 });
	c = by_enclu(&shared, 0);
	must(c, OP_FILL, shared.heap, 200, 5, 0);
	CHECK_EQ(must(c, OP_CHECK, shared.heap, 200, 5, 0), 0);
	exit(0);
}

/* The first thread has ended; what the kernel says of the process by its number is empty then. */
static void first_thread_ends(void)
{
	static pthread_t first, second;

	first = pthread_self();
	shared = load((struct spec){ .heap = 200 });
	CHECK(!pthread_create(&second, NULL, go_on_alone, &first), "no thread");
	pthread_exit(NULL);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "fork_shares", fork_shares },
		{ "child_outlives_parent", child_outlives_parent },
		{ "exec_with_an_enclave", exec_with_an_enclave },
		{ "first_thread_ends", first_thread_ends },
		{ "close_while_mapped", close_while_mapped },
		{ "dup_and_many", dup_and_many },
	};

	self = argv[0];
	return RUN(argc, argv, tests);
}
