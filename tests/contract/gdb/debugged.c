/* A program with an enclave, two threads and debug information, to look at with gdb. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
#include "enclave.h"

#define HEAP 200	/* pages: more than the machine has EPC */

struct enclave e;
struct call *calls[2];
volatile u64 counter, stop, inside;
void *vdso_by_dynamic(void);

__attribute__((noinline)) u64 leaf(u64 n)
{
	counter += n;
	return counter;
}

__attribute__((noinline)) u64 middle(u64 n)
{
	return leaf(n) + 1;
}

/* All of the enclave's heap is written, so that most of it is evicted. */
static void load(void)
{
	if (enclave_load(&e, (struct spec){ .heap = HEAP, .threads = 2 }))
		_exit(99);
	for (int i = 0; i < 2; i++)
		calls[i] = call_new(e.tcs[i], vdso_by_dynamic());
	must(calls[0], OP_PUT, e.heap + 8, 0x1122334455667788, 0, 0);
	must(calls[0], OP_FILL, e.heap + PAGE, HEAP - 1, 9, 0);
}

static void *compute(void *unused)
{
	must(calls[1], OP_SPIN, (u64)&inside, (u64)&stop, 0, 0);
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	u64 sum = 0;

	(void)argv;
	load();
	for (u64 i = 0; i < 3; i++)
		sum += middle(i);
	pthread_create(&thread, NULL, compute, NULL);
	if (argc > 1) {
		printf("ready\n");
		fflush(stdout);
	}
	while (argc > 1 && !stop) {
		leaf(1);
		usleep(1000);
	}
	stop = 1;
	pthread_join(thread, NULL);
	printf("sum %lu, heap %#lx\n", sum, must(calls[0], OP_GET, e.heap + 8, 0, 0, 0));
	return 3;
}
