/* A library OS in small: an unmodified static-PIE program runs in an enclave, as under Gramine.
 *
 * The program's own SYSCALL raises #UD inside.  The thread leaves (AEX), the host's signal handler enters
 * again at CSSA 1, and the first stage of the handler inside makes the interrupted frame go to the second
 * stage, which answers the call: memory, threads and futexes inside, files by asking the host (EEXIT with a
 * request in host memory, EENTER with its answer).
 *
 * Offsets in the enclave's range:
 *
 *   0         code of the library OS (R X)
 *   OS_DATA   its data (R W)
 *   THREADS   per thread: struct thread, stacks, TCS, SSA frames
 *   PROGRAM   the ELF file's segments, with its permissions
 *   HEAP      what brk and mmap give out: added in advance (R W X), or with EDMM when it is asked for
 */
#ifndef LIBOS_H
#define LIBOS_H

#define OS_DATA 0x10000
#define THREADS 0x80000
#define PROGRAM 0x1000000
#define HEAP 0x4000000
#define MOST_HEAP (1UL << 30)

#define OS_THREADS 8
#define SSA_FRAMES 2
#define SSA_PAGES 4		/* as Gramine's */
#define EXCEPTION_STACK 0x3000	/* offsets in a thread's part: tops of the stacks */
#define OS_STACK 0x10000
#define TCS_AT 0x10000
#define SSA_AT 0x11000
#define THREAD_SIZE (SSA_AT + SSA_FRAMES * SSA_PAGES * 0x1000)

/* Offsets in struct thread, for assembly. */
#define T_SELF 0
#define T_HOST_RSP 8
#define T_HOST_RETURN 16
#define T_OS_RSP 24
#define T_OS_STACK 32
#define T_EXCEPTION_STACK 40

#define C_XSAVE 192		/* in struct context */

#ifndef __ASSEMBLER__
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum ask { ASK_CALL, ASK_CPUID, ASK_THREAD, ASK_THREAD_ENDED, ASK_EXIT };

#define DATA_SIZE (64 * 1024)

/* Of each thread, in host memory: what it asks of the host, and what for. */
struct block {
	u64 ask;
	long number, args[6], result;	/* of ASK_CALL: a system call, its pointers into `data` */
	u32 event;			/* what a thread that waits for a futex sleeps on */
	u32 died;			/* of an exception that nobody inside answers: */
	u64 vector, rip, rax, address;	/* rip: offset in the range */
	u8 data[DATA_SIZE];
};

/* What the host tells at the first entry. */
struct start {
	u64 heap_size, edmm, fd;	/* fd: of /dev/sgx_enclave */
	u64 pid, argc, envc, random[2];
	u64 hwcap, hwcap2, ids[4];	/* uid, euid, gid, egid */
	u64 length;			/* of the strings: arguments, then environment, each with its 0 */
	char strings[DATA_SIZE - 256];
};

/* SDM 3A, 38.9.1.1 (GPRSGX). */
struct gprsgx {
	u64 rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rflags, rip, ursp, urbp;
	u32 exitinfo, reserved;
	u64 fsbase, gsbase;
};

/* One TCS and what belongs to it; GS base inside.  Measured as the host lays it out. */
struct thread {
	struct thread *self;
	u64 host_rsp, host_return;
	u64 os_rsp;			/* where an ocall left its registers; 0: nothing runs on this TCS */
	u64 os_stack, exception_stack;
	u64 base, xsave_size, ssa, index;
	struct block *block;		/* as the host told at the first entry */
	u64 running, tid, clear_tid;
	u64 waits_for, ticket;
};
#endif
#endif
