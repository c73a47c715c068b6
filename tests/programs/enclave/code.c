/* What our test enclave can do.  Freestanding, position independent, no relocations:
 * linked to a flat image with `entry` at offset 0 (link.ld), added page by page. */
#include "request.h"

void hold_state(struct state *s);
__attribute__((visibility("hidden"))) u64 eaccept(u64 secinfo, u64 page);
__attribute__((visibility("hidden"))) u64 emodpe(u64 secinfo, u64 page);
__attribute__((visibility("hidden"))) void leaf_all(u64 *regs, const void *at), eaccept_all(void), emodpe_all(void);
extern const u8 leave_enclave[] __attribute__((visibility("hidden")));

struct secinfo {
	u64 flags;
	u64 reserved[7];
} __attribute__((aligned(64)));

static u64 enclu(u64 leaf, u64 rbx, u64 rcx, u64 rdx, u64 *flags)
{
	u64 rflags;

	asm volatile("enclu\n\tpushfq\n\tpop %1"
		     : "+a"(leaf), "=&r"(rflags), "+b"(rbx), "+c"(rcx), "+d"(rdx)
		     :
		     : "memory", "cc");
	if (flags)
		*flags = rflags;
	return leaf;
}

static void copy(volatile u8 *to, const volatile u8 *from, u64 n)
{
	for (; n >= 8; n -= 8, to += 8, from += 8)
		*(volatile u64 *)to = *(const volatile u64 *)from;
	while (n--)
		*to++ = *from++;
}

static u64 raise(u64 what)
{
	u64 a = 1, d = 0;

	if (what == RAISE_UD2)
		asm volatile("ud2");
	else if (what == RAISE_DIV0)
		asm volatile("xor %%ecx, %%ecx\n\tdiv %%rcx" : "+a"(a), "+d"(d)::"rcx", "cc");
	else if (what == RAISE_INT3)
		asm volatile("int3");
	else if (what == RAISE_IN)
		asm volatile("in $0x80, %%al" : "+a"(a));
	else if (what == RAISE_OUT)
		asm volatile("out %%al, $0x80" : : "a"(a));
	else if (what == RAISE_INT80)	/* 20: getpid of the 32-bit table */
		asm volatile("int $0x80" : "+a"(a) : : "memory");
	else if (what == RAISE_RDTSC)
		asm volatile("rdtsc" : "=a"(a), "=d"(d));
	else if (what == RAISE_INT21)
		asm volatile("int $0x21");
	else if (what == RAISE_RDPMC)
		asm volatile("rdpmc" : "=a"(a), "=d"(d) : "c"(0));
	else if (what == RAISE_INSB)
		asm volatile("insb" : : "D"(&a), "d"(0x80) : "memory");
	else if (what == RAISE_RETF)	/* to a selector that nobody has */
		asm volatile("push $0x1233\n\tpush $0\n\tlretq\n\tadd $16, %rsp");
	else if (what == RAISE_HLT)	/* privileged, not illegal */
		asm volatile("hlt");
	return 1;
}

static u64 do_syscall(const u64 *a)
{
	u64 rax = a[0];

	asm volatile("syscall"
		     : "+a"(rax)
		     : "D"(a[1]), "S"(a[2]), "d"(a[3])
		     : "rcx", "r11", "memory");
	return rax;
}

static void fill(volatile u64 *at, u64 pages, u64 seed)
{
	for (u64 page = 0; page < pages; page++, at += 512)
		for (u64 word = 0; word < 512; word++)
			at[word] = pattern(seed, page, word);
}

static u64 check(volatile u64 *at, u64 pages, u64 seed)
{
	u64 wrong = 0;

	for (u64 page = 0; page < pages; page++, at += 512)
		for (u64 word = 0; word < 512; word++)
			if (at[word] != pattern(seed, page, word)) {
				wrong++;
				break;
			}
	return wrong;
}

static void spin(volatile u64 *count, volatile u64 *stop)
{
	while (!*stop)
		++*count;
}

/* Not inlined: each has big locals, and a level's stack is one page. */
#define BIG __attribute__((noinline))

static BIG u64 hold(struct state *host)
{
	struct state mine;

	copy((u8 *)&mine, (u8 *)host, sizeof mine);
	hold_state(&mine);
	copy((u8 *)host, (u8 *)&mine, sizeof mine);
	return mine.bad;
}

static void update(struct updates *u)
{
	u64 random = u->seed, done = 0, count = u->count;
	u64 base = u->base, pages = u->pages, burst = u->burst, worker = u->worker;

	while (done < count) {
		u64 at = base + next_random(&random) % pages * 4096;

		for (u64 i = 0; i < burst && done < count; i++, done++) {
			int atomic;
			u64 slot = pick_slot(next_random(&random), worker, &atomic);
			volatile u64 *p = (u64 *)at + slot;

			if (atomic)
				asm volatile("lock incq %0" : "+m"(*p));
			else
				*p = *p + 1;
		}
		u->progress = done;
	}
}

static BIG void report(u64 info, u64 data, u64 out)
{
	u8 target[512] __attribute__((aligned(512)));
	u8 made[432] __attribute__((aligned(512)));
	u8 mine[64] __attribute__((aligned(128)));

	copy(target, (u8 *)info, sizeof target);
	copy(mine, (u8 *)data, sizeof mine);
	enclu(0, (u64)target, (u64)mine, (u64)made, 0);
	copy((u8 *)out, made, sizeof made);
}

static BIG u64 key(u64 request, u64 out, u64 *flags)
{
	u8 asked[512] __attribute__((aligned(512)));
	u8 made[16] __attribute__((aligned(16)));
	u64 rax;

	copy(asked, (u8 *)request, sizeof asked);
	copy(made, (u8 *)out, sizeof made);
	rax = enclu(1, (u64)asked, (u64)made, 0, flags);
	copy((u8 *)out, made, sizeof made);
	return rax;
}

/* Rewrite an SSA frame so that ERESUME leaves at once, without a result.  `gprsgx` is the
 * address of its GPRSGX, `stack` the stack page of its level. */
static void unwind(u64 gprsgx, u64 stack)
{
	*(volatile u64 *)(gprsgx + 32) = *(volatile u64 *)(stack + 4096 - 8);	/* rsp */
	*(volatile u64 *)(gprsgx + 136) = (u64)leave_enclave;			/* rip */
}

static inline u64 stamp(void)
{
	u32 low, high;

	asm volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}

/* List and results stay in host memory: only the listed pages may fault while timed. */
static void times(const u64 *pages, u64 n, u64 *out)
{
	for (u64 i = 0; i < n; i++) {
		u64 start = stamp();

		++*(volatile u64 *)pages[i];
		out[i] = stamp() - start;
	}
}

static u64 leaves(u64 *a)
{
	struct secinfo info = { .flags = a[1] };
	u64 start = stamp(), failed = 0;

	for (u64 i = 0; i < a[3]; i++)
		failed += a[0] == 5 ? eaccept((u64)&info, a[2] + i * 4096) != 0 :
				      emodpe((u64)&info, a[2] + i * 4096) != 6;	/* which leaves RAX alone */
	a[5] = failed;
	return stamp() - start;
}

__attribute__((visibility("hidden"))) void serve(struct request *r, u64 tcs, u64 cssa);

void serve(struct request *r, u64 tcs, u64 cssa)
{
	struct secinfo info = { 0 };
	u64 op = r->op, *a = r->a, result = 0;

	(void)tcs;
	if (op == OP_NOP)
		result = cssa;
	else if (op == OP_GET)
		result = *(volatile u64 *)a[0];
	else if (op == OP_PUT)
		*(volatile u64 *)a[0] = a[1];
	else if (op == OP_COPY)
		copy((u8 *)a[0], (u8 *)a[1], a[2]);
	else if (op == OP_FILL)
		fill((u64 *)a[0], a[1], a[2]);
	else if (op == OP_CHECK)
		result = check((u64 *)a[0], a[1], a[2]);
	else if (op == OP_ACCEPT || op == OP_EXTEND) {
		info.flags = a[1];
		result = enclu(op == OP_ACCEPT ? 5 : 6, (u64)&info, a[0], 0, &a[5]);
	} else if (op == OP_ENCLU)
		result = enclu(a[0], a[1], a[2], a[3], &a[5]);
	else if (op == OP_CALL)
		result = ((u64 (*)(void))a[0])();
	else if (op == OP_RAISE)
		result = raise(a[0]);
	else if (op == OP_SYSCALL)
		result = do_syscall(a);
	else if (op == OP_SPIN)
		spin((u64 *)a[0], (u64 *)a[1]);
	else if (op == OP_STATE)
		result = hold((struct state *)a[0]);
	else if (op == OP_UPDATES)
		update((struct updates *)a[0]);
	else if (op == OP_REPORT)
		report(a[0], a[1], a[2]);
	else if (op == OP_KEY)
		result = key(a[0], a[1], &a[5]);
	else if (op == OP_UNWIND)
		unwind(a[0], a[1]);
	else if (op == OP_TIMES)
		times((u64 *)a[0], a[1], (u64 *)a[2]);
	else if (op == OP_LEAVES)
		result = leaves(a);
	else if (op == OP_LEAF_ALL)
		leaf_all((u64 *)a[1], a[0] == 5 ? eaccept_all : emodpe_all);
	r->result = result;
}
