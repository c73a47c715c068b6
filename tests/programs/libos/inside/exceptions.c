/* Both stages of an exception inside.
 *
 * The first stage runs at CSSA 1 for as long as it must: it moves the interrupted state out of SSA[0] and
 * makes ERESUME go to the second stage, at CSSA 0, with clean vector registers.  So the second stage may leave
 * and enter as it likes, and its own exceptions find a free frame.
 */
#include "inside.h"

enum { UD = 6, VALID = 1u << 31 };

extern const u8 entry[];

struct context *context_of(struct thread *t)
{
	return (struct context *)(t->os_stack - sizeof(struct context));
}

/* The host is told at the next exit, and ends the process. */
static void died(const struct gprsgx *r, u64 address)
{
	struct block *b = self()->block;

	b->vector = r->exitinfo & 0xff;
	b->rip = r->rip - (u64)entry;
	b->rax = r->rax;
	b->address = address;
	b->died = 1;
}

void first_stage(void)
{
	struct thread *t = self();
	struct gprsgx *r = (struct gprsgx *)(t->ssa + SSA_PAGES * PAGE - sizeof *r);
	struct context *c = context_of(t);
	u8 *xsave = (u8 *)t->ssa;

	if (!(r->exitinfo & VALID))	/* an interrupt: the thread goes on where it was */
		return;
	if (r->rip - (u64)entry < THREADS || (r->exitinfo & 0xff) != UD) {
		died(r, ((u64 *)r)[-2]);	/* EXINFO.MADDR */
		return;
	}
	copy(&c->r, r, sizeof *r);
	copy(c->xsave, xsave, t->xsave_size);
	clear(xsave, 576);		/* legacy area and header: the initial state */
	*(u16 *)xsave = 0x37f;
	*(u32 *)(xsave + 24) = 0x1f80;
	r->rip = (u64)second_stage;
	r->rdi = (u64)c;
	r->rsp = (u64)c - 8;
	r->rflags = 2;
}

/* CPUID is illegal inside; only the host can execute it. */
static void cpuid(struct context *c)
{
	struct block *b = self()->block;

	b->ask = ASK_CPUID;
	b->args[0] = c->r.rax;
	b->args[1] = c->r.rcx;
	leave();
	c->r.rax = (u32)b->args[0];
	c->r.rbx = (u32)b->args[1];
	c->r.rcx = (u32)b->args[2];
	c->r.rdx = (u32)b->args[3];
}

void second_stage(struct context *c)
{
	const u8 *code = (const u8 *)c->r.rip;

	if (code[0] == 0x0f && code[1] == 0x05) {
		c->r.rcx = c->r.rip + 2;
		c->r.r11 = c->r.rflags;
		c->r.rax = system_call(c);
	} else if (code[0] == 0x0f && code[1] == 0xa2) {
		cpuid(c);
	} else {
		died(&c->r, 0);
		leave_for_good();
	}
	c->r.rip += 2;
	resume(c);
}
