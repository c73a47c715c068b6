/* How hosts run an enclave by the vDSO call and a handler of their own, which it calls on every exit.
 *
 * Intel's urts and Open Enclave: one ECALL is one call. For an OCALL the handler does what the enclave asks and
 * returns EENTER, the answer in RDI; for an exception it makes a call of its own, at CSSA 1, and returns ERESUME; at
 * the end it returns 0. A signal that another thread sends comes at the AEP, and its handler enters at CSSA 1 too.
 * Fortanix, where there is no vDSO call: one ENCLU is EENTER and AEP at once. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>
#include "check.h"

#define HEAP 200
#define NEW (R | W | TYPE_REG << 8 | SECINFO_PENDING)

int enter(struct call *c);	/* host/enter.S */
int with_request(long, long, long, long, long, long, struct run *);

/* Calls `chosen`, and has RDI lead to `next` when that returns EENTER. */
asm("with_request:\n"
    "	push	8(%rsp)\n"
    "	call	*chosen(%rip)\n"
    "	add	$8, %rsp\n"
    "	lea	next(%rip), %rdi\n"
    "	ret\n");

static int (*chosen)(long, long, long, long, long, long, struct run *) __attribute__((used));
static struct request next __attribute__((used));
static struct enclave e;
static struct call *nested;
static u64 exits;
static int answer;

/* As call_enter(), with a handler; what the vDSO call returned. */
static int enter_with(struct call *c, u64 leaf)
{
	c->result = (struct run){ .tcs = c->tcs, .user_handler = (u64)with_request, .user_data = (u64)c };
	c->leaf = leaf;
	return enter(c);
}

static int ask_with(struct call *c, u64 op, u64 a0, u64 a1, u64 a2)
{
	c->asked = (struct request){ .op = op, .a = { a0, a1, a2 }, .result = ~0UL };
	return enter_with(c, EENTER);
}

static struct call *start(struct spec spec)
{
	spec.heap = HEAP;
	e = load(spec);
	nested = by_vdso(&e, 0);
	exits = 0;
	return by_vdso(&e, 0);
}

static struct call *call_of(long ursp, struct run *run)
{
	struct call *c = (struct call *)run->user_data;

	exits++;
	CHECK(run == &c->result, "run is %p", (void *)run);
	CHECK((u64)ursp <= c->stack_top && (u64)ursp > c->stack_top - 256, "RSP %#lx of %#lx", ursp, c->stack_top);
	return c;
}

/* All exits but the last are OCALLs: store a number, read it, the next page. */
static int do_ocalls(long rdi, long rsi, long rdx, long ursp, long r8, long r9, struct run *run)
{
	u64 done = exits, page = done / 2;

	(void)rdi, (void)r8, (void)r9;
	call_of(ursp, run);
	CHECK(run->function == EEXIT && !rsi && !rdx, "leaf %u, rsi %#lx, rdx %#lx", run->function, rsi, rdx);
	CHECK_EQ(next.result, done && done % 2 == 0 ? page : 0);
	if (done == 2 * HEAP)
		return 0;
	next = (struct request){ .op = done % 2 ? OP_GET : OP_PUT, .a = { e.heap + page * PAGE, page + 1 } };
	return EENTER;
}

static void ocalls(void)
{
	struct call *c = start((struct spec){ 0 });

	chosen = do_ocalls;
	CHECK_EQ(ask_with(c, OP_NOP, 0, 0, 0), 0);
	CHECK_EQ(exits, 2 * HEAP + 1);
	CHECK_EQ(c->result.function, EEXIT);
}

/* A page that is not there yet is accepted at CSSA 1, and the enclave goes on. */
static int commit(long rdi, long rsi, long rdx, long ursp, long r8, long r9, struct run *run)
{
	u64 maddr;

	(void)rdi, (void)rsi, (void)rdx, (void)r8, (void)r9;
	call_of(ursp, run);
	if (run->function == EEXIT)
		return 0;
	CHECK(run->function == ERESUME && run->vector == 14 && run->error_code == 0x8007, "leaf %u, vector %u, code %#x",
	      run->function, run->vector, run->error_code);
	CHECK_EQ(must(nested, OP_NOP, 0, 0, 0, 0), 1);
	maddr = must(nested, OP_GET, gprsgx_address(&e, 0, 0) - 16, 0, 0, 0);
	CHECK_EQ(maddr & -PAGE, run->address);
	CHECK_EQ(must(nested, OP_ACCEPT, maddr & -PAGE, NEW, 0, 0), 0);
	return ERESUME;
}

static void exceptions(void)
{
	struct call *c = start((struct spec){ .hole = HEAP, .miscselect = 1 });

	chosen = commit;
	for (u64 seed = 1; seed < 3; seed++) {
		exits = 0;
		CHECK_EQ(ask_with(c, OP_FILL, e.hole, HEAP, seed), 0);
		CHECK_EQ(exits, seed == 1 ? HEAP + 1 : 1);
		CHECK_EQ(must(c, OP_CHECK, e.hole, HEAP, seed, 0), 0);
	}
}

static int answers(long rdi, long rsi, long rdx, long ursp, long r8, long r9, struct run *run)
{
	(void)rdi, (void)rsi, (void)rdx, (void)r8, (void)r9;
	call_of(ursp, run);
	return answer;
}

/* What is not a leaf to enter by ends the call: 0 and less as it is, more is no leaf. */
static void what_the_handler_returns(void)
{
	static const struct {
		int answer, result;
	} each[] = { { 0, 0 }, { -1, -1 }, { -4242, -4242 }, { 1, -22 }, { EEXIT, -22 }, { 77, -22 } };
	struct call *c = start((struct spec){ 0 });

	chosen = answers;
	for (size_t i = 0; i < sizeof each / sizeof *each; i++) {
		answer = each[i].answer;
		CHECK_EQ(ask_with(c, OP_NOP, 0, 0, 0), each[i].result);
		CHECK_EQ(exits, i + 1);
	}
	c->tcs = e.heap;		/* no TCS: the handler is told that EENTER itself failed */
	answer = 0;
	CHECK_EQ(ask_with(c, OP_NOP, 0, 0, 0), 0);
	CHECK(c->result.function == EENTER && c->result.vector == 14, "leaf %u, vector %u", c->result.function,
	      c->result.vector);
	CHECK_EQ(exits, sizeof each / sizeof *each + 1);
}

static u64 *words, moved_to;

/* The second word can be read now; it is what lies where it goes. */
static int lend(long rdi, long rsi, long rdx, long ursp, long r8, long r9, struct run *run)
{
	(void)rdi, (void)rsi, (void)rdx, (void)r8, (void)r9;
	exits++;
	if (run->function == EEXIT)
		return 0;
	CHECK_EQ(run->function, ERESUME);
	CHECK_EQ(ursp, moved_to);
	CHECK(!mprotect(words + 1, PAGE, PROT_READ | PROT_WRITE), "mprotect");
	words[1] = must(nested, OP_GET, gprsgx_address(&e, 0, 0) + SSA_URSP + 8, 0, 0, 0);
	return ERESUME;
}

/* The enclave takes room on the host's stack (sgx_ocalloc): it lowers the RSP in its frame, which is where the
 * next exit finds itself. */
static void room_on_the_stack(void)
{
	struct call *c = start((struct spec){ 0 });
	u8 *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	chosen = lend;
	words = (u64 *)(pages + PAGE) - 1;
	words[0] = moved_to = c->stack_top - 8192;
	for (int i = 0; i < 3; i++) {
		exits = 0;
		CHECK(!mprotect(words + 1, PAGE, PROT_NONE), "mprotect");
		CHECK_EQ(ask_with(c, OP_COPY, gprsgx_address(&e, 0, 0) + SSA_URSP, (u64)words, 16), 0);
		CHECK_EQ(exits, 2);
	}
}

static volatile u64 count, stop, interrupts;
static struct call *inside;
static u64 function_start, function_end;

/* As urts looks at it: RIP within the symbol, `run` above the saved RBP; EXITINFO says that it was no exception. */
static void interrupt(int signal, siginfo_t *info, void *context)
{
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)signal, (void)info;
	if ((u64)g[REG_RIP] < function_start || (u64)g[REG_RIP] >= function_end || g[REG_RAX] != ERESUME)
		return;			/* on its way in or out */
	CHECK_EQ(g[REG_RBX], inside->tcs);
	CHECK_EQ(*(u64 *)(g[REG_RBP] + 16), &inside->result);
	CHECK_EQ(must(nested, OP_NOP, 0, 0, 0, 0), 1);
	CHECK_EQ((u32)must(nested, OP_GET, gprsgx_address(&e, 0, 0) + SSA_EXITINFO, 0, 0, 0), 0);
	interrupts++;
}

static void *stay_inside(void *argument)
{
	static u8 stack[65536];
	stack_t other = { .ss_sp = stack, .ss_size = sizeof stack };

	sigaltstack(&other, NULL);
	unblock(SIGRTMAX);
	chosen = answers;
	answer = 0;
	CHECK_EQ(ask_with(argument, OP_SPIN, (u64)&count, (u64)&stop, 0), 0);
	return NULL;
}

static void interrupted(void)
{
	pthread_t id;

	inside = start((struct spec){ 0 });
	function_start = (u64)vdso_by_sections();
	function_end = function_start + vdso_size();
	CHECK_EQ(SIGRTMAX, 64);
	handle(SIGRTMAX, interrupt, SA_NODEFER | SA_ONSTACK);
	CHECK(!pthread_create(&id, NULL, stay_inside, inside), "pthread_create");
	for (u64 round = 0; round < 100; round++) {
		u64 before = interrupts;

		for (u64 seen = count; count == seen;)
			usleep(100);
		CHECK(!pthread_kill(id, SIGRTMAX), "pthread_kill");
		while (interrupts == before)
			usleep(100);
	}
	stop = 1;
	pthread_join(id, NULL);
	CHECK_EQ(interrupts, 100);
}

/* EENTER with the AEP at its own ENCLU: what is left by an exception or a signal goes on from there. */
static void by_one_enclu(u64 tcs, struct request *request)
{
	register u64 keeps_rbx asm("r12") = tcs;	/* the enclave gives R12 back as it was */
	u64 eax = EENTER, rdi = (u64)request;

	asm volatile("	lea	1f(%%rip), %%rcx\n"
		     "	xchg	%%r12, %%rbx\n"
		     "1:	enclu\n"
		     "	xchg	%%r12, %%rbx\n"
		     : "+r"(keeps_rbx), "+a"(eax), "+D"(rdi)
		     :
		     : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r13", "r14", "r15", "xmm0", "xmm1", "memory", "cc");
	CHECK_EQ(eax, EEXIT);
}

static void tick(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	interrupts++;
}

static void one_enclu(void)
{
	start((struct spec){ 0 });
	handle(SIGALRM, tick, SA_RESTART);
	start_timer(2000);
	for (u64 seed = 1; seed < 100 && (seed < 4 || interrupts < 20); seed++) {
		struct request fill = { .op = OP_FILL, .a = { e.heap, HEAP, seed } };
		struct request check = { .op = OP_CHECK, .a = { e.heap, HEAP, seed }, .result = ~0UL };

		by_one_enclu(e.tcs[0], &fill);
		by_one_enclu(e.tcs[0], &check);
		CHECK_EQ(check.result, 0);
	}
	stop_timer();
	CHECK(interrupts >= 20, "%lu signals", interrupts);
}

extern const char eenter_here[], eret_here[];

static __attribute__((noinline)) u64 enter_or_lost(u64 tcs, struct request *request)
{
	u64 eax, rbx = tcs, rdi = (u64)request, rsi = 0;

	asm volatile("	lea	bare_aep(%%rip), %%rcx\n"
		     "	mov	$2, %%eax\n"
		     ".globl eenter_here, eret_here\n"
		     "eenter_here: enclu\n"
		     "eret_here:\n"
		     : "=a"(eax), "+b"(rbx), "+D"(rdi), "+S"(rsi)
		     :
		     : "rcx", "rdx", "r8", "r9", "r10", "r11", "xmm0", "xmm1", "memory", "cc");
	return rsi;
}

/* EENTER did not go in: RIP is at its ENCLU, RAX still its leaf. It goes on behind it, with the news in RSI. */
static void lose(int signal, siginfo_t *info, void *context)
{
	(void)info;
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;

	CHECK(signal == SIGSEGV && g[REG_RIP] == (greg_t)eenter_here && g[REG_RAX] == EENTER, "signal %d at %#llx, rax %lld", signal,
	      g[REG_RIP], g[REG_RAX]);
	CHECK_EQ(g[REG_RBX], e.heap);
	g[REG_RIP] = (greg_t)eret_here;
	g[REG_RSI] = 77;
	exits++;
}

/* What Intel's urts calls SGX_ERROR_ENCLAVE_LOST, where it enters by its own ENCLU. */
static void lost(void)
{
	struct request request = { .op = OP_NOP };

	start((struct spec){ 0 });
	handle(SIGSEGV, lose, SA_NODEFER | SA_RESTART);
	for (u64 i = 0; i < 10; i++) {
		request.result = 9;
		CHECK_EQ(enter_or_lost(e.tcs[0], &request), 0);
		CHECK_EQ(request.result, 0);
		CHECK_EQ(enter_or_lost(e.heap, &request), 77);
		CHECK_EQ(exits, i + 1);
	}
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "ocalls", ocalls },
		{ "exceptions", exceptions },
		{ "what_the_handler_returns", what_the_handler_returns },
		{ "room_on_the_stack", room_on_the_stack },
		{ "interrupted", interrupted },
		{ "one_enclu", one_enclu },
		{ "lost", lost },
	};

	return RUN(argc, argv, tests);
}
