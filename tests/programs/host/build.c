/* The steps of building any enclave: address space, ECREATE, EADD and EEXTEND, EINIT.
 *
 * What lies where is the caller's business (enclave.c: the tests' enclave; ../libos: a real program).
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

struct add_pages { u64 src, offset, length, secinfo, flags, count; };
struct secinfo { u64 flags, reserved[7]; } __attribute__((aligned(64)));

/* Raw, so that nothing between us and the kernel can differ from one libc to another. */
long enclave_ioctl(int fd, u64 command, void *argument)
{
	return syscall(SYS_ioctl, fd, command, argument) < 0 ? errno : 0;
}

int enclave_failed(struct enclave *e, const char *step, int error)
{
	e->step = step;
	e->error = error;
	return -1;
}

u64 enclave_xfrm(void)
{
	u32 a, b, c, d;

	__cpuid(1, a, b, c, d);
	return c & bit_AVX ? 7 : 3;
}

/* ---- address space ---- */

u64 enclave_reserve(u64 size)
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

int enclave_map(struct enclave *e, u64 offset, u64 pages, int prot)
{
	void *at = (void *)(e->base + offset);

	if (!pages)
		return 0;
	if (mmap(at, pages * PAGE, prot, MAP_SHARED | MAP_FIXED, e->fd, 0) != at)
		return enclave_failed(e, "mmap", errno);
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
int enclave_add(struct enclave *e, struct sha256 *sum, u64 offset, u64 pages, const u8 *src, u64 flags)
{
	struct secinfo info = { .flags = flags };
	struct add_pages request = { .offset = offset, .length = pages * PAGE, .secinfo = (u64)&info };
	u8 *zeros = NULL;

	if (!pages)
		return 0;
	if (!src) {
		zeros = mmap(NULL, pages * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (zeros == MAP_FAILED)
			return enclave_failed(e, "mmap", errno);
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
		error = enclave_ioctl(e->fd, SGX_ADD, &request);

		if (error && error != EINTR)
			return enclave_failed(e, "add", error);
		if (src)
			request.src += request.count;
		request.offset += request.count;
		request.count = 0;
	}
	if (zeros)
		munmap(zeros, pages * PAGE);
	return 0;
}

int enclave_create(struct enclave *e, struct sha256 *sum)
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
	error = enclave_ioctl(e->fd, SGX_CREATE, &argument);
	return error ? enclave_failed(e, "create", error) : 0;
}

int enclave_initialise(struct enclave *e, struct sha256 *sum)
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
	error = enclave_ioctl(e->fd, SGX_INIT, &argument);
	return error ? enclave_failed(e, "init", error) : 0;
}

/* The right to ask for PROVISIONKEY. */
int enclave_provision(struct enclave *e)
{
	int fd = open("/dev/sgx_provision", O_RDONLY | O_CLOEXEC), error;
	u64 argument = fd;

	if (fd < 0)
		return enclave_failed(e, "provision", errno);
	error = enclave_ioctl(e->fd, SGX_PROVISION, &argument);
	close(fd);
	return error ? enclave_failed(e, "provision", error) : 0;
}
