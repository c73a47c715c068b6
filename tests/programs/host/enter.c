/* Calls into an enclave. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "enclave.h"

#define HOST_STACK (256 * 1024)

int enter(struct call *c);	/* enter.S */

struct call *call_new(u64 tcs, void *vdso)
{
	struct call *c = calloc(1, sizeof *c);
	u8 *stack = mmap(NULL, HOST_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);

	if (!c || stack == MAP_FAILED) {
		perror("call_new");
		exit(2);
	}
	c->tcs = tcs;
	c->vdso = vdso;
	c->request = &c->asked;
	c->run = &c->result;
	c->aep = bare_aep;
	c->stack_top = (u64)stack + HOST_STACK;
	return c;
}

void call_free(struct call *c)
{
	munmap((void *)(c->stack_top - HOST_STACK), HOST_STACK);
	free(c);
}

int call_enter(struct call *c, u64 leaf)
{
	int error;

	memset(&c->result, 0, sizeof c->result);
	c->result.tcs = c->tcs;
	c->leaf = leaf;
	error = enter(c);
	return !error && c->vdso && c->result.function != EEXIT ? EXCEPTION : error;
}

int ask(struct call *c, u64 *out, u64 op, u64 a0, u64 a1, u64 a2, u64 a3)
{
	int error;

	c->asked = (struct request){ .op = op, .a = { a0, a1, a2, a3 }, .result = ~0UL };
	error = call_enter(c, EENTER);
	if (out)
		*out = c->asked.result;
	return error;
}

u64 must(struct call *c, u64 op, u64 a0, u64 a1, u64 a2, u64 a3)
{
	u64 result;
	int error = ask(c, &result, op, a0, a1, a2, a3);

	if (error) {
		printf("# op %lu failed: %d, vector %u, code %#x, address %#lx, leaf %u\n", op, error, c->result.vector,
		       c->result.error_code, (u64)c->result.address, c->result.function);
		fflush(stdout);
		exit(2);
	}
	return result;
}

void call_unwind(struct enclave *e, struct call *stuck, unsigned thread, unsigned level)
{
	struct call *above = call_new(stuck->tcs, stuck->vdso);

	must(above, OP_UNWIND, gprsgx_address(e, thread, level), stack_page(e, thread, level), 0, 0);
	call_free(above);
	call_enter(stuck, ERESUME);
}
