/* A program that tells a debugger at a fixed address how to look into its enclave, as library OSes do. */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
#include "enclave.h"
#include "inside.h"

struct enclave e;
struct call *c;
volatile u64 exits, answer;
extern const char counting_aep[], resume[];

asm(".text\n"
    ".globl counting_aep, resume\n"
    "counting_aep:\n"
    "	lock incq exits(%rip)\n"
    "resume:\n"
    "	enclu\n"
    "	ud2\n");

__attribute__((noinline)) void ready(void)
{
	asm volatile("");
}

/* mov $7, %eax; add $1, %rax; add $2, %rax; ret */
static const u64 code[] = { 0xc0834800000007b8, 0xc302c0834801 };

int main(void)
{
	struct info *info = mmap((void *)INFO, sizeof *info, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (info != (void *)INFO || enclave_load(&e, (struct spec){ .code = 1, .heap = 200, .ssa_pages = 4 }))
		return 99;
	c = call_new(e.tcs[0], NULL);
	c->aep = counting_aep;
	must(c, OP_PUT, e.code, code[0], 0, 0);
	must(c, OP_PUT, e.code + 8, code[1], 0, 0);
	must(c, OP_FILL, e.heap, 200, 1, 0);	/* the code is evicted */
	*info = (struct info){ e.base, e.size, e.tcs[0], 4 * PAGE, (u64)counting_aep, (u64)resume, getpid() };
	ready();
	answer = must(c, OP_CALL, e.code, 0, 0, 0);
	ready();
	printf("answer %lu\n", answer);
	return 0;
}
