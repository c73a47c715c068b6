/* What the parts of the library OS know of each other. */
#ifndef INSIDE_H
#define INSIDE_H

#include <errno.h>
#include <stddef.h>
#include <sys/syscall.h>
#include "../libos.h"

#define PAGE 4096UL
#define ROUND(n) (((n) + PAGE - 1) & -PAGE)

/* The program, interrupted: on top of the thread's OS stack while the second stage works for it. */
struct context {
	struct gprsgx r;
	u64 pad;
	u8 xsave[4096 - C_XSAVE];
} __attribute__((aligned(64)));

extern struct start info;	/* a copy: the host cannot change it any more */

static inline struct thread *self(void)
{
	struct thread *t;

	asm volatile("mov %%gs:0, %0" : "=r"(t));
	return t;
}

/* The library OS cannot go on; the host tells of `why`. */
static inline void __attribute__((noreturn)) stop(u64 why)
{
	asm volatile("ud2" : : "a"(why));
	__builtin_unreachable();
}

/* entry.S */
void leave(void);				/* EEXIT; returns when the host has answered */
void leave_for_good(void) __attribute__((noreturn));
void resume(struct context *c) __attribute__((noreturn));

/* exceptions.c */
struct context *context_of(struct thread *t);
void second_stage(struct context *c) __attribute__((noreturn));

/* calls.c */
long system_call(struct context *c);
long host_call(long number, long a, long b, long c, long d, long e, long f);
void copy(void *to, const void *from, u64 n);
void clear(void *to, u64 n);
int in_enclave(u64 at, u64 length);

/* memory.c */
void memory_start(void);
long memory_call(long number, const long *a);	/* -ENOSYS if it is none */

/* threads.c */
void lock(void);
void unlock(void);
long thread_call(const struct context *c, long number, const long *a);

#endif
