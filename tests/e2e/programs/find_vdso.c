/* Finds __vdso_sgx_enter_enclave in four ways, prints them, calls it with a fake TCS. */
#define _GNU_SOURCE
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <time.h>
#ifndef STATIC
#include <dlfcn.h>
#endif

static const char *name = "__vdso_sgx_enter_enclave";

static void *by_dynamic(char *base)
{
	Elf64_Ehdr *eh = (void *)base;
	Elf64_Phdr *ph = (void *)(base + eh->e_phoff);
	Elf64_Sym *symtab = NULL;
	const char *strtab = NULL;
	uint32_t *hash = NULL;

	for (int i = 0; i < eh->e_phnum; i++) {
		if (ph[i].p_type != PT_DYNAMIC)
			continue;
		for (Elf64_Dyn *d = (void *)(base + ph[i].p_vaddr); d->d_tag; d++) {
			if (d->d_tag == DT_SYMTAB)
				symtab = (void *)(base + d->d_un.d_ptr);
			if (d->d_tag == DT_STRTAB)
				strtab = base + d->d_un.d_ptr;
			if (d->d_tag == DT_HASH)
				hash = (void *)(base + d->d_un.d_ptr);
		}
	}
	uint32_t h = 0, g;
	for (const char *p = name; *p; p++) {
		h = (h << 4) + (unsigned char)*p;
		if ((g = h & 0xf0000000))
			h ^= g >> 24;
		h &= ~g;
	}
	for (uint32_t i = hash[2 + h % hash[0]]; i; i = hash[2 + hash[0] + i])
		if (!strcmp(strtab + symtab[i].st_name, name))
			return base + symtab[i].st_value;
	return NULL;
}

static void *by_sections(char *base)
{
	Elf64_Ehdr *eh = (void *)base;
	Elf64_Shdr *sh = (void *)(base + eh->e_shoff);
	const char *names = base + sh[eh->e_shstrndx].sh_offset;
	Elf64_Sym *sym = NULL;
	const char *str = NULL;
	size_t n = 0;

	for (int i = 0; i < eh->e_shnum; i++) {
		if (!strcmp(names + sh[i].sh_name, ".dynsym")) {
			sym = (void *)(base + sh[i].sh_addr);
			n = sh[i].sh_size / sh[i].sh_entsize;
		}
		if (!strcmp(names + sh[i].sh_name, ".dynstr"))
			str = base + sh[i].sh_addr;
	}
	for (size_t i = 0; i < n; i++)
		if (!strcmp(str + sym[i].st_name, name))
			return base + sym[i].st_value;
	return NULL;
}

struct run {
	uint64_t tcs;
	uint32_t function;
	uint16_t vector, error_code;
	uint64_t addr, handler, data;
	uint8_t reserved[216];
};

typedef int (*enter_fn)(long rdi, long rsi, long rdx, unsigned function, long r8, long r9, struct run *run);
static int calls;

static int handler(long rdi, long rsi, long rdx, long rsp, long r8, long r9, struct run *run)
{
	calls++;
	printf("handler %ld %ld %ld %d %ld %ld function %u aligned %d\n", rdi, rsi, rdx, rsp != 0, r8, r9,
	       run->function, ((uintptr_t)__builtin_frame_address(0) & 15) == 0);
	return calls == 1 ? 3 : -calls;
}

int main(int argc, char **argv)
{
	if (argc > 1)
		name = argv[1];
	char *base = (char *)getauxval(AT_SYSINFO_EHDR);
	void *found[4] = { by_dynamic(base), by_sections(base), NULL, NULL };
	struct timespec now;
	struct run run = { .tcs = 0x123000 };
	int result;

	found[2] = found[3] = found[0];
#ifndef STATIC
	void *vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
	found[2] = vdso ? dlsym(vdso, name) : NULL;
	found[3] = vdso ? dlvsym(vdso, name, "LINUX_2.6") : NULL;
#endif
	for (int i = 0; i < 4; i++)
		printf("found %d\n", found[i] != NULL && found[i] == found[0]);
	if (!found[0])
		return 1;
	enter_fn enter = (enter_fn)found[0];

	clock_gettime(CLOCK_MONOTONIC, &now);
	result = enter(1, 2, 3, 5, 4, 5, &run);
	printf("bad leaf %d\n", result);
	run.reserved[215] = 1;
	result = enter(1, 2, 3, 2, 4, 5, &run);
	printf("reserved %d\n", result);
	run.reserved[215] = 0;
	result = enter(1, 2, 3, 2, 4, 5, &run);
	printf("exit %d function %u\n", result, run.function);
	result = enter(1, 2, 3, 2, 4, 5, &run);
	printf("exception %d function %u vector %u code %u addr %lx\n", result, run.function, run.vector,
	       run.error_code, run.addr);
	run.handler = (uint64_t)handler;
	result = enter(1, 2, 3, 2, 4, 5, &run);
	printf("handled %d calls %d\n", result, calls);
	return 0;
}
