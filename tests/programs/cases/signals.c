/* Says which signals it gets, in the way that its argument names: handler, sigwait or signalfd.
 * "ready", then a line per signal ("1 15": the first, SIGTERM) until stdin ends. */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

static int count;

static void say(int number)
{
	char line[32];
	int length = snprintf(line, sizeof line, "%d %d\n", ++count, number);

	if (write(1, line, length) != length)
		abort();
}

int main(int argc, char **argv)
{
	static const int numbers[] = { SIGINT, SIGQUIT, SIGTERM, SIGHUP };
	const char *way = argc > 1 ? argv[1] : "handler";
	struct pollfd fds[2] = { { .fd = 0, .events = POLLIN }, { .fd = -1, .events = POLLIN } };
	struct sigaction action = { .sa_handler = say, .sa_flags = SA_RESTART };
	sigset_t set;

	sigemptyset(&set);
	for (int i = 0; i < 4; i++)
		sigaddset(&set, numbers[i]);
	action.sa_mask = set;
	if (!strcmp(way, "handler"))
		for (int i = 0; i < 4; i++)
			sigaction(numbers[i], &action, NULL);
	else
		sigprocmask(SIG_BLOCK, &set, NULL);
	if (!strcmp(way, "signalfd"))
		fds[1].fd = signalfd(-1, &set, 0);
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct timespec moment = { .tv_nsec = 20 * 1000 * 1000 };
		struct signalfd_siginfo info;

		poll(fds, 2, strcmp(way, "sigwait") ? -1 : 0);
		if (fds[0].revents)
			return 0;
		if (fds[1].revents && read(fds[1].fd, &info, sizeof info) == sizeof info)
			say(info.ssi_signo);
		if (!strcmp(way, "sigwait")) {
			int number = sigtimedwait(&set, NULL, &moment);

			if (number > 0)
				say(number);
		}
	}
}
