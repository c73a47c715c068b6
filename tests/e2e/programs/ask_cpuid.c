/* Prints CPUID leaf 0x12, sub-leaf 2, and what the library (if any) says of leaf 7. */
#include <stdio.h>

static void cpuid(unsigned leaf, unsigned subleaf, unsigned *r)
{
	__asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(subleaf));
}

#ifdef LIBRARY
int has_sgx(void)
{
	unsigned r[4];

	cpuid(7, 0, r);
	return r[1] >> 2 & 1;
}
#else
#ifdef WITH_LIBRARY
int has_sgx(void);
#else
static int has_sgx(void)
{
	return -1;
}
#endif

int main(void)
{
	unsigned r[4];

	cpuid(0x12, 2, r);
	printf("%x %x %x %x library %d\n", r[0], r[1], r[2], r[3], has_sgx());
	return 0;
}
#endif
