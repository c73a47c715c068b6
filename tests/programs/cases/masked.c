/* masked CMD…: run CMD with all signals blocked in the inherited mask. */
#include "check.h"

int main(int argc, char **argv)
{
	block(0);
	if (argc > 1)
		execvp(argv[1], argv + 1);
	perror("masked");
	return 127;
}
