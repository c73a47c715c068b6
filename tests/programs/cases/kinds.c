/* Ways in which programs come to be and look at each other, each with an enclave at the end of it. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include "check.h"

static void use_an_enclave(void)
{
	struct enclave e = load((struct spec){ .heap = 20 });
	struct call *c = by_vdso(&e, 0);

	must(c, OP_FILL, e.heap, 20, 5, 0);
	CHECK_EQ(must(by_enclu(&e, 0), OP_CHECK, e.heap, 20, 5, 0), 0);
	enclave_unload(&e);
}

static void expect_success(pid_t child)
{
	int status;

	CHECK(waitpid(child, &status, 0) == child, "waitpid: %s", strerror(errno));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child: status %#x", status);
}

/* The child borrows our memory until it execs. */
static void vfork_and_exec(void)
{
	pid_t child;

	use_an_enclave();
	child = vfork();
	if (child == 0) {
		execl("/proc/self/exe", "kinds", "plain", NULL);
		_exit(9);
	}
	expect_success(child);
	use_an_enclave();
}

static void *exec_self(void *unused)
{
	execl("/proc/self/exe", "kinds", "plain", NULL);
	return unused;
}

static void *stay_inside(void *call)
{
	for (;;)
		must(call, OP_NOP, 0, 0, 0, 0);
	return NULL;
}

/* Not the first thread execs, while another is in an enclave. */
static void thread_execs(void)
{
	static struct enclave e;
	pthread_t id;
	pid_t child = fork();

	if (child == 0) {
		e = load((struct spec){ .heap = 20 });
		pthread_create(&id, NULL, stay_inside, by_vdso(&e, 0));
		usleep(20000);
		pthread_create(&id, NULL, exec_self, NULL);
		pause();
	}
	expect_success(child);
}

/* A program that traces its children, which use an enclave under it. */
static void is_a_debugger(void)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		CHECK(!ptrace(PTRACE_TRACEME, 0, 0, 0), "TRACEME: %s", strerror(errno));
		raise(SIGSTOP);
		use_an_enclave();
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == (SIGSTOP << 8 | 0x7f), "it stopped by %#x", status);
	CHECK(!ptrace(PTRACE_CONT, child, 0, 0), "CONT: %s", strerror(errno));
	expect_success(child);
	use_an_enclave();
}

static void plain(void)
{
	use_an_enclave();
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "vfork_and_exec", vfork_and_exec },
		{ "thread_execs", thread_execs },
		{ "is_a_debugger", is_a_debugger },
		{ "plain", plain },
	};

	return RUN(argc, argv, tests);
}
