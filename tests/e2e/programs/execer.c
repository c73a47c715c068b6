/* Becomes itself again and again, each time in another thread than the first, with more threads beside it. */
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static char **arguments;

static void *again(void *unused)
{
	usleep(rand() % 300);
	execv("/proc/self/exe", arguments);
	return unused;
}

static void *doze(void *unused)
{
	for (;;)
		usleep(50);
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	arguments = argv;
	srand(getpid() ^ (long)&thread + argc);
	for (int i = 0; i < 6; i++)
		pthread_create(&thread, NULL, doze, NULL);
	pthread_create(&thread, NULL, again, NULL);
	for (;;)
		pause();
}
