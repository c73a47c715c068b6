/* touch FD PAGES: maps FD shared, then obeys two-byte commands: r or w, and a page; answers one byte. */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	unsigned char command[2];
	volatile char *p;

	if (argc != 3)
		return 2;
	p = mmap(NULL, atoi(argv[2]) * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
	while (p != MAP_FAILED && read(0, command, 2) == 2) {
		volatile char *page = p + command[1] * 4096;
		char value;

		if (command[0] == 'w')
			*page = 'w';
		value = *page;
		if (write(1, &value, 1) != 1)
			return 3;
	}
	return p == MAP_FAILED;
}
