/* What lies at INFO in the debugged program. */
#define INFO 0x10000000000UL

struct info {
	unsigned long base, size, tcs, frame, aep, resume, pid;
};
