/* Memory of the program: brk, mmap, munmap, mprotect, mremap, madvise.
 *
 * Without EDMM all pages of the heap are there, readable, writable and executable, and protection is noted
 * only: a page keeps its EPCM permissions for ever.  With EDMM a page is accepted when it is given out (EAUG by
 * EACCEPT), extended by EMODPE, restricted by EMODPR and EACCEPT, removed by EMODT, EACCEPT and EREMOVE.
 *
 * Pages are counted from PROGRAM on: the file's segments, what brk gives, what mmap gives.
 */
#include <elf.h>
#include <linux/mman.h>
#include "inside.h"

enum { ALL = PROT_READ | PROT_WRITE | PROT_EXEC, USED = 8, THERE = 16, DIRTY = 32 };
enum { REG = 2 << 8, TRIM = 4 << 8, PENDING = 8, MODIFIED = 16, PR = 32 };
enum { RESTRICT = 0xc028a405, MODT = 0xc028a406, REMOVE = 0xc018a407 };

#define FIRST ((HEAP - PROGRAM) / PAGE)			/* page of the heap */
static u8 state[FIRST + MOST_HEAP / PAGE];	/* protection; USED by the program, THERE with contents, DIRTY before */
static u64 brk_end;				/* in bytes from PROGRAM */
static u64 brk_most, end;			/* pages */

static u8 *address(u64 page)
{
	return (u8 *)self()->base + PROGRAM + page * PAGE;
}

/* ---- EDMM ---- */

struct secinfo { u64 flags, reserved[7]; } __attribute__((aligned(64)));

static void accept(u64 page, u64 flags)
{
	struct secinfo wanted = { flags, { 0 } };
	u64 error;

	asm volatile("mov $5, %%eax\n\tenclu" : "=&a"(error) : "b"(&wanted), "c"(address(page)) : "memory", "cc");
	if (error)
		stop(error);	/* the host did something else than it was asked for */
}

static void extend(u64 page, u64 permissions)
{
	struct secinfo wanted = { permissions | REG, { 0 } };

	asm volatile("mov $6, %%eax\n\tenclu" : : "b"(&wanted), "c"(address(page)) : "rax", "memory", "cc");
}

/* An ioctl on a run of pages, as often as the kernel wants to be asked. */
static void edmm(long command, u64 first, u64 n, u64 argument)
{
	u64 *range = (u64 *)self()->block->data, at = PROGRAM + first * PAGE, last = at + n * PAGE;
	u64 count = command == REMOVE ? 2 : 4;	/* where the kernel says how far it came */

	while (at < last) {
		const u64 words[5] = { at, last - at, command == REMOVE ? 0 : argument };
		long error;

		copy(range, words, sizeof words);
		error = host_call(SYS_ioctl, info.fd, command, (long)range, 0, 0, 0);
		if ((error && error != -EAGAIN && error != -EBUSY && error != -EINTR) || range[count] > last - at)
			stop(error);
		at += range[count];
	}
}

static void restrict_run(u64 first, u64 n, u64 permissions)
{
	if (n)
		edmm(RESTRICT, first, n, permissions);
	for (u64 page = first; page < first + n; page++)
		accept(page, permissions | REG | PR);
}

static void remove_run(u64 first, u64 n)
{
	if (!n)
		return;
	edmm(MODT, first, n, TRIM >> 8);
	for (u64 page = first; page < first + n; page++)
		accept(page, TRIM | MODIFIED);
	edmm(REMOVE, first, n, 0);
}

/* ---- pages ---- */

static void release(u64 first, u64 n)
{
	u64 run = 0;

	for (u64 page = first; page < first + n; page++) {
		int remove = info.edmm && state[page] & THERE;

		state[page] &= info.edmm ? 0 : DIRTY;
		if (!remove)
			remove_run(page - run, run);
		run = remove ? run + 1 : 0;
	}
	remove_run(first + n - run, run);
}

/* Give pages to the program with these permissions; what is new is zero. */
static void protect(u64 first, u64 n, u64 permissions)
{
	u64 run = 0;

	for (u64 page = first; page < first + n; page++) {
		u64 now = state[page] & ALL;
		int less;

		if (!(state[page] & THERE) && permissions) {	/* before, nobody can tell whether it is there */
			if (info.edmm)
				accept(page, PROT_READ | PROT_WRITE | REG | PENDING);
			else if (state[page] & DIRTY)
				clear(address(page), PAGE);
			now = PROT_READ | PROT_WRITE;
			state[page] |= THERE | DIRTY;
		}
		state[page] = (state[page] & ~ALL) | USED | permissions;
		less = info.edmm && state[page] & THERE && now & ~permissions;
		if (info.edmm && state[page] & THERE && permissions & ~now)
			extend(page, permissions | now);
		if (!less)
			restrict_run(page - run, run, permissions);
		run = less ? run + 1 : 0;
	}
	restrict_run(first + n - run, run, permissions);
}

static long find(u64 n)
{
	static u64 rover;

	for (int round = 0; round < 2; round++) {
		u64 run = 0;

		for (u64 page = rover > brk_most ? rover : brk_most; page < end; page++) {
			run = state[page] & USED ? 0 : run + 1;
			if (run == n) {
				rover = page + 1;
				return page + 1 - n;
			}
		}
		rover = 0;
	}
	return -ENOMEM;
}

/* The page at an address of the program's, with `n` pages behind it. */
static long page_at(u64 at, u64 n)
{
	u64 page = (at - self()->base - PROGRAM) / PAGE;

	return at % PAGE ? -EINVAL : page >= end || n > end - page ? -ENOMEM : (long)page;
}

/* ---- calls ---- */

static long change_brk(u64 wanted)
{
	u64 to = wanted - (u64)address(0), before = ROUND(brk_end) / PAGE, after = ROUND(to) / PAGE;

	if (to < FIRST * PAGE || after > brk_most)
		return (long)address(0) + brk_end;
	if (after > before)
		protect(before, after - before, PROT_READ | PROT_WRITE);
	else
		release(after, before - after);
	brk_end = to;
	return wanted;
}

static void read_file(u8 *to, u64 length, long fd, u64 offset)
{
	for (u64 done = 0; done < length;) {
		u64 want = length - done < DATA_SIZE ? length - done : DATA_SIZE;
		u8 *data = self()->block->data;
		long got = host_call(SYS_pread64, fd, (long)data, want, offset + done, 0, 0);

		if (got <= 0)
			return;
		copy(to + done, data, (u64)got < want ? (u64)got : want);
		done += got;
	}
}

static long map(u64 at, u64 length, u64 permissions, long flags, long fd, u64 offset)
{
	u64 n = ROUND(length) / PAGE;
	long first = flags & MAP_FIXED ? page_at(at, n) : find(n);

	if (!n || (!(flags & MAP_ANONYMOUS) && flags & MAP_SHARED && permissions & PROT_WRITE))
		return -EINVAL;
	if (first < 0)
		return first;
	release(first, n);
	for (u64 page = first; page < first + n; page++)
		state[page] |= USED;
	if (!(flags & MAP_ANONYMOUS)) {
		protect(first, n, PROT_READ | PROT_WRITE);
		read_file(address(first), length, fd, offset);
	}
	protect(first, n, permissions);
	return (long)address(first);
}

static long move(u64 at, u64 length, u64 wanted, long flags)
{
	u64 before = ROUND(length) / PAGE, after = ROUND(wanted) / PAGE;
	long first = page_at(at, before), to;

	if (first < 0 || !after || (after > before && !(flags & MREMAP_MAYMOVE)))
		return first < 0 ? first : -ENOMEM;
	if (after <= before) {
		release(first + after, before - after);
		return at;
	}
	to = map(0, wanted, PROT_READ | PROT_WRITE, MAP_ANONYMOUS, -1, 0);
	if (to < 0)
		return to;
	copy((void *)to, (void *)at, length);
	release(first, before);
	return to;
}

static long call(long number, const long *a)
{
	u64 n = ROUND((u64)a[1]) / PAGE;
	long first;

	if (number == SYS_brk)
		return change_brk(a[0]);
	if (number == SYS_mmap)
		return map(a[0], a[1], a[2] & ALL, a[3], a[4], a[5]);
	if (number == SYS_mremap)
		return move(a[0], a[1], a[2], a[3]);
	if (number != SYS_munmap && number != SYS_mprotect && number != SYS_madvise)
		return -ENOSYS;
	first = page_at(a[0], n);
	if (first < 0)
		return first;
	if (number == SYS_munmap)
		release(first, n);
	else if (number == SYS_mprotect)
		protect(first, n, a[2] & ALL);
	else if (a[2] == MADV_DONTNEED)
		for (u64 page = first; page < first + n; page++)
			if (state[page] & THERE && state[page] & PROT_WRITE)
				clear(address(page), PAGE);
	return 0;
}

long memory_call(long number, const long *a)
{
	long result;

	lock();
	result = call(number, a);
	unlock();
	return result;
}

/* The file's segments are there, with their permissions. */
void memory_start(void)
{
	const Elf64_Ehdr *file = (void *)address(0);
	const Elf64_Phdr *p = (void *)(address(0) + file->e_phoff);

	for (int i = 0; i < file->e_phnum; i++)
		for (u64 at = p[i].p_vaddr & -PAGE; p[i].p_type == PT_LOAD && at < p[i].p_vaddr + p[i].p_memsz; at += PAGE)
			state[at / PAGE] = USED | THERE | DIRTY | (p[i].p_flags & PF_R ? PROT_READ : 0) |
					   (p[i].p_flags & PF_W ? PROT_WRITE : 0) | (p[i].p_flags & PF_X ? PROT_EXEC : 0);
	brk_end = FIRST * PAGE;
	brk_most = FIRST + info.heap_size / PAGE / 4;
	end = FIRST + info.heap_size / PAGE;
}
