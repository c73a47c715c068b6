/* From an ELF file to an enclave: library OS, threads, the file's segments, heap. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "host.h"

extern const u8 inside_image[], inside_image_end[];

static void end(const char *what, const char *why)
{
	fprintf(stderr, "libos: %s: %s\n", what, why);
	exit(125);
}

static void must_load(struct enclave *e, int error)
{
	if (error)
		end(e->step, strerror(e->error));
}

/* EADD; the pages' contents, padded with zeros. */
static void add(struct enclave *e, struct sha256 *sum, u64 offset, u64 size, const u8 *from, u64 length, u64 flags)
{
	u64 pages = (size + PAGE - 1) / PAGE;
	u8 *buffer = from ? aligned_alloc(PAGE, pages * PAGE) : NULL;

	if (from) {
		memset(buffer, 0, pages * PAGE);
		memcpy(buffer, from, length);
	}
	must_load(e, enclave_add(e, sum, offset, pages, buffer, flags));
	must_load(e, enclave_map(e, offset, pages, flags & (R | W | X)));	/* the bits of mmap too */
	free(buffer);
}

static u64 xsave_size(void)
{
	u32 a, size, c, d;

	__cpuid_count(13, 0, a, size, c, d);	/* for what XCR0 has now */
	return size;
}

static void add_thread(struct enclave *e, struct sha256 *sum, u64 index)
{
	u64 at = THREADS + index * THREAD_SIZE, words[PAGE / 8] = { 0 };
	struct thread *t = (struct thread *)words;
	u8 tcs[PAGE] __attribute__((aligned(4096))) = { 0 };
	u32 limit = 0xfff, frames = SSA_FRAMES;
	u64 ssa = at + SSA_AT;

	t->self = (struct thread *)(e->base + at);
	t->os_stack = e->base + at + OS_STACK;
	t->exception_stack = e->base + at + EXCEPTION_STACK;
	t->base = e->base;
	t->xsave_size = xsave_size();
	t->ssa = e->base + ssa;
	t->index = index;
	memcpy(tcs + 16, &ssa, 8);
	memcpy(tcs + 28, &frames, 4);
	memcpy(tcs + 48, &at, 8);		/* FS and GS base */
	memcpy(tcs + 56, &at, 8);
	memcpy(tcs + 64, &limit, 4);
	memcpy(tcs + 68, &limit, 4);
	add(e, sum, at, TCS_AT, (u8 *)words, PAGE, R | W | TYPE_REG << 8);
	must_load(e, enclave_add(e, sum, at + TCS_AT, 1, tcs, TYPE_TCS << 8));
	must_load(e, enclave_map(e, at + TCS_AT, 1, PROT_READ | PROT_WRITE));
	add(e, sum, at + SSA_AT, SSA_FRAMES * SSA_PAGES * PAGE, NULL, 0, R | W | TYPE_REG << 8);
	e->tcs[index] = e->base + at + TCS_AT;
}

static void add_program(struct enclave *e, struct sha256 *sum, const u8 *file, u64 length)
{
	const Elf64_Ehdr *head = (const Elf64_Ehdr *)file;
	const Elf64_Phdr *p = (const Elf64_Phdr *)(file + head->e_phoff);

	if (length < sizeof *head || memcmp(head->e_ident, ELFMAG, 4) || head->e_type != ET_DYN)
		end("the program", "not a position-independent ELF file");
	for (int i = 0; i < head->e_phnum; i++) {
		u64 start = p[i].p_vaddr & -PAGE, before = p[i].p_vaddr - start;
		u64 flags = (p[i].p_flags & PF_R ? R : 0) | (p[i].p_flags & PF_W ? W : 0) | (p[i].p_flags & PF_X ? X : 0);

		if (p[i].p_type == PT_INTERP)
			end("the program", "it is not static");
		if (p[i].p_type == PT_LOAD)
			add(e, sum, PROGRAM + start, before + p[i].p_memsz, file + p[i].p_offset - before,
			    before + p[i].p_filesz, flags | TYPE_REG << 8);
	}
}

static const u8 *whole(const char *path, u64 *length)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat found;
	void *at;

	if (fd < 0 || fstat(fd, &found))
		end(path, strerror(errno));
	at = mmap(NULL, found.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (at == MAP_FAILED)
		end(path, strerror(errno));
	close(fd);
	*length = found.st_size;
	return at;
}

void load(struct enclave *e, const char *program, const struct options *options)
{
	u32 xcr0, high;
	struct sha256 sum;
	u64 length, image = inside_image_end - inside_image;
	const u8 *file = whole(program, &length);

	asm volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
	memset(e, 0, sizeof *e);
	e->spec = (struct spec){ .threads = OS_THREADS, .nssa = SSA_FRAMES, .ssa_pages = SSA_PAGES, .miscselect = 1,
				 .attributes = ATTR_DEBUG | ATTR_MODE64, .xfrm = xcr0 & 0xe7 };
	for (e->size = 1UL << 28; e->size < HEAP + options->heap; e->size *= 2)
		;
	e->fd = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);
	if (e->fd < 0)
		end("/dev/sgx_enclave", strerror(errno));
	e->base = enclave_reserve(e->size);
	if (!e->base)
		end("address space", strerror(errno));
	must_load(e, enclave_create(e, &sum));
	add(e, &sum, 0, OS_DATA, inside_image, OS_DATA, R | X | TYPE_REG << 8);
	add(e, &sum, OS_DATA, THREADS - OS_DATA, inside_image + OS_DATA, image - OS_DATA, R | W | TYPE_REG << 8);
	for (u64 i = 0; i < OS_THREADS; i++)
		add_thread(e, &sum, i);
	add_program(e, &sum, file, length);
	if (!options->edmm)
		add(e, &sum, HEAP, options->heap, NULL, 0, R | W | X | TYPE_REG << 8);
	must_load(e, enclave_initialise(e, &sum));
	if (options->edmm)
		must_load(e, enclave_map(e, HEAP, options->heap / PAGE, R | W | X));
	munmap((void *)file, length);
}
