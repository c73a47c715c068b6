/* System calls: the host's, through untrusted memory, and the few that need nobody.
 *
 * A table says for each call of the host what its arguments are.  Buffers are copied into the thread's block
 * and out of it; one that is longer than the block has room makes a short call, which callers are used to.
 */
#include "inside.h"

/* i: a number.  p: path.  r, w: buffer that the call reads, writes, as long as the next argument says (and, of
 * one that is written, the result).  s: struct of `size` bytes that is written; 0: must be NULL. */
static const struct call {
	u16 number, size;
	char kinds[6];
} calls[] = {
	{ SYS_read, 0, "iwi" },
	{ SYS_write, 0, "iri" },
	{ SYS_pread64, 0, "iwii" },
	{ SYS_pwrite64, 0, "irii" },
	{ SYS_open, 0, "pii" },
	{ SYS_openat, 0, "ipii" },
	{ SYS_close, 0, "i" },
	{ SYS_lseek, 0, "iii" },
	{ SYS_stat, 144, "ps" },
	{ SYS_lstat, 144, "ps" },
	{ SYS_fstat, 144, "is" },
	{ SYS_newfstatat, 144, "ipsi" },
	{ SYS_getdents64, 0, "iwi" },
	{ SYS_readlink, 0, "pwi" },
	{ SYS_readlinkat, 0, "ipwi" },
	{ SYS_getcwd, 0, "wi" },
	{ SYS_access, 0, "pi" },
	{ SYS_faccessat, 0, "ipi" },
	{ SYS_ioctl, 64, "iis" },
	{ SYS_fcntl, 0, "iii" },
	{ SYS_dup, 0, "i" },
	{ SYS_pipe2, 8, "si" },
	{ SYS_mkdir, 0, "pi" },
	{ SYS_rmdir, 0, "p" },
	{ SYS_unlink, 0, "p" },
	{ SYS_unlinkat, 0, "ipi" },
	{ SYS_rename, 0, "pp" },
	{ SYS_ftruncate, 0, "ii" },
	{ SYS_fsync, 0, "i" },
	{ SYS_fdatasync, 0, "i" },
	{ SYS_fchmod, 0, "ii" },
	{ SYS_fchown, 0, "iii" },
	{ SYS_uname, 390, "s" },
	{ SYS_sysinfo, 112, "s" },
	{ SYS_clock_gettime, 16, "is" },
	{ SYS_clock_getres, 16, "is" },
	{ SYS_getppid, 0, "" },
	{ SYS_getuid, 0, "" },
	{ SYS_geteuid, 0, "" },
	{ SYS_getgid, 0, "" },
	{ SYS_getegid, 0, "" },
	{ SYS_sched_yield, 0, "" },
};

/* Bytes, whatever the compiler thinks of loops that copy. */
void copy(void *to, const void *from, u64 n)
{
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

void clear(void *to, u64 n)
{
	asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(0) : "memory");
}

int in_enclave(u64 at, u64 length)
{
	u64 offset = at - self()->base;

	return offset < HEAP + info.heap_size && length <= HEAP + info.heap_size - offset;
}

long host_call(long number, long a, long b, long c, long d, long e, long f)
{
	struct block *block = self()->block;
	const long args[6] = { a, b, c, d, e, f };

	block->ask = ASK_CALL;
	block->number = number;
	copy(block->args, args, sizeof args);
	leave();
	return block->result;
}

static long string_length(u64 at)
{
	u64 n = 0;

	do {
		if (!in_enclave(at + n, 1))
			return -EFAULT;
		if (n == PAGE)
			return -ENAMETOOLONG;
	} while (((const char *)at)[n++]);
	return n;
}

/* One call of the table: arguments in, the call, results out. */
static long by_host(const struct call *call, const long *asked)
{
	struct block *block = self()->block;
	u64 used = 0, length[6] = { 0 };
	long args[6], n, result;

	copy(args, asked, sizeof args);
	for (int i = 0; i < 6; i++) {
		u64 at = args[i], room = DATA_SIZE - used;

		if (!call->kinds[i] || call->kinds[i] == 'i' || (call->kinds[i] == 's' && !at))
			continue;
		n = call->kinds[i] == 'p' ? string_length(at) : call->kinds[i] == 's' ? call->size : args[i + 1];
		if (call->kinds[i] == 'p' && n < 0)
			return n;
		if (call->kinds[i] == 'r' || call->kinds[i] == 'w')
			args[i + 1] = n = (u64)n < room ? (u64)n : room;
		if (!in_enclave(at, n))
			return -EFAULT;
		if (call->kinds[i] != 'w')	/* a struct may be read too (ioctl) */
			copy(block->data + used, (void *)at, n);
		length[i] = n;
		args[i] = (long)(block->data + used);
		used = (used + n + 15) & -16UL;
	}
	result = host_call(call->number, args[0], args[1], args[2], args[3], args[4], args[5]);
	for (int i = 0; result >= 0 && i < 6; i++) {
		u64 from = args[i] - (long)block->data;

		if (call->kinds[i] == 'w')
			copy((void *)asked[i], block->data + from, (u64)result < length[i] ? (u64)result : length[i]);
		else if (call->kinds[i] == 's')
			copy((void *)asked[i], block->data + from, length[i]);
	}
	return result;
}

static long random_bytes(u8 *to, u64 n)
{
	for (u64 i = 0, word; i < n; i++) {
		if (i % 8 == 0)
			while (!__builtin_ia32_rdrand64_step((unsigned long long *)&word))
				;
		to[i] = word >> i % 8 * 8;
	}
	return n;
}

/* Buffers one by one: a short call is legal. */
static long vectored(long number, const long *a)
{
	const struct { u64 base, length; } *part = (void *)a[1];
	long i = 0, plain[6] = { a[0] };

	if (a[2] < 0 || a[2] > 1024 || !in_enclave(a[1], a[2] * sizeof *part))
		return -EINVAL;
	while (i < a[2] && !part[i].length)
		i++;
	if (i == a[2])
		return 0;
	plain[1] = part[i].base;
	plain[2] = part[i].length;
	for (i = 0; calls[i].number != number; i++)
		;
	return by_host(&calls[i], plain);
}

long system_call(struct context *c)
{
	const long a[6] = { c->r.rdi, c->r.rsi, c->r.rdx, c->r.r10, c->r.r8, c->r.r9 };
	long number = c->r.rax, result;

	for (u64 i = 0; i < sizeof calls / sizeof *calls; i++)
		if (calls[i].number == number)
			return by_host(&calls[i], a);
	if ((result = memory_call(number, a)) != -ENOSYS || (result = thread_call(c, number, a)) != -ENOSYS)
		return result;
	if (number == SYS_writev)
		return vectored(SYS_write, a);
	if (number == SYS_readv)
		return vectored(SYS_read, a);
	if (number == SYS_getpid)
		return info.pid;
	if (number == SYS_arch_prctl && a[0] == 0x1002) {	/* ARCH_SET_FS */
		c->r.fsbase = a[1];
		return 0;
	}
	if (number == SYS_getrandom)
		return in_enclave(a[0], a[1]) ? random_bytes((u8 *)a[0], a[1]) : -EFAULT;
	if (number == SYS_rt_sigaction || number == SYS_rt_sigprocmask) {	/* no signals reach the program */
		if (a[2] && in_enclave(a[2], 32))
			clear((void *)a[2], number == SYS_rt_sigaction ? 32 : 8);
		return 0;
	}
	if (number == SYS_sigaltstack || number == SYS_set_robust_list)
		return 0;
	if (number == SYS_prlimit64 && a[3] && in_enclave(a[3], 16)) {
		*(u64 *)a[3] = a[1] == 3 ? 1 << 20 : 1024;	/* RLIMIT_STACK: that of new threads */
		*(u64 *)(a[3] + 8) = -1;
		return 0;
	}
	return -ENOSYS;
}
