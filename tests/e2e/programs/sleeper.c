/* Sleeps so many seconds; prints what signals brought (si_code, value), and how the sleep ended. */
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
	struct timespec time = { .tv_sec = argc > 1 ? atoi(argv[1]) : 1 };
	int result;

	sigaction(SIGUSR1, &action, NULL);
	if (write(1, "ready\n", 6) != 6)
		return 3;
	result = clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
	printf("slept %d\n", result);
	return 0;
}
