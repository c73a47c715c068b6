/* Sleeps so many seconds; prints what signals brought (si_code, value), and how the sleep ended and its milliseconds. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void handler(int sig, siginfo_t *info, void *context)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "signal %d code %d value %d\n", sig, info->si_code, info->si_value.sival_int);

	(void)context;
	if (write(1, text, n) != n)
		_exit(3);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct timespec time = { .tv_sec = argc > 1 ? atoi(argv[1]) : 1 }, from, to;
	int result;

	sigaction(SIGUSR1, &action, NULL);
	if (write(1, "ready\n", 6) != 6)
		return 3;
	clock_gettime(CLOCK_MONOTONIC, &from);
	result = clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("slept %d %ld\n", result, (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000);
	return 0;
}
