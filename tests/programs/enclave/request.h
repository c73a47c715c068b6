/* What the host asks of the enclave: one operation with up to six operands.
 *
 * The request lies in host memory; the enclave reads it there and writes
 * `result` back.  Operands that are addresses may point to either side.
 */
#ifndef REQUEST_H
#define REQUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum op {
	OP_NOP,		/* result = CSSA */
	OP_GET,		/* result = *(u64 *)a[0] */
	OP_PUT,		/* *(u64 *)a[0] = a[1] */
	OP_COPY,	/* copy a[2] bytes from a[1] to a[0] */
	OP_FILL,	/* write pattern(a[2]) over a[1] pages at a[0] */
	OP_CHECK,	/* result = pages of the a[1] at a[0] that differ from it */
	OP_ACCEPT,	/* EACCEPT page a[0] with SECINFO flags a[1]; result = RAX */
	OP_EXTEND,	/* EMODPE page a[0] with SECINFO flags a[1] */
	OP_ENCLU,	/* leaf a[0] with RBX, RCX, RDX = a[1..3]; result = RAX, a[5] = RFLAGS */
	OP_CALL,	/* result = ((u64 (*)(void))a[0])() */
	OP_RAISE,	/* execute the instruction a[0] (enum raise); result = 1 if it went on */
	OP_SYSCALL,	/* syscall a[0] with arguments a[1..4]; result = RAX */
	OP_SPIN,	/* count in *a[0] until *a[1] is set */
	OP_STATE,	/* hold a register pattern while touching pages (struct state at a[0]) */
	OP_UPDATES,	/* random read-modify-writes (struct updates at a[0]) */
	OP_REPORT,	/* EREPORT for TARGETINFO a[0] with data a[1]; 432 bytes to a[2] */
	OP_KEY,		/* EGETKEY for KEYREQUEST a[0]; 16 bytes to a[1]; result = RAX, a[5] = RFLAGS */
	OP_UNWIND,	/* make the SSA frame with GPRSGX a[0], stack page a[1] leave when resumed */
	OP_TIMES,	/* time one read of each of a[1] pages listed at a[0] into a[2] */
	OP_LEAVES,	/* ENCLU leaf a[0], SECINFO flags a[1], on each of a[3] pages from a[2]; result = ticks, a[5] = failed */
	OP_LEAF_ALL,	/* EACCEPT (a[0] = 5) or EMODPE with all registers from a[1], and back: RAX … R15 without RSP, RFLAGS */
};

enum raise { RAISE_UD2, RAISE_DIV0, RAISE_INT3, RAISE_IN, RAISE_OUT, RAISE_INT80, RAISE_RDTSC,
	     RAISE_INT21, RAISE_RDPMC, RAISE_INSB, RAISE_RETF, RAISE_HLT };

struct request {
	u64 op;
	u64 a[6];
	u64 result;
};

/* OP_STATE.  `bad` gets one bit per register that lost its pattern. */
struct state {
	u64 page, pages, passes;	/* touch `pages` pages from `page`, `passes` times */
	u64 fault;			/* 1: execute ud2 once with the pattern loaded */
	u64 bad;
	u64 gpr[8];			/* rdx rbx r8..r13 */
	u32 mxcsr;
	u16 fcw, pad;
	double x87[3];
	u8 ymm[15][32];
	u8 seen[32];			/* ymm0 as found after the ud2 */
};

enum { BAD_GPR = 1 << 16, BAD_X87 = 1 << 17, BAD_MXCSR = 1 << 18, BAD_FCW = 1 << 19 };

/* OP_UPDATES.  Every page: 8 slots for all workers (atomic), then 8 slots for each of
 * 16 workers (plain). */
struct updates {
	u64 base, pages, count, burst, worker, seed;
	volatile u64 progress;
};

static inline u64 next_random(u64 *state)
{
	u64 x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

/* The slot (index of a u64) for one random number, the same on both sides. */
static inline u64 pick_slot(u64 random, u64 worker, int *atomic)
{
	*atomic = random & 1;
	return *atomic ? (random >> 1 & 7) : 8 + worker * 8 + (random >> 1 & 7);
}

static inline u64 pattern(u64 seed, u64 page, u64 word)
{
	return (seed * 0x9e3779b97f4a7c15UL ^ page << 20 ^ word) * 0xff51afd7ed558ccdUL + page;
}

/* EENTER finds its stack below the TCS: one 4 KiB page for each level of CSSA. */
#define STACK_PAGES 4

#endif
