/* The untrusted half: a loader, and a server of what the threads inside ask for. */
#ifndef HOST_H
#define HOST_H

/* u8 … u64 come from both headers' worlds: the tests' own loader and the library OS. */
#include "enclave.h"
#include "../libos.h"

struct options {
	u64 heap;		/* bytes */
	int edmm;
};

/* load.c: an enclave with the library OS and the ELF file in it, initialised; ends the process otherwise. */
void load(struct enclave *e, const char *program, const struct options *options);

/* serve.c: the program's run; returns its status. */
int serve(struct enclave *e, const struct options *options, int argc, char **argv);

#endif
