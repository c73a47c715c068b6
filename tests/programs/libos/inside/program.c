/* The first entry of a thread: the program's stack as execve makes it, or what clone left. */
#include <elf.h>
#include <linux/mman.h>
#include "inside.h"

#define STACK (2UL << 20)

struct start info;

static u64 *push_word(u64 *at, u64 word)
{
	*at = word;
	return at + 1;
}

static u64 *push_pair(u64 *at, u64 type, u64 value)
{
	return push_word(push_word(at, type), value);
}

/* argc, argv, environment, auxiliary vector; the strings above them. */
static u64 *fill(u64 stack)
{
	u64 base = self()->base + PROGRAM, room = (info.argc + info.envc + 64) * 8;
	const Elf64_Ehdr *file = (void *)base;
	char *string = (char *)((stack + STACK - info.length) & -64UL);
	u64 *at = (u64 *)(((u64)string - room) & -64UL), *bottom = at;
	u8 *bytes = (u8 *)((u64)at - 16);

	copy(string, info.strings, info.length);
	copy(bytes, info.random, 16);
	at = bottom = (u64 *)((u64)bytes - room);
	at = push_word(at, info.argc);
	for (u64 i = 0; i < info.argc + info.envc; i++) {
		if (i == info.argc)
			at = push_word(at, 0);
		at = push_word(at, (u64)string);
		while (*string++)
			;
	}
	if (!info.envc)
		at = push_word(at, 0);
	at = push_word(at, 0);
	at = push_pair(at, AT_PHDR, base + file->e_phoff);
	at = push_pair(at, AT_PHENT, file->e_phentsize);
	at = push_pair(at, AT_PHNUM, file->e_phnum);
	at = push_pair(at, AT_ENTRY, base + file->e_entry);
	at = push_pair(at, AT_BASE, 0);
	at = push_pair(at, AT_PAGESZ, PAGE);
	at = push_pair(at, AT_CLKTCK, 100);
	at = push_pair(at, AT_HWCAP, info.hwcap);
	at = push_pair(at, AT_HWCAP2, info.hwcap2);
	at = push_pair(at, AT_UID, info.ids[0]);
	at = push_pair(at, AT_EUID, info.ids[1]);
	at = push_pair(at, AT_GID, info.ids[2]);
	at = push_pair(at, AT_EGID, info.ids[3]);
	at = push_pair(at, AT_SECURE, 0);
	at = push_pair(at, AT_RANDOM, (u64)bytes);
	push_pair(at, AT_NULL, 0);	/* no AT_SYSINFO_EHDR: the clock is a call too */
	return bottom;
}

static void first_thread(const struct start *host)
{
	static const long wanted[6] = { 0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0 };
	struct thread *t = self();
	struct context *c = context_of(t);
	const Elf64_Ehdr *file = (void *)(t->base + PROGRAM);
	long stack;

	copy(&info, host, sizeof info);
	if (info.heap_size > MOST_HEAP || info.length > sizeof info.strings || info.argc + info.envc > info.length)
		stop(0);
	info.strings[sizeof info.strings - 1] = 0;
	t->running = 1;
	t->tid = info.pid;
	memory_start();
	stack = memory_call(SYS_mmap, wanted);
	if (stack < 0)
		stop(0);
	clear(c, sizeof *c);
	*(u16 *)c->xsave = 0x37f;
	*(u32 *)(c->xsave + 24) = 0x1f80;
	c->r.rsp = (u64)fill(stack);
	c->r.rip = t->base + PROGRAM + file->e_entry;
	c->r.rflags = 2;
}

void thread_start(struct block *block)
{
	struct thread *t = self();

	if (in_enclave((u64)block, 1))
		stop(0);
	t->block = block;
	if (!t->index && !info.pid)
		first_thread((const struct start *)block->data);
	resume(context_of(t));
}
