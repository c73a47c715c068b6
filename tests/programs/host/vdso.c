/* Two of the three ways programs find __vdso_sgx_enter_enclave.  The third, an undefined weak
 * symbol that the dynamic linker binds, needs no code: see cases/vdso_weak.c. */
#include <elf.h>
#include <string.h>
#include <sys/auxv.h>
#include "enclave.h"

static const char NAME[] = "__vdso_sgx_enter_enclave";

static u32 sysv_hash(const char *name)
{
	u32 h = 0;

	for (; *name; name++) {
		h = (h << 4) + (u8)*name;
		h ^= h >> 24 & 0xf0;
		h &= 0x0fffffff;
	}
	return h;
}

void *vdso_by_dynamic(void)
{
	u64 base = getauxval(AT_SYSINFO_EHDR), shift = 0;
	const Elf64_Ehdr *head = (void *)base;
	const Elf64_Phdr *p = (void *)(base + head->e_phoff);
	const Elf64_Dyn *d = NULL;
	const Elf64_Sym *symbols = NULL;
	const char *names = NULL;
	const u32 *hash = NULL;

	for (int i = 0; base && i < head->e_phnum; i++) {
		if (p[i].p_type == PT_DYNAMIC)
			d = (void *)(base + p[i].p_offset);
		else if (p[i].p_type == PT_LOAD)
			shift = base + p[i].p_offset - p[i].p_vaddr;
	}
	for (; d && d->d_tag != DT_NULL; d++) {
		void *at = (void *)(shift + d->d_un.d_ptr);

		if (d->d_tag == DT_SYMTAB)
			symbols = at;
		else if (d->d_tag == DT_STRTAB)
			names = at;
		else if (d->d_tag == DT_HASH)
			hash = at;
	}
	if (!symbols || !names || !hash)
		return NULL;
	for (u32 i = hash[2 + sysv_hash(NAME) % hash[0]]; i; i = hash[2 + hash[0] + i])
		if (!strcmp(names + symbols[i].st_name, NAME) && symbols[i].st_shndx != SHN_UNDEF)
			return (void *)(shift + symbols[i].st_value);
	return NULL;
}

static const Elf64_Shdr *section(u64 base, const char *name)
{
	const Elf64_Ehdr *head = (void *)base;
	const Elf64_Shdr *s = (void *)(base + head->e_shoff);
	const char *names;

	if (!head->e_shoff || head->e_shstrndx >= head->e_shnum)
		return NULL;
	names = (char *)base + s[head->e_shstrndx].sh_offset;
	for (int i = 0; i < head->e_shnum; i++)
		if (!strcmp(names + s[i].sh_name, name))
			return &s[i];
	return NULL;
}

static const Elf64_Sym *symbol_by_sections(void)
{
	u64 base = getauxval(AT_SYSINFO_EHDR);
	const Elf64_Shdr *symbols = base ? section(base, ".dynsym") : NULL;
	const Elf64_Shdr *names = base ? section(base, ".dynstr") : NULL;

	for (u64 i = 0; symbols && names && i < symbols->sh_size / sizeof(Elf64_Sym); i++) {
		const Elf64_Sym *symbol = (Elf64_Sym *)(base + symbols->sh_offset) + i;

		if (!strcmp((char *)base + names->sh_offset + symbol->st_name, NAME))
			return symbol;
	}
	return NULL;
}

void *vdso_by_sections(void)
{
	const Elf64_Sym *symbol = symbol_by_sections();

	return symbol ? (void *)(getauxval(AT_SYSINFO_EHDR) + symbol->st_value) : NULL;
}

u64 vdso_size(void)
{
	const Elf64_Sym *symbol = symbol_by_sections();

	return symbol ? symbol->st_size : 0;
}
