/* The ways that need no trap where an enclave is shared or changes: one TCS that several want, a TCS and what it needs
 * that become others, an enclave at another's place, a descriptor that is sent on.
 *
 * The first entry by a TCS traps; so each case enters a few times first (warm). */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "check.h"

static void warm(struct call *c)
{
	for (int i = 0; i < 3; i++)
		CHECK_EQ(must(c, OP_NOP, 0, 0, 0, 0), 0);
}

/* ---- one TCS, several who want it ---- */

struct shared {
	volatile u64 count, stop;
};

static struct shared *share(void)
{
	struct shared *s = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(s != MAP_FAILED, "mmap");
	return s;
}

static int status_of(pid_t child)
{
	int status;

	CHECK(waitpid(child, &status, 0) == child, "waitpid");
	return status;
}

static void until(volatile u64 *count)
{
	while (!*count)
		usleep(1000);
}

static void busy_for_relatives(void)
{
	struct enclave e = load((struct spec){ .threads = 2 });
	struct call *c = by_enclu(&e, 0);
	struct shared *s = share();
	struct caught caught;
	pid_t child;

	warm(c);
	child = fork();
	if (child == 0) {
		warm(c);
		must(c, OP_SPIN, (u64)&s->count, (u64)&s->stop, 0, 0);
		warm(c);
		_exit(0);
	}
	until(&s->count);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(guarded_ask(by_enclu(&e, 0), &caught, OP_NOP, 0, 0, 0, 0), SIGSEGV);
		warm(by_enclu(&e, 1));
	}
	s->stop = 1;
	CHECK_EQ(status_of(child), 0);
	warm(c);
}

static void killed_inside(void)
{
	struct enclave e = load((struct spec){ 0 });
	struct call *c = by_vdso(&e, 0);

	warm(c);
	for (int i = 0; i < 5; i++) {
		struct shared *s = share();
		pid_t child = fork();

		if (child == 0) {
			warm(c);
			must(c, OP_SPIN, (u64)&s->count, (u64)&s->stop, 0, 0);
		}
		until(&s->count);
		kill(child, SIGKILL);
		CHECK_EQ(status_of(child), SIGKILL);
		warm(c);
	}
}

static void *spin(void *argument)
{
	struct shared *s = ((void **)argument)[1];
	struct call *c = ((void **)argument)[0];

	warm(c);
	must(c, OP_SPIN, (u64)&s->count, (u64)&s->stop, 0, 0);
	warm(c);
	return NULL;
}

/* fork by one thread while another is inside. */
static void forked_while_inside(void)
{
	struct enclave e = load((struct spec){ .threads = 2 });
	struct shared *s = share();
	void *argument[2] = { by_enclu(&e, 0), s };
	struct caught caught;
	pthread_t thread;
	pid_t child;

	CHECK(!pthread_create(&thread, NULL, spin, argument), "pthread_create");
	until(&s->count);
	child = fork();
	if (child == 0) {
		CHECK_EQ(guarded_ask(by_enclu(&e, 0), &caught, OP_NOP, 0, 0, 0, 0), SIGSEGV);
		warm(by_vdso(&e, 1));
		_exit(0);
	}
	CHECK_EQ(status_of(child), 0);
	s->stop = 1;
	pthread_join(thread, NULL);
	warm(by_vdso(&e, 1));
}

static void exec_while_inside(void)
{
	struct enclave e = load((struct spec){ .threads = 2 });
	struct shared *s = share();
	void *argument[2] = { by_enclu(&e, 0), s };
	pthread_t thread;
	pid_t child = fork();

	if (child == 0) {
		CHECK(!pthread_create(&thread, NULL, spin, argument), "pthread_create");
		until(&s->count);
		execl("/bin/true", "true", NULL);
		_exit(9);
	}
	CHECK_EQ(status_of(child), 0);
	warm(by_enclu(&e, 0));
}

/* ---- the TCS and what it needs change ---- */

static void trimmed(void)
{
	struct enclave e = load((struct spec){ .threads = 2 });
	struct call *c = by_vdso(&e, 0);
	u64 result;

	warm(c);
	CHECK_EQ(modify_type(&e, e.tcs[0], PAGE, TYPE_TRIM, &result), 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_NOP, 0, 0, 0, 0), 14, 0x8005, e.tcs[0]);
	warm(by_vdso(&e, 1));
}

static void frame_restricted(void)
{
	struct enclave e = load((struct spec){ .threads = 2 });
	struct call *c = by_vdso(&e, 0);
	u64 frame = ssa_address(&e, 0, 0), result;

	warm(c);
	CHECK_EQ(restrict_permissions(&e, frame, PAGE, R, &result), 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_NOP, 0, 0, 0, 0), 14, 0x8007, frame);
}

/* The processor looks at the EPCM, not at what the host's mapping allows. */
static void frame_not_writable_outside(void)
{
	struct enclave e = load((struct spec){ 0 });
	struct call *c = by_vdso(&e, 0);

	warm(c);
	CHECK(!mprotect((void *)ssa_address(&e, 0, 0), PAGE, PROT_READ), "mprotect");
	warm(c);
	CHECK(!mprotect((void *)ssa_address(&e, 0, 0), PAGE, PROT_READ | PROT_WRITE), "mprotect");
	warm(c);
}

static void another_enclave_at_its_place(void)
{
	for (int i = 0; i < 6; i++) {
		struct enclave e = load((struct spec){ .base_zero = 1, .start = 0x10000, .size = 1 << 20, .heap = 2 });
		struct call *c = i & 1 ? by_enclu(&e, 0) : by_vdso(&e, 0);
		u64 value;

		warm(c);
		CHECK_EQ(must(c, OP_GET, e.heap, 0, 0, 0), 0);
		must(c, OP_PUT, e.heap, 77 + i, 0, 0);
		CHECK_EQ(must(c, OP_GET, e.heap, 0, 0, 0), 77 + i);
		if (i % 3 == 2) {	/* unmapped while the file is open: nothing to enter */
			munmap((void *)0x10000, (1 << 20) - 0x10000);
			CHECK_EQ(ask(by_vdso(&e, 0), &value, OP_NOP, 0, 0, 0, 0), EXCEPTION);
			close(e.fd);
		} else {
			enclave_unload(&e);
		}
	}
}

static void evicted_between_entries(void)
{
	struct enclave e = load((struct spec){ .threads = 4, .heap = 300 });

	for (int round = 0; round < 4; round++) {
		for (unsigned t = 0; t < 4; t++)
			warm(by_vdso(&e, t));
		must(by_enclu(&e, round), OP_FILL, e.heap, 300, round, 0);
		CHECK_EQ(must(by_enclu(&e, 3 - round), OP_CHECK, e.heap, 300, round, 0), 0);
	}
}

static void many(void)
{
	enum { ENCLAVES = 8, THREADS = 64 };
	static struct enclave e[ENCLAVES];

	for (int i = 0; i < ENCLAVES; i++)
		e[i] = load((struct spec){ .threads = THREADS });
	for (int round = 0; round < 2; round++)
		for (int i = 0; i < ENCLAVES; i++)
			for (unsigned t = 0; t < THREADS; t++) {
				struct call *c = by_vdso(&e[i], t);

				warm(c);
				call_free(c);
			}
}

/* ---- a process that is sent the enclave's descriptor ---- */

static void send_fd(int to, int fd)
{
	char room[CMSG_SPACE(sizeof fd)] = { 0 }, byte = 0;
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);

	c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	CHECK_EQ(sendmsg(to, &message, 0), 1);
}

static int receive_fd(int from)
{
	char room[CMSG_SPACE(sizeof(int))], byte;
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
	int fd;

	CHECK_EQ(recvmsg(from, &message, 0), 1);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	return fd;
}

static void map_at(u64 start, u64 end, int prot, int fd)
{
	CHECK(mmap((void *)start, end - start, prot, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0) == (void *)start, "mmap");
}

static void descriptor_passed_on(void)
{
	struct enclave *e = (struct enclave *)share();
	int pair[2], fd;
	pid_t child;

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
	child = fork();
	if (child == 0) {
		u64 threads;

		fd = receive_fd(pair[1]);
		threads = e->tcs[0] - STACK_PAGES * PAGE;
		map_at(e->base, threads, PROT_READ | PROT_EXEC, fd);
		map_at(threads, e->heap + 2 * PAGE, PROT_READ | PROT_WRITE, fd);
		for (int i = 0; i < 3; i++) {
			warm(by_vdso(e, 0));
			warm(by_enclu(e, 1));
		}
		must(by_vdso(e, 1), OP_PUT, e->heap, 4711, 0, 0);
		_exit(0);
	}
	*e = load((struct spec){ .threads = 3, .heap = 2 });
	warm(by_vdso(e, 0));
	send_fd(pair[0], e->fd);
	for (int i = 0; i < 10; i++)
		warm(by_vdso(e, 2));
	CHECK_EQ(status_of(child), 0);
	CHECK_EQ(must(by_vdso(e, 0), OP_GET, e->heap, 0, 0, 0), 4711);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "busy_for_relatives", busy_for_relatives },
		{ "killed_inside", killed_inside },
		{ "forked_while_inside", forked_while_inside },
		{ "exec_while_inside", exec_while_inside },
		{ "trimmed", trimmed },
		{ "frame_restricted", frame_restricted },
		{ "frame_not_writable_outside", frame_not_writable_outside },
		{ "another_enclave_at_its_place", another_enclave_at_its_place },
		{ "evicted_between_entries", evicted_between_entries },
		{ "many", many },
		{ "descriptor_passed_on", descriptor_passed_on },
	};

	return RUN(argc, argv, tests);
}
