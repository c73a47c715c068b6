/* Cases: each runs in a child of its own, under a time limit, and prints one line. */
#ifndef CHECK_H
#define CHECK_H

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>
#include "enclave.h"

struct test {
	const char *name;
	void (*run)(void);
};

/* Runs the tests named in argv, or all.  Prints `ok NAME` or `not ok NAME: reason`; returns
 * the exit status: 0 if all passed. */
int run_tests(int argc, char **argv, const struct test *tests, size_t n);
#define RUN(argc, argv, tests) run_tests(argc, argv, tests, sizeof(tests) / sizeof *(tests))

void fail(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4), noreturn));
void skip(const char *why) __attribute__((noreturn));

#define CHECK(condition, ...)                                      \
	do {                                                       \
		if (!(condition))                                  \
			fail(__FILE__, __LINE__, __VA_ARGS__);     \
	} while (0)
#define CHECK_EQ(got, want)                                                                                  \
	do {                                                                                                 \
		u64 got_ = (u64)(got), want_ = (u64)(want);                                                  \
		if (got_ != want_)                                                                           \
			fail(__FILE__, __LINE__, "%s is %#lx (%ld), expected %#lx (%ld)", #got, got_, got_,  \
			     want_, want_);                                                                  \
	} while (0)

/* Load an enclave or fail the test. */
struct enclave load(struct spec spec);
/* A call through the vDSO / by bare ENCLU on TCS `thread`. */
struct call *by_vdso(const struct enclave *e, unsigned thread);
struct call *by_enclu(const struct enclave *e, unsigned thread);

/* Expect ask() through the vDSO to stop with this exception. */
#define EXPECT_FAULT(call, ret, vector_, code_, address_)                                                     \
	do {                                                                                                  \
		const struct run *r_ = &(call)->result;                                                       \
		if ((ret) != EXCEPTION || r_->vector != (vector_) || r_->error_code != (code_) ||                   \
		    (r_->address & ~0xfffUL) != ((u64)(address_) & ~0xfffUL))                                 \
			fail(__FILE__, __LINE__,                                                              \
			     "returned %d, vector %u, code %#x, address %#lx; expected an exception, %u, %#x, %#lx",   \
			     (ret), r_->vector, r_->error_code, r_->address, (vector_), (code_),              \
			     (u64)(address_));                                                                \
	} while (0)

/* What a fault signal showed. */
struct caught {
	int signal, code;
	u64 address, trap, error;
	u64 rip, rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8_15;	/* r8_15: all or-ed together */
	u64 xmm;						/* all or-ed together */
	u32 mxcsr;
	u16 fcw;
};

/* Enter; a SIGSEGV, SIGILL, SIGFPE, SIGTRAP or SIGBUS meanwhile abandons the call and is returned,
 * with `caught` filled.  0 if the call came back by itself. */
int guarded(struct call *c, u64 leaf, struct caught *caught);
int guarded_ask(struct call *c, struct caught *caught, u64 op, u64 a0, u64 a1, u64 a2, u64 a3);

void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags);
void block(int signal);		/* 0: all */
void unblock(int signal);
int is_blocked(int signal);
u64 host_ud2(void);		/* execute ud2 outside; returns if the handler skips it */
void start_timer(long microseconds);
void stop_timer(void);

#endif
