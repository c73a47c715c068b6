/* Opens a file of /proc again and again, while another thread writes a FIFO's name over the file's.
 *
 * swapper FILE FIFO TIMES; the FIFO's name is not longer.  Nobody ever writes to it: who opens the
 * FIFO is let go by an end that is opened for a moment.  Prints how many of the opens were of the file.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char name[64], *fifo;
static volatile unsigned done, over;

static void *swap(void *file)
{
	while (!over) {
		strcpy(name, fifo);
		strcpy(name, file);
	}
	return NULL;
}

static void *rescue(void *unused)
{
	for (unsigned before = ~0u; !over; before = done) {
		usleep(2000);
		if (before == done)
			close(open(fifo, O_WRONLY | O_NONBLOCK));
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	struct stat st;
	int files = 0;

	if (argc != 4)
		return 2;
	fifo = argv[2];
	strcpy(name, argv[1]);
	pthread_create(&threads[0], NULL, swap, argv[1]);
	pthread_create(&threads[1], NULL, rescue, NULL);
	for (; done < atoi(argv[3]); done++) {
		int fd = open(name, O_RDONLY);

		files += fd >= 0 && !fstat(fd, &st) && !S_ISFIFO(st.st_mode);
		close(fd);
	}
	over = 1;
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	printf("%s\n", files ? "some were the file" : "none");
	return 0;
}
