/* libos [--edmm] [--heap MiB] PROGRAM ARGUMENTS…: run a static-PIE program in an enclave. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "host.h"

int main(int argc, char **argv)
{
	static struct enclave e;
	struct options options = { .heap = 128UL << 20 };
	int i = 1;

	for (; i < argc && !strncmp(argv[i], "--", 2); i++)
		if (!strcmp(argv[i], "--edmm"))
			options.edmm = 1;
		else if (!strcmp(argv[i], "--heap") && i + 1 < argc)
			options.heap = strtoul(argv[++i], NULL, 0) << 20;
		else
			argc = 0;
	if (i >= argc || !options.heap || options.heap > MOST_HEAP) {
		fprintf(stderr, "usage: libos [--edmm] [--heap MiB] PROGRAM ARGUMENTS...\n");
		return 2;
	}
	load(&e, argv[i], &options);
	return serve(&e, &options, argc - i, argv + i);
}
