/* A tiny SGX loader: build, measure, sign, load and enter an enclave from C.
 *
 * No SDK, no libcrypto: raw ioctls on /dev/sgx_enclave, and bare ENCLU or the vDSO to enter.
 * The code inside is the image of ../enclave; request.h says what it can do.
 */
#ifndef ENCLAVE_H
#define ENCLAVE_H

#include <stddef.h>
#include "../enclave/request.h"

#define PAGE 4096UL
#define MAX_THREADS 256

enum { R = 1, W = 2, X = 4 };			/* SECINFO permissions */
enum { TYPE_TCS = 1, TYPE_REG = 2, TYPE_TRIM = 4 };
enum { SECINFO_PENDING = 8, SECINFO_MODIFIED = 16, SECINFO_PR = 32 };
enum { EENTER = 2, ERESUME = 3, EEXIT = 4 };
enum { ATTR_DEBUG = 2, ATTR_MODE64 = 4, ATTR_PROVISION = 16, ATTR_EINITTOKEN = 32, ATTR_KSS = 128,
       ATTR_AEXNOTIFY = 1024 };

#define SGX_CREATE 0x4008a400UL
#define SGX_ADD 0xc030a401UL
#define SGX_INIT 0x4008a402UL
#define SGX_PROVISION 0x4008a403UL
#define SGX_RESTRICT 0xc028a405UL
#define SGX_MODT 0xc028a406UL
#define SGX_REMOVE 0xc018a407UL

/* What to build.  Zero means: the usual. */
struct spec {
	unsigned threads;	/* TCS; 1 */
	unsigned nssa;		/* SSA frames of each; 2 */
	unsigned ssa_pages;	/* SSAFRAMESIZE; 1 */
	unsigned heap;		/* pages added read-write, zero, not measured */
	unsigned code;		/* pages added read-write-execute, zero, for OP_CALL */
	unsigned hole;		/* pages mapped RWX but not added (EAUG on touch) */
	u64 size;		/* ELRANGE; the next power of two */
	u64 start;		/* offset of the first page */
	u64 attributes;		/* DEBUG | MODE64 */
	u64 xfrm;		/* 7 with AVX, else 3 */
	u32 miscselect;
	u64 tcs_flags;		/* of every TCS */
	int provision;		/* PROVISION ioctl before INIT */
	int one_by_one;		/* one page per ADD_PAGES */
	int base_zero;		/* map the fresh descriptor at `start` and use SECS.BASE 0 */
	/* for the negative tests */
	u64 heap_secinfo;	/* instead of R | W | REG */
	u64 entry;		/* offset in the image where EENTER goes: 0, or PROBE */
	int flip_page;		/* flip a byte of the image after measuring it */
	void (*edit_secs)(u8 *secs);
	void (*edit_sigstruct)(u8 *sigstruct, int signed_already);
};

struct enclave {
	struct spec spec;
	int fd;
	u64 base, size;
	u64 tcs[MAX_THREADS];	/* addresses */
	u64 code, heap, hole;
	u8 mrenclave[32], mrsigner[32];
	const char *step;	/* the ioctl that failed: "create", "add", "init", "mmap" … */
	int error;		/* its errno */
};

/* All steps.  0, or -1 with step and error set (the descriptor stays open). */
int enclave_load(struct enclave *e, struct spec spec);
void enclave_unload(struct enclave *e);

/* ---- the steps (build.c): 0, or -1 with step and error set ---- */
struct sha256;
long enclave_ioctl(int fd, u64 command, void *argument);	/* 0 or errno */
int enclave_failed(struct enclave *e, const char *step, int error);
u64 enclave_xfrm(void);
u64 enclave_reserve(u64 size);	/* an aligned range, or 0 */
int enclave_map(struct enclave *e, u64 offset, u64 pages, int prot);
int enclave_create(struct enclave *e, struct sha256 *sum);
/* EADD `pages` pages at `offset`; their contents are measured unless src is NULL (zeros). */
int enclave_add(struct enclave *e, struct sha256 *sum, u64 offset, u64 pages, const u8 *src, u64 flags);
int enclave_provision(struct enclave *e);
int enclave_initialise(struct enclave *e, struct sha256 *sum);

u64 ssa_address(const struct enclave *e, unsigned thread, unsigned frame);
u64 gprsgx_address(const struct enclave *e, unsigned thread, unsigned frame);
u64 stack_page(const struct enclave *e, unsigned thread, unsigned level);

/* The ioctls of a running enclave: 0 or errno; *result is the leaf's code. */
int restrict_permissions(struct enclave *e, u64 address, u64 length, u64 permissions, u64 *result);
int modify_type(struct enclave *e, u64 address, u64 length, u64 type, u64 *result);
int remove_pages(struct enclave *e, u64 address, u64 length);

/* GPRSGX field offsets. */
enum { SSA_RAX = 0, SSA_RSP = 32, SSA_RDI = 56, SSA_RIP = 136, SSA_URSP = 144, SSA_EXITINFO = 160, GPRSGX_SIZE = 184 };

/* ---- entering (enter.c, enter.S) ---- */

struct run {			/* struct sgx_enclave_run of the kernel's ABI */
	u64 tcs;
	u32 function;
	u16 vector, error_code;
	u64 address;
	u64 user_handler, user_data;
	u8 reserved[216];
};

/* One way in: a TCS at one CSSA level, with its own host stack, so that an enclave that was
 * left by a fault finds the host's frames unchanged when it is resumed later. */
struct call {
	u64 tcs;		/*  0 */
	u64 leaf;		/*  8: EENTER or ERESUME */
	struct request *request;/* 16 */
	u64 stack_top;		/* 24 */
	u64 saved_rsp;		/* 32 */
	void *vdso;		/* 40: function, or NULL for bare ENCLU */
	struct run *run;	/* 48 */
	const void *aep;	/* 56: of bare entries */
	struct request asked;
	struct run result;
};

struct call *call_new(u64 tcs, void *vdso);
void call_free(struct call *c);

/* 0: the enclave left by itself; EXCEPTION: by an exception, told in c->result; else what the vDSO
 * function returned. */
enum { EXCEPTION = 1 };
int call_enter(struct call *c, u64 leaf);
/* Fill the request and enter; *out gets the result. */
int ask(struct call *c, u64 *out, u64 op, u64 a0, u64 a1, u64 a2, u64 a3);
/* The same where nothing may go wrong; ends the program otherwise. */
u64 must(struct call *c, u64 op, u64 a0, u64 a1, u64 a2, u64 a3);
/* Leave an enclave that stopped in SSA frame `level` of `thread` for good. */
void call_unwind(struct enclave *e, struct call *stuck, unsigned thread, unsigned level);

/* ---- every register, both ways (probe.S; the enclave's side is `probe` in entry.S) ---- */

#define PROBE 256
struct probe {
	u64 inside[19];		/*    0: as the enclave found them: rax rbx rcx rdx rsi rdi rbp rsp r8-r15 flags fs gs */
	u64 pad;
	u8 inside_xmm[256];	/*  160 */
	u64 leave[13];		/*  416: what it leaves with: rdx rsi rdi rbp r8-r15 flags */
	u64 enter[14];		/*  520: what it is entered with: rdx rsi - rbp r8-r15 flags gs */
	u64 pad2;
	u64 after[19];		/*  640: as the host found them, in the order of `inside` */
	u64 pad3;
	u8 enter_xmm[256];	/*  800 */
	u8 after_xmm[256];	/* 1056 */
};
void probe_enter(struct probe *p, u64 tcs);
extern const char probe_after[], probe_aep[];

extern const char bare_aep[];	/* the AEP of bare entries */

/* ---- finding the vDSO function (vdso.c) ---- */
void *vdso_by_dynamic(void);	/* PT_DYNAMIC and DT_HASH */
void *vdso_by_sections(void);	/* section headers */
u64 vdso_size(void);		/* of its code, by these */

/* ---- sums (sha256.c, rsa.c, cmac.c) ---- */
struct sha256 {
	u32 h[8];
	u64 length;
	u8 block[64];
};
void sha256_start(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *data, size_t n);
void sha256_end(struct sha256 *s, u8 out[32]);
/* Fill modulus, exponent, signature, q1, q2 of a SIGSTRUCT whose other fields are set. */
void sign_sigstruct(u8 *sigstruct);
void aes_cmac(const u8 key[16], const void *data, size_t n, u8 out[16]);

#endif
