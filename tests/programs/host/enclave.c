/* The tests' enclave: build and load it; the ioctls of a running one.
 *
 * Layout from spec.start: image (R X) | per thread: STACK_PAGES (R W), TCS, SSA frames (R W) |
 * code pages (R W X) | heap | hole.  Everything is added in that order, which is also the
 * order of measurement.
 */
#define _GNU_SOURCE
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
		if (enclave_add(e, sum, at, STACK_PAGES, NULL, R | W | TYPE_REG << 8) ||
		    enclave_add(e, sum, at + STACK_PAGES * PAGE, 1, tcs, TYPE_TCS << 8) ||
		    enclave_add(e, sum, at + (STACK_PAGES + 1) * PAGE, s->nssa * s->ssa_pages, NULL, R | W | TYPE_REG << 8))
			return -1;
	}
	return 0;
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
		return enclave_failed(e, "malloc", ENOMEM);
	memset(copy, 0, image * PAGE);
	memcpy(copy, enclave_image, enclave_image_end - enclave_image);
	e->code = e->base + at + (image + threads) * PAGE;
	e->heap = e->code + s->code * PAGE;
	e->hole = e->heap + s->heap * PAGE;
	bad = enclave_create(e, &sum) || enclave_add(e, &sum, at, image, copy, R | X | TYPE_REG << 8) || add_threads(e, &sum) ||
	      enclave_add(e, &sum, e->code - e->base, s->code, NULL, R | W | X | TYPE_REG << 8) ||
	      enclave_add(e, &sum, e->heap - e->base, s->heap, NULL, heap_flags);
	free(copy);
	if (bad)
		return -1;
	if (s->provision && enclave_provision(e))
		return -1;
	if (enclave_map(e, at, image, PROT_READ | PROT_EXEC) || enclave_map(e, at + image * PAGE, threads, PROT_READ | PROT_WRITE) ||
	    enclave_map(e, e->code - e->base, s->code, PROT_READ | PROT_WRITE | PROT_EXEC) ||
	    enclave_map(e, e->heap - e->base, s->heap, PROT_READ | PROT_WRITE) || enclave_initialise(e, &sum))
		return -1;
	return enclave_map(e, e->hole - e->base, s->hole, PROT_READ | PROT_WRITE | PROT_EXEC);
}

int enclave_load(struct enclave *e, struct spec spec)
{
	u64 pages;

	memset(e, 0, sizeof *e);
	spec.threads = spec.threads ? spec.threads : 1;
	spec.nssa = spec.nssa ? spec.nssa : 2;
	spec.ssa_pages = spec.ssa_pages ? spec.ssa_pages : 1;
	spec.attributes = spec.attributes ? spec.attributes : (ATTR_DEBUG | ATTR_MODE64);
	spec.xfrm = spec.xfrm ? spec.xfrm : enclave_xfrm();
	e->spec = spec;
	pages = spec.start / PAGE + image_pages() + spec.threads * thread_pages(&spec) + spec.code + spec.heap + spec.hole;
	for (e->size = 2 * PAGE; e->size < pages * PAGE || e->size < spec.size; e->size *= 2)
		;
	e->fd = syscall(SYS_openat, AT_FDCWD, "/dev/sgx_enclave", O_RDWR | O_CLOEXEC, 0);
	if (e->fd < 0)
		return enclave_failed(e, "open", errno);
	if (spec.base_zero) {
		if (mmap((void *)spec.start, e->size - spec.start, PROT_READ | PROT_WRITE | PROT_EXEC,
			 MAP_SHARED | MAP_FIXED_NOREPLACE, e->fd, 0) != (void *)spec.start)
			return enclave_failed(e, "mmap", errno);
	} else {
		e->base = enclave_reserve(e->size);
		if (!e->base)
			return enclave_failed(e, "reserve", errno);
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
	int error = enclave_ioctl(e->fd, command, &r);

	while (error == EAGAIN || error == EBUSY) {	/* page under reclaim: the caller's to retry */
		r.offset += r.count;
		r.length -= r.count;
		r.count = r.result = 0;
		usleep(1000);
		error = enclave_ioctl(e->fd, command, &r);
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

	while ((error = enclave_ioctl(e->fd, SGX_REMOVE, &r)) == EAGAIN || error == EBUSY) {
		r.offset += r.count;
		r.length -= r.count;
		r.count = 0;
		usleep(1000);
	}
	return error;
}
