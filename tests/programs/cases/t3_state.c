/* Register state belongs in the SSA frame: an asynchronous exit stores it there, the outside sees
 * the initial state, and ERESUME loads what the frame holds then. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <ucontext.h>
#include "check.h"

enum { FCW = 0, FTW = 4, XMM = 160, MXCSR = 24, XSTATE_BV = 512 };

static struct enclave e;
static struct call *c, *nested;
static struct state s;

static u32 ymm_offset(void)
{
	u32 a, b, size, d;

	__cpuid_count(0xd, 2, size, a, b, d);
	(void)b, (void)d, (void)size;
	return a;
}

static void start(unsigned ssa_pages, u64 xfrm)
{
	u32 a, b, features, d;

	__cpuid(1, a, b, features, d);
	if (!(features & bit_AVX))
		skip("no AVX");
	e = load((struct spec){ .heap = 400, .ssa_pages = ssa_pages, .nssa = 3, .xfrm = xfrm });
	c = by_vdso(&e, 0);
	nested = by_vdso(&e, 0);
	s = (struct state){ .page = e.heap, .passes = 1, .mxcsr = 0x7f80, .fcw = 0x27f, .x87 = { 1.5, -2.25, 1e300 } };
	for (int i = 0; i < 8; i++)
		s.gpr[i] = 0x0101010101010101UL * (0x80 + i);
	for (int r = 0; r < 15; r++)
		for (int i = 0; i < 32; i++)
			s.ymm[r][i] = r * 37 + i * 5 + 1;
}

static void hold(struct call *by)
{
	CHECK_EQ(must(by, OP_STATE, (u64)&s, 0, 0, 0), 0);
}

static u64 read_u64(u64 address)
{
	return must(nested, OP_GET, address, 0, 0, 0);
}

static void write_u64(u64 address, u64 value)
{
	must(nested, OP_PUT, address, value, 0, 0);
}

/* ---- state survives ---- */

static volatile int ticks;

static void tick(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	ticks++;
}

/* Run with an EPC below 400 pages: every touch may be a fault. */
static void across_page_faults(void)
{
	start(1, 7);
	s.pages = 400;
	s.passes = 5;
	hold(c);
}

static void across_timer_signals(void)
{
	start(1, 7);
	s.pages = 400;
	s.passes = 5;
	handle(SIGALRM, tick, SA_RESTART);
	start_timer(2000);
	for (int i = 0; i < 100000 && ticks < 100; i++)
		hold(i & 1 ? c : by_enclu(&e, 0));
	stop_timer();
	CHECK(ticks >= 20, "only %d timer signals", ticks);
}

static void across_faults_frame_of_4(void)
{
	start(4, 7);
	s.pages = 400;
	s.passes = 5;
	hold(c);
}

static void with_all_of_xcr0(void)
{
	u32 low, high;

	asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	start(4, low);
	s.pages = 400;
	s.passes = 3;
	handle(SIGALRM, tick, SA_RESTART);
	start_timer(2000);
	hold(c);
	stop_timer();
}

/* ---- what the frame holds ---- */

static void stop_inside(void)
{
	s.fault = 1;
	EXPECT_FAULT(c, ask(c, NULL, OP_STATE, (u64)&s, 0, 0, 0), 6, 0, 0);
}

static u64 gprsgx(void)
{
	return gprsgx_address(&e, 0, 0);
}

static void step_over_ud2(void)
{
	write_u64(gprsgx() + SSA_RIP, read_u64(gprsgx() + SSA_RIP) + 2);
}

static u64 finish(void)
{
	int error = call_enter(c, ERESUME);

	CHECK(!error, "resumed: returned %d, vector %u, code %#x", error, c->result.vector, c->result.error_code);
	return c->asked.result;
}

static void check_frame(void)
{
	static u8 area[4096];
	u64 ssa = ssa_address(&e, 0, 0), bv;
	u32 at = ymm_offset();
	u16 fcw, ymm = 0;

	must(nested, OP_COPY, (u64)area, ssa, sizeof area, 0);
	memcpy(&bv, area + XSTATE_BV, 8);
	memcpy(&fcw, area + FCW, 2);
	CHECK((bv & 7) == 7 && !(bv & ~e.spec.xfrm), "XSTATE_BV %#lx, XFRM %#lx", bv, e.spec.xfrm);
	CHECK_EQ(fcw, 0x27f);
	CHECK_EQ(*(u32 *)(area + MXCSR), 0x7f80);
	CHECK_EQ(area[FTW], 0xe0);	/* three registers pushed */
	for (int i = 464; i < 512; i++)
		CHECK(!area[i], "byte %d of the legacy area is %#x: not the processor's", i, area[i]);
	for (int i = XSTATE_BV + 8; i < 576; i++)
		CHECK(!area[i], "byte %d of the XSAVE header is %#x", i, area[i]);
	for (int r = 0; r < 15; r++) {
		CHECK(!memcmp(area + XMM + 16 * r, s.ymm[r], 16), "xmm%d in the frame", r);
		ymm += !!memcmp(area + at + 16 * r, s.ymm[r] + 16, 16);
	}
	CHECK(!ymm, "upper halves of %u ymm registers differ in the frame", ymm);
	CHECK_EQ(read_u64(gprsgx() + 16), s.gpr[0]);			/* rdx */
	CHECK_EQ(read_u64(gprsgx() + 24), s.gpr[1]);			/* rbx */
	CHECK_EQ(read_u64(gprsgx() + 120 - 16), s.gpr[7]);		/* r13 */
	CHECK_EQ(read_u64(gprsgx() + SSA_EXITINFO) & 0xffffffff, 0x80000306);	/* #UD, hardware, valid */
}

static void frame_of_1(void)
{
	start(1, 7);
	stop_inside();
	check_frame();
	step_over_ud2();
	CHECK_EQ(finish(), 0);
	CHECK(!memcmp(s.seen, s.ymm[0], 32), "ymm0 after ERESUME");
}

static void frame_of_4(void)
{
	start(4, 7);
	stop_inside();
	check_frame();
	step_over_ud2();
	CHECK_EQ(finish(), 0);
}

/* ---- rewriting it ---- */

static void rewritten_registers(void)
{
	u64 low = 0x1122334455667788, high = 0x99aabbccddeeff00;

	start(1, 7);
	stop_inside();
	step_over_ud2();
	write_u64(ssa_address(&e, 0, 0) + XMM, low);
	write_u64(ssa_address(&e, 0, 0) + ymm_offset() + 8, high);
	write_u64(gprsgx() + 24, 42);					/* rbx */
	CHECK_EQ(finish(), 1 | BAD_GPR);
	CHECK_EQ(*(u64 *)s.seen, low);
	CHECK_EQ(*(u64 *)(s.seen + 24), high);
	CHECK(!memcmp(s.seen + 8, s.ymm[0] + 8, 16), "the rest of ymm0 changed too");
}

/* XSTATE_BV without AVX: ERESUME loads zeros into the upper halves. */
static void rewritten_xstate_bv(void)
{
	start(1, 7);
	stop_inside();
	step_over_ud2();
	write_u64(ssa_address(&e, 0, 0) + XSTATE_BV, 3);
	CHECK_EQ(finish(), 0x7fff);
	CHECK(!memcmp(s.seen, s.ymm[0], 16), "xmm0 changed");
	for (int i = 16; i < 32; i++)
		CHECK(!s.seen[i], "the upper half of ymm0 is not zero");
}

static void refused(u64 offset, u64 value)
{
	u64 old;
	int error;

	start(1, 7);
	stop_inside();
	step_over_ud2();
	old = read_u64(ssa_address(&e, 0, 0) + offset);
	write_u64(ssa_address(&e, 0, 0) + offset, value);
	error = call_enter(c, ERESUME);
	CHECK(error == EXCEPTION && c->result.vector == 13, "returned %d, vector %u; expected #GP", error, c->result.vector);
	write_u64(ssa_address(&e, 0, 0) + offset, old);
	CHECK_EQ(finish(), 0);
}

static void xstate_outside_xfrm(void)
{
	refused(XSTATE_BV, 1UL << 9 | 7);
}

static void xsave_header_tail(void)
{
	refused(XSTATE_BV + 16, 1);
}

/* ---- what the outside sees ---- */

static void outside_is_initial(void)
{
	struct caught caught;
	struct call *bare;

	start(1, 7);
	bare = by_enclu(&e, 0);
	s.fault = 1;
	CHECK_EQ(guarded_ask(bare, &caught, OP_STATE, (u64)&s, 0, 0, 0), SIGILL);
	CHECK_EQ(caught.rip, bare_aep);
	CHECK_EQ(caught.rax, ERESUME);
	CHECK_EQ(caught.rbx, e.tcs[0]);
	CHECK_EQ(caught.rcx, bare_aep);
	CHECK_EQ(caught.rsp, bare->stack_top - 8);
	CHECK(!(caught.rdx | caught.rsi | caught.rdi | caught.r8_15), "registers of the enclave are visible");
	CHECK(!caught.xmm, "vector registers of the enclave are visible");
	CHECK_EQ(caught.mxcsr, 0x1f80);
	CHECK_EQ(caught.fcw, 0x37f);
	step_over_ud2();
	CHECK_EQ(guarded(bare, ERESUME, &caught), 0);
	CHECK_EQ(bare->asked.result, 0);
}

/* Two levels: a second fault at CSSA 1 has its own frame. */
static void two_levels(void)
{
	struct state deep;
	struct call *third;

	start(1, 7);
	third = by_vdso(&e, 0);
	deep = s;
	deep.fault = 1;
	for (int r = 0; r < 15; r++)
		memset(deep.ymm[r], 0xf0 + r, 32);
	stop_inside();
	EXPECT_FAULT(nested, ask(nested, NULL, OP_STATE, (u64)&deep, 0, 0, 0), 6, 0, 0);
	for (int level = 0; level < 2; level++) {
		u64 rip = gprsgx_address(&e, 0, level) + SSA_RIP;

		must(third, OP_PUT, rip, must(third, OP_GET, rip, 0, 0, 0) + 2, 0, 0);
	}
	CHECK_EQ(call_enter(nested, ERESUME), 0);
	CHECK_EQ(nested->asked.result, 0);
	CHECK_EQ(finish(), 0);
}

/* MISCSELECT.EXINFO: the exact address and the error code, in the frame. */
static void exinfo(void)
{
	u32 a, b, x, d;
	u64 page, at, info;

	__cpuid_count(0x12, 0, a, b, x, d);
	if (!(b & 1))
		skip("CPUID offers no EXINFO");
	start(1, 7);
	e = load((struct spec){ .nssa = 3, .heap = 10, .hole = 4, .miscselect = 1 });
	c = by_vdso(&e, 0);
	nested = by_vdso(&e, 0);
	page = e.hole + PAGE;
	EXPECT_FAULT(c, ask(c, NULL, OP_PUT, page + 0x128, 3, 0, 0), 14, 0x8007, page);
	at = gprsgx() - 16;
	CHECK_EQ(read_u64(gprsgx() + SSA_EXITINFO) & 0xffffffff, 0x8000030e);
	CHECK_EQ(read_u64(at), page + 0x128);
	info = read_u64(at + 8);
	CHECK_EQ(info & 0xffffffff, 0x8007);
	must(nested, OP_ACCEPT, page, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0);
	finish();
	CHECK_EQ(must(c, OP_GET, page + 0x128, 0, 0, 0), 3);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "across_page_faults", across_page_faults },
		{ "across_timer_signals", across_timer_signals },
		{ "across_faults_frame_of_4", across_faults_frame_of_4 },
		{ "with_all_of_xcr0", with_all_of_xcr0 },
		{ "frame_of_1", frame_of_1 },
		{ "frame_of_4", frame_of_4 },
		{ "rewritten_registers", rewritten_registers },
		{ "rewritten_xstate_bv", rewritten_xstate_bv },
		{ "xstate_outside_xfrm", xstate_outside_xfrm },
		{ "xsave_header_tail", xsave_header_tail },
		{ "outside_is_initial", outside_is_initial },
		{ "two_levels", two_levels },
		{ "exinfo", exinfo },
	};

	return RUN(argc, argv, tests);
}
