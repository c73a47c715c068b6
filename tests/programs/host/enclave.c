/* Build, measure, sign and load an enclave; the ioctls of a running one.
 *
 * Layout from spec.start: image (R X) | per thread: STACK_PAGES (R W), TCS, SSA frames (R W) |
 * code pages (R W X) | heap | hole.  Everything is added in that order, which is also the
 * order of measurement.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "enclave.h"

extern const u8 enclave_image[], enclave_image_end[];

struct add_pages { u64 src, offset, length, secinfo, flags, count; };
struct secinfo { u64 flags, reserved[7]; } __attribute__((aligned(64)));

/* Raw, so that nothing between us and the kernel can differ from one libc to another. */
static long raw_ioctl(int fd, u64 command, void *argument)
{
	return syscall(SYS_ioctl, fd, command, argument) < 0 ? errno : 0;
}

static int failed(struct enclave *e, const char *step, int error)
{
	e->step = step;
	e->error = error;
	return -1;
}

static u64 default_xfrm(void)
{
	u32 a, b, c, d;

	__cpuid(1, a, b, c, d);
	return c & bit_AVX ? 7 : 3;
}

static u64 image_pages(void)
{
	return (enclave_image_end - enclave_image + PAGE - 1) / PAGE;
}

static u64 thread_pages(const struct spec *s)
{
	return STACK_PAGES + 1 + s->nssa * s->ssa_pages;
}

static u64 thread_at(const struct enclave *e, unsigned thread)
{
	return e->base + e->spec.start + (image_pages() + thread * thread_pages(&e->spec)) * PAGE;
}

u64 stack_page(const struct enclave *e, unsigned thread, unsigned level)
{
	return thread_at(e, thread) + (STACK_PAGES - 1 - level) * PAGE;
}

u64 ssa_address(const struct enclave *e, unsigned thread, unsigned frame)
{
	return thread_at(e, thread) + (STACK_PAGES + 1 + frame * e->spec.ssa_pages) * PAGE;
}

u64 gprsgx_address(const struct enclave *e, unsigned thread, unsigned frame)
{
	return ssa_address(e, thread, frame) + e->spec.ssa_pages * PAGE - GPRSGX_SIZE;
}

/* ---- address space ---- */

static u64 reserve(u64 size)
{
	u8 *at = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	u64 base;

	if (at == MAP_FAILED)
		return 0;
	base = ((u64)at + size - 1) & -size;
	if (base > (u64)at)
		munmap(at, base - (u64)at);
	munmap((void *)(base + size), (u64)at + size - base);
	return base;
}

static int map(struct enclave *e, u64 offset, u64 pages, int prot)
{
	void *at = (void *)(e->base + offset);

	if (!pages)
		return 0;
	if (mmap(at, pages * PAGE, prot, MAP_SHARED | MAP_FIXED, e->fd, 0) != at)
		return failed(e, "mmap", errno);
	return 0;
}

/* ---- building ---- */

static void measure(struct sha256 *sum, const char *tag, u64 a, u64 b)
{
	u8 block[64] = { 0 };

	strncpy((char *)block, tag, 8);
	memcpy(block + 8, &a, 8);
	memcpy(block + 16, &b, 8);
	sha256_add(sum, block, 64);
}

/* EADD `pages` pages at `offset`; their contents are measured unless src is NULL (zeros). */
static int add(struct enclave *e, struct sha256 *sum, u64 offset, u64 pages, const u8 *src, u64 flags)
{
	struct secinfo info = { .flags = flags };
	struct add_pages request = { .offset = offset, .length = pages * PAGE, .secinfo = (u64)&info };
	u8 *zeros = NULL;

	if (!pages)
		return 0;
	if (!src) {
		zeros = mmap(NULL, pages * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (zeros == MAP_FAILED)
			return failed(e, "mmap", errno);
	}
	for (u64 page = 0; page < pages; page++) {
		u64 at = offset + page * PAGE;

		measure(sum, "EADD\0\0\0", at, flags);
		for (u64 part = 0; src && part < PAGE; part += 256) {
			measure(sum, "EEXTEND", at + part, 0);
			sha256_add(sum, src + page * PAGE + part, 256);
		}
	}
	if (src && e->spec.flip_page) {
		((u8 *)src)[pages * PAGE - 1] ^= 1;
		e->spec.flip_page = 0;
	}
	request.flags = src ? 1 : 0;
	request.src = (u64)(src ? src : zeros);
	while (pages * PAGE > request.offset - offset) {	/* a short count is legal: go on behind it */
		int error;

		request.length = e->spec.one_by_one ? PAGE : offset + pages * PAGE - request.offset;
		error = raw_ioctl(e->fd, SGX_ADD, &request);

		if (error && error != EINTR)
			return failed(e, "add", error);
		if (src)
			request.src += request.count;
		request.offset += request.count;
		request.count = 0;
	}
	if (zeros)
		munmap(zeros, pages * PAGE);
	return 0;
}

static void fill_tcs(const struct enclave *e, unsigned thread, u8 *tcs)
{
	u64 ssa = ssa_address(e, thread, 0) - e->base, entry = e->spec.start + e->spec.entry;
	u64 local = stack_page(e, thread, STACK_PAGES - 1) - e->base;
	u32 nssa = e->spec.nssa, limit = 0xfff;

	memset(tcs, 0, PAGE);
	memcpy(tcs + 8, &e->spec.tcs_flags, 8);
	memcpy(tcs + 16, &ssa, 8);
	memcpy(tcs + 28, &nssa, 4);
	memcpy(tcs + 32, &entry, 8);
	memcpy(tcs + 48, &local, 8);
	memcpy(tcs + 56, &local, 8);
	memcpy(tcs + 64, &limit, 4);
	memcpy(tcs + 68, &limit, 4);
}

static int add_threads(struct enclave *e, struct sha256 *sum)
{
	static __thread u8 tcs[4096] __attribute__((aligned(4096)));
	struct spec *s = &e->spec;

	for (unsigned t = 0; t < s->threads; t++) {
		u64 at = thread_at(e, t) - e->base;

		e->tcs[t] = e->base + at + STACK_PAGES * PAGE;
		fill_tcs(e, t, tcs);
		if (add(e, sum, at, STACK_PAGES, NULL, R | W | TYPE_REG << 8) ||
		    add(e, sum, at + STACK_PAGES * PAGE, 1, tcs, TYPE_TCS << 8) ||
		    add(e, sum, at + (STACK_PAGES + 1) * PAGE, s->nssa * s->ssa_pages, NULL, R | W | TYPE_REG << 8))
			return -1;
	}
	return 0;
}

static int create(struct enclave *e, struct sha256 *sum)
{
	static __thread u8 secs[4096] __attribute__((aligned(4096)));
	u64 argument = (u64)secs;
	u8 block[64] = "ECREATE";
	int error;

	memset(secs, 0, sizeof secs);
	memcpy(secs, &e->size, 8);
	memcpy(secs + 8, &e->base, 8);
	memcpy(secs + 16, &e->spec.ssa_pages, 4);
	memcpy(secs + 20, &e->spec.miscselect, 4);
	memcpy(secs + 48, &e->spec.attributes, 8);
	memcpy(secs + 56, &e->spec.xfrm, 8);
	if (e->spec.edit_secs)
		e->spec.edit_secs(secs);
	sha256_start(sum);
	memcpy(block + 8, &e->spec.ssa_pages, 4);
	memcpy(block + 12, &e->size, 8);
	sha256_add(sum, block, 64);
	error = raw_ioctl(e->fd, SGX_CREATE, &argument);
	return error ? failed(e, "create", error) : 0;
}

static int initialise(struct enclave *e, struct sha256 *sum)
{
	static __thread u8 sigstruct[4096] __attribute__((aligned(4096)));
	static const u64 header[] = { 0x000000e100000006, 0x10000, 0x0000006000000101, 0x0000000100000060 };
	u64 argument = (u64)sigstruct, all = ~0UL;
	struct sha256 signer;
	int error;

	sha256_end(sum, e->mrenclave);
	memset(sigstruct, 0, sizeof sigstruct);
	memcpy(sigstruct, header, 16);
	memcpy(sigstruct + 20, &(u32){ 0x20240101 }, 4);
	memcpy(sigstruct + 24, header + 2, 16);
	memcpy(sigstruct + 900, &e->spec.miscselect, 4);
	memcpy(sigstruct + 904, &all, 4);
	memcpy(sigstruct + 928, &e->spec.attributes, 8);
	memcpy(sigstruct + 936, &e->spec.xfrm, 8);
	memcpy(sigstruct + 944, &all, 8);
	memcpy(sigstruct + 952, &all, 8);
	memcpy(sigstruct + 960, e->mrenclave, 32);
	memcpy(sigstruct + 1024, &(u16){ 7 }, 2);
	memcpy(sigstruct + 1026, &(u16){ 1 }, 2);
	if (e->spec.edit_sigstruct)
		e->spec.edit_sigstruct(sigstruct, 0);
	sign_sigstruct(sigstruct);
	if (e->spec.edit_sigstruct)
		e->spec.edit_sigstruct(sigstruct, 1);
	sha256_start(&signer);
	sha256_add(&signer, sigstruct + 128, 384);
	sha256_end(&signer, e->mrsigner);
	error = raw_ioctl(e->fd, SGX_INIT, &argument);
	return error ? failed(e, "init", error) : 0;
}

/* The right to ask for PROVISIONKEY. */
static int provision(struct enclave *e)
{
	int fd = open("/dev/sgx_provision", O_RDONLY | O_CLOEXEC), error;
	u64 argument = fd;

	if (fd < 0)
		return failed(e, "provision", errno);
	error = raw_ioctl(e->fd, SGX_PROVISION, &argument);
	close(fd);
	return error ? failed(e, "provision", error) : 0;
}

static int build(struct enclave *e)
{
	struct spec *s = &e->spec;
	u64 image = image_pages(), threads = s->threads * thread_pages(s), at = s->start;
	u8 *copy = aligned_alloc(PAGE, image * PAGE);
	u64 heap_flags = s->heap_secinfo ? s->heap_secinfo : (R | W | TYPE_REG << 8);
	struct sha256 sum;
	int bad;

	if (!copy)
		return failed(e, "malloc", ENOMEM);
	memset(copy, 0, image * PAGE);
	memcpy(copy, enclave_image, enclave_image_end - enclave_image);
	e->code = e->base + at + (image + threads) * PAGE;
	e->heap = e->code + s->code * PAGE;
	e->hole = e->heap + s->heap * PAGE;
	bad = create(e, &sum) || add(e, &sum, at, image, copy, R | X | TYPE_REG << 8) || add_threads(e, &sum) ||
	      add(e, &sum, e->code - e->base, s->code, NULL, R | W | X | TYPE_REG << 8) ||
	      add(e, &sum, e->heap - e->base, s->heap, NULL, heap_flags);
	free(copy);
	if (bad)
		return -1;
	if (s->provision && provision(e))
		return -1;
	if (map(e, at, image, PROT_READ | PROT_EXEC) || map(e, at + image * PAGE, threads, PROT_READ | PROT_WRITE) ||
	    map(e, e->code - e->base, s->code, PROT_READ | PROT_WRITE | PROT_EXEC) ||
	    map(e, e->heap - e->base, s->heap, PROT_READ | PROT_WRITE) || initialise(e, &sum))
		return -1;
	return map(e, e->hole - e->base, s->hole, PROT_READ | PROT_WRITE | PROT_EXEC);
}

int enclave_load(struct enclave *e, struct spec spec)
{
	u64 pages;

	memset(e, 0, sizeof *e);
	spec.threads = spec.threads ? spec.threads : 1;
	spec.nssa = spec.nssa ? spec.nssa : 2;
	spec.ssa_pages = spec.ssa_pages ? spec.ssa_pages : 1;
	spec.attributes = spec.attributes ? spec.attributes : (ATTR_DEBUG | ATTR_MODE64);
	spec.xfrm = spec.xfrm ? spec.xfrm : default_xfrm();
	e->spec = spec;
	pages = spec.start / PAGE + image_pages() + spec.threads * thread_pages(&spec) + spec.code + spec.heap + spec.hole;
	for (e->size = 2 * PAGE; e->size < pages * PAGE || e->size < spec.size; e->size *= 2)
		;
	e->fd = syscall(SYS_openat, AT_FDCWD, "/dev/sgx_enclave", O_RDWR | O_CLOEXEC, 0);
	if (e->fd < 0)
		return failed(e, "open", errno);
	if (spec.base_zero) {
		if (mmap((void *)spec.start, e->size - spec.start, PROT_READ | PROT_WRITE | PROT_EXEC,
			 MAP_SHARED | MAP_FIXED_NOREPLACE, e->fd, 0) != (void *)spec.start)
			return failed(e, "mmap", errno);
	} else {
		e->base = reserve(e->size);
		if (!e->base)
			return failed(e, "reserve", errno);
	}
	return build(e);
}

void enclave_unload(struct enclave *e)
{
	u64 start = e->base + (e->spec.base_zero ? e->spec.start : 0);

	if (start)
		munmap((void *)start, e->base + e->size - start);
	if (e->fd >= 0)
		close(e->fd);
	e->fd = -1;
}

/* ---- SGX2 ---- */

static int edmm(struct enclave *e, u64 command, u64 address, u64 length, u64 argument, u64 *result)
{
	struct { u64 offset, length, argument, result, count; } r = { address - e->base, length, argument, 0, 0 };
	int error = raw_ioctl(e->fd, command, &r);

	while (error == EAGAIN || error == EBUSY) {	/* page under reclaim: the caller's to retry */
		r.offset += r.count;
		r.length -= r.count;
		r.count = r.result = 0;
		usleep(1000);
		error = raw_ioctl(e->fd, command, &r);
	}
	if (result)
		*result = r.result;
	return error;
}

int restrict_permissions(struct enclave *e, u64 address, u64 length, u64 permissions, u64 *result)
{
	return edmm(e, SGX_RESTRICT, address, length, permissions, result);
}

int modify_type(struct enclave *e, u64 address, u64 length, u64 type, u64 *result)
{
	return edmm(e, SGX_MODT, address, length, type, result);
}

int remove_pages(struct enclave *e, u64 address, u64 length)
{
	struct { u64 offset, length, count; } r = { address - e->base, length, 0 };
	int error;

	while ((error = raw_ioctl(e->fd, SGX_REMOVE, &r)) == EAGAIN || error == EBUSY) {
		r.offset += r.count;
		r.length -= r.count;
		r.count = 0;
		usleep(1000);
	}
	return error;
}
