/* Threads: clone onto a free TCS, their end, and futexes.
 *
 * A futex's queue is kept inside; a thread that waits sleeps on a word of its own in host memory.
 */
#include <linux/futex.h>
#include <linux/sched.h>
#include "inside.h"

static volatile u32 locked;
static u64 tickets;

/* One lock for memory, threads and futexes. */
void lock(void)
{
	for (u32 tries = 1; __atomic_exchange_n(&locked, 1, __ATOMIC_ACQUIRE); tries++)
		if (tries % 64)
			__builtin_ia32_pause();
		else
			host_call(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
}

void unlock(void)
{
	__atomic_store_n(&locked, 0, __ATOMIC_RELEASE);
}

static struct thread *thread_of(u64 index)
{
	return (struct thread *)(self()->base + THREADS + index * THREAD_SIZE);
}

static long wake(u64 address, long most)
{
	long woken = 0;

	for (; woken < most; woken++) {
		struct thread *first = NULL;

		lock();
		for (u64 i = 0; i < OS_THREADS; i++) {
			struct thread *t = thread_of(i);

			if (t->waits_for == address && (!first || t->ticket < first->ticket))
				first = t;
		}
		if (first)
			first->waits_for = 0;
		unlock();
		if (!first)
			break;
		__atomic_store_n(&first->block->event, 1, __ATOMIC_SEQ_CST);
		host_call(SYS_futex, (long)&first->block->event, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
	}
	return woken;
}

static long wait(u64 address, u32 value, long operation, u64 timeout, u64 bits)
{
	struct thread *t = self();
	struct block *block = t->block;
	u64 until = timeout ? (u64)block->data : 0;
	long result = 0;

	if (timeout && !in_enclave(timeout, 16))
		return -EFAULT;
	lock();
	if (*(volatile u32 *)address != value) {
		unlock();
		return -EAGAIN;
	}
	block->event = 0;
	t->waits_for = address;
	t->ticket = tickets++;
	unlock();
	while (t->waits_for && result != -ETIMEDOUT && result != -EINTR) {
		if (timeout)
			copy(block->data, (void *)timeout, 16);
		result = host_call(SYS_futex, (long)&block->event, operation | FUTEX_PRIVATE_FLAG, 0, until, 0, bits);
	}
	lock();
	if (!t->waits_for)
		result = 0;
	t->waits_for = 0;
	unlock();
	return result;
}

static long futex(const long *a)
{
	long operation = a[1] & FUTEX_CMD_MASK;

	if (!in_enclave(a[0], 4))
		return -EFAULT;
	if (operation == FUTEX_WAKE || operation == FUTEX_WAKE_BITSET)
		return wake(a[0], a[2]);
	if (operation == FUTEX_WAIT || operation == FUTEX_WAIT_BITSET)
		return wait(a[0], a[2], a[1], a[3], a[5]);
	return -ENOSYS;
}

static long clone(const struct context *c, const long *a)
{
	struct thread *t = NULL;
	struct context *child;
	struct block *block = self()->block;
	const long flags = a[0];

	if ((flags & (CLONE_VM | CLONE_THREAD)) != (CLONE_VM | CLONE_THREAD))
		return -ENOSYS;
	lock();
	for (u64 i = 0; i < OS_THREADS && !t; i++)
		if (!thread_of(i)->running)
			t = thread_of(i);
	if (t)
		t->running = 1;
	unlock();
	if (!t)
		return -EAGAIN;
	child = context_of(t);
	copy(child, c, sizeof *child);
	child->r.rip += 2;
	child->r.rcx = child->r.rip;
	child->r.rax = 0;
	child->r.rsp = a[1];
	if (flags & CLONE_SETTLS)
		child->r.fsbase = a[4];
	t->tid = info.pid + t->index;
	t->clear_tid = flags & CLONE_CHILD_CLEARTID ? a[3] : 0;
	if (flags & CLONE_PARENT_SETTID)
		*(u32 *)a[2] = t->tid;
	if (flags & CLONE_CHILD_SETTID)
		*(u32 *)a[3] = t->tid;
	block->ask = ASK_THREAD;
	block->args[0] = t->index;
	leave();
	return t->tid;
}

static void __attribute__((noreturn)) end_thread(void)
{
	struct thread *t = self();

	if (t->clear_tid) {
		__atomic_store_n((u32 *)t->clear_tid, 0, __ATOMIC_SEQ_CST);
		wake(t->clear_tid, 1);
	}
	t->block->ask = ASK_THREAD_ENDED;
	t->running = 0;		/* the host enters this TCS again only when the thread has left it */
	leave_for_good();
}

static void __attribute__((noreturn)) end_all(long status)
{
	struct block *block = self()->block;

	block->ask = ASK_EXIT;
	block->args[0] = status;
	leave_for_good();
}

long thread_call(const struct context *c, long number, const long *a)
{
	switch (number) {
	case SYS_futex:
		return futex(a);
	case SYS_clone:
		return clone(c, a);
	case SYS_exit:
		end_thread();
	case SYS_exit_group:
		end_all(a[0]);
	case SYS_gettid:
		return self()->tid;
	case SYS_set_tid_address:
		self()->clear_tid = a[0];
		return self()->tid;
	}
	return -ENOSYS;
}
