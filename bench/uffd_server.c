/* The peer of the live benchmark: the least a user-space pager with sealed pages can do.
 *
 *     uffd_server loads PAGES SEED           every page was evicted; touch each once, in random order
 *     uffd_server pairs PAGES LIMIT N SEED   N random touches with LIMIT pages resident
 *     uffd_server swap PAGES LIMIT N SEED    the same touches of ordinary memory, without a server: the caller
 *                                            has limited it (a memory cgroup) and given it swap
 *     uffd_server half PAGES LIMIT N SEED    the same, of memory of which every second word is a small number
 *
 * Two processes: the client touches a shared memory file, the server answers its userfaultfd events.
 * Load: AES-128-GCM open, UFFDIO_COPY.  Evict, 16 at a time, first in first out: write-protect, pread,
 * seal with a fresh version, punch a hole.  No cgroup, no young bits, no enclave.
 * Prints "hz TICKS_PER_SECOND", then "PAGE TICKS" for each touch.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define BATCH 16
#define OK(expression)                                                        \
	({                                                                    \
		long r_ = (long)(expression);                                 \
		if (r_ < 0) {                                                 \
			fprintf(stderr, "%s: %s\n", #expression, strerror(errno)); \
			_exit(1);                                             \
		}                                                             \
		r_;                                                           \
	})

struct sealed {
	uint64_t version;	/* 0: resident */
	uint8_t tag[16];
	uint8_t *text;
};

static int memory, uffd;
static uint8_t *heap;
static uint64_t pages, limit, resident, version, *queue, queue_head, queue_tail;
static struct sealed *store;
static EVP_CIPHER_CTX *sealing, *opening;

static uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

static inline uint64_t ticks(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

/* ---- sealing ---- */

static void nonce_of(const struct sealed *s, uint64_t page, uint8_t nonce[12], uint64_t about[2])
{
	memset(nonce, 0, 12);
	memcpy(nonce, &s->version, 8);
	about[0] = 1;		/* enclave id */
	about[1] = page;
}

static void seal(uint64_t page, const uint8_t *plain)
{
	struct sealed *s = &store[page];
	uint64_t about[2];
	uint8_t nonce[12];
	int n;

	s->version = ++version;
	nonce_of(s, page, nonce, about);
	if (!EVP_EncryptInit_ex(sealing, NULL, NULL, NULL, nonce) ||
	    !EVP_EncryptUpdate(sealing, NULL, &n, (uint8_t *)about, sizeof about) ||
	    !EVP_EncryptUpdate(sealing, s->text, &n, plain, PAGE) || !EVP_EncryptFinal_ex(sealing, s->text + n, &n) ||
	    !EVP_CIPHER_CTX_ctrl(sealing, EVP_CTRL_GCM_GET_TAG, 16, s->tag))
		_exit(1);
}

static void unseal(uint64_t page, uint8_t *plain)
{
	struct sealed *s = &store[page];
	uint64_t about[2];
	uint8_t nonce[12];
	int n;

	nonce_of(s, page, nonce, about);
	if (!EVP_DecryptInit_ex(opening, NULL, NULL, NULL, nonce) ||
	    !EVP_DecryptUpdate(opening, NULL, &n, (uint8_t *)about, sizeof about) ||
	    !EVP_DecryptUpdate(opening, plain, &n, s->text, PAGE) ||
	    !EVP_CIPHER_CTX_ctrl(opening, EVP_CTRL_GCM_SET_TAG, 16, s->tag) ||
	    EVP_DecryptFinal_ex(opening, plain + n, &n) <= 0) {
		fprintf(stderr, "page %lu does not verify\n", page);
		_exit(1);
	}
	s->version = 0;
}

static void start_ciphers(void)
{
	static const uint8_t key[16] = "a bench-only key";

	sealing = EVP_CIPHER_CTX_new();
	opening = EVP_CIPHER_CTX_new();
	if (!EVP_EncryptInit_ex(sealing, EVP_aes_128_gcm(), NULL, key, NULL) ||
	    !EVP_DecryptInit_ex(opening, EVP_aes_128_gcm(), NULL, key, NULL))
		_exit(1);
}

/* ---- paging ---- */

static void evict(uint64_t page)
{
	static uint8_t plain[4096];
	struct uffdio_writeprotect protect = { { (uint64_t)heap + page * PAGE, PAGE }, UFFDIO_WRITEPROTECT_MODE_WP };

	OK(ioctl(uffd, UFFDIO_WRITEPROTECT, &protect));
	OK(pread(memory, plain, PAGE, page * PAGE));
	seal(page, plain);
	OK(fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE, PAGE));
	resident--;
}

static void load(uint64_t page)
{
	static uint8_t plain[4096] __attribute__((aligned(4096)));
	struct uffdio_copy copy = { .dst = (uint64_t)heap + page * PAGE, .src = (uint64_t)plain, .len = PAGE };

	unseal(page, plain);
	OK(ioctl(uffd, UFFDIO_COPY, &copy));
	queue[queue_tail++ % pages] = page;
	resident++;
}

static void serve(void)
{
	struct uffd_msg message;

	for (;;) {
		if (OK(read(uffd, &message, sizeof message)) != sizeof message)
			continue;
		for (int i = 0, n = resident >= limit ? BATCH : 0; i < n; i++)
			evict(queue[queue_head++ % pages]);
		load((message.arg.pagefault.address - (uint64_t)heap) / PAGE);
	}
}

static void server(int ready)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	start_ciphers();
	store = calloc(pages, sizeof *store);
	queue = calloc(pages, sizeof *queue);
	for (uint64_t page = 0; page < pages; page++) {
		store[page].text = malloc(PAGE);
		memset(store[page].text, 0, PAGE);
		resident++;
		evict(page);
	}
	OK(write(ready, "", 1));
	serve();
}

/* ---- the client ---- */

static void open_memory(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MISSING_SHMEM |
							       UFFD_FEATURE_WP_HUGETLBFS_SHMEM };
	struct uffdio_register range;

	memory = OK(memfd_create("heap", MFD_CLOEXEC));
	OK(ftruncate(memory, pages * PAGE));
	for (uint64_t page = 0; page < pages; page++)
		OK(pwrite(memory, &(uint64_t){ 0 }, 8, page * PAGE));
	heap = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	if (heap == MAP_FAILED)
		_exit(1);
	uffd = OK(syscall(SYS_userfaultfd, O_CLOEXEC));
	OK(ioctl(uffd, UFFDIO_API, &api));
	range = (struct uffdio_register){ { (uint64_t)heap, pages * PAGE },
					  UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP, 0 };
	OK(ioctl(uffd, UFFDIO_REGISTER, &range));
}

/* Touch the listed pages, timing each; every page counts its touches, and the count is checked. */
static void touch(const uint64_t *list, uint64_t n, uint64_t *took)
{
	uint64_t *count = calloc(pages, 8);

	for (uint64_t i = 0; i < n; i++) {
		volatile uint64_t *word = (uint64_t *)(heap + list[i] * PAGE);
		uint64_t start = ticks();

		++*word;
		took[i] = ticks() - start;
		if (*word != ++count[list[i]]) {
			fprintf(stderr, "page %lu: %lu instead of %lu\n", list[i], *word, count[list[i]]);
			_exit(1);
		}
	}
}

/* Ordinary memory full of random words, which do not compress: neither does sealed text.  Or half
 * of it: ordinary heaps have small numbers and pointers beside their data. */
static void ordinary_memory(uint64_t seed, int half)
{
	heap = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (heap == MAP_FAILED || madvise(heap, pages * PAGE, MADV_NOHUGEPAGE))
		_exit(1);
	for (uint64_t i = 0; i < pages * PAGE / 8; i++)
		((uint64_t *)heap)[i] = i % 512 ? next_random(&seed) & (half && i % 2 ? 255 : ~0UL) : 0;
}

static uint64_t ticks_per_second(void)
{
	struct timespec a, b;
	uint64_t start;

	clock_gettime(CLOCK_MONOTONIC, &a);
	start = ticks();
	usleep(100000);
	clock_gettime(CLOCK_MONOTONIC, &b);
	return (ticks() - start) * 1e9 / ((b.tv_sec - a.tv_sec) * 1e9 + b.tv_nsec - a.tv_nsec);
}

static uint64_t make_list(int once, uint64_t n, uint64_t seed, uint64_t **list)
{
	n = once ? pages : n;
	*list = calloc(n, 8);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t j = once ? next_random(&seed) % (i + 1) : 0;

		if (once) {	/* a random permutation */
			(*list)[i] = (*list)[j];
			(*list)[j] = i;
		} else {
			(*list)[i] = next_random(&seed) % pages;
		}
	}
	return n;
}

int main(int argc, char **argv)
{
	int once = argc == 4 && !strcmp(argv[1], "loads"), ready[2];
	uint64_t *list, *took, n;
	char byte;
	pid_t child;

	if (!once && (argc != 6 || (strcmp(argv[1], "pairs") && strcmp(argv[1], "swap") && strcmp(argv[1], "half")))) {
		fprintf(stderr, "usage: uffd_server loads PAGES SEED | pairs|swap|half PAGES LIMIT N SEED\n");
		return 2;
	}
	pages = strtoull(argv[2], NULL, 0);
	limit = once ? pages + 1 : strtoull(argv[3], NULL, 0);
	n = make_list(once, once ? 0 : strtoull(argv[4], NULL, 0), strtoull(argv[argc - 1], NULL, 0), &list);
	took = calloc(n, 8);
	if (!strcmp(argv[1], "swap") || !strcmp(argv[1], "half")) {
		ordinary_memory(1, !strcmp(argv[1], "half"));
		touch(list, n, took);
	} else {
		open_memory();
		OK(pipe(ready));
		child = OK(fork());
		if (child == 0)
			server(ready[1]);
		close(ready[1]);
		if (read(ready[0], &byte, 1) != 1)
			return 1;
		touch(list, n, took);
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	printf("hz %lu\n", ticks_per_second());
	for (uint64_t i = 0; i < n; i++)
		printf("%lu %lu\n", list[i], took[i]);
	return 0;
}
