/* What a program's threads and memory ask of a library OS, and how long a system call takes: threads [calls]. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define N 4
#define PAGE 4096

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int arrived;
static __thread long mine;

static void *work(void *argument)
{
	long i = (long)argument;
	unsigned char *memory = mmap(NULL, 20 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long bad = memory == MAP_FAILED;

	for (int page = 0; page < 20 && !bad; page++)
		bad |= memory[page * PAGE] || (memory[page * PAGE + i] = 1, 0);
	bad |= mprotect(memory, 10 * PAGE, PROT_READ) || munmap(memory + 10 * PAGE, 10 * PAGE) || !memory[i] ||
	       munmap(memory, 10 * PAGE);
	mine = i * i + bad * 1000;
	pthread_mutex_lock(&mutex);
	arrived++;
	pthread_cond_broadcast(&changed);
	while (arrived % N)
		pthread_cond_wait(&changed, &mutex);
	pthread_mutex_unlock(&mutex);
	return (void *)mine;
}

static double calls(long number, int n)
{
	struct timespec from, to;

	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < n; i++)
		syscall(number);
	clock_gettime(CLOCK_MONOTONIC, &to);
	return ((to.tv_sec - from.tv_sec) * 1e6 + (to.tv_nsec - from.tv_nsec) / 1e3) / n;
}

int main(int argc, char **argv)
{
	pthread_t threads[N];
	long sum = 0;

	if (argc > 1 && atoi(argv[1])) {
		printf("%.1f us answered inside, %.1f us by the host\n", calls(SYS_getpid, atoi(argv[1])),
		       calls(SYS_getppid, atoi(argv[1])));
		return 0;
	}
	for (int round = 0; round < 3; round++) {
		for (long i = 0; i < N; i++)
			if (pthread_create(&threads[i], NULL, work, (void *)i))
				return 1;
		for (int i = 0; i < N; i++) {
			void *result;

			pthread_join(threads[i], &result);
			sum += (long)result;
		}
	}
	printf("%ld\n", sum);
	return 0;
}
