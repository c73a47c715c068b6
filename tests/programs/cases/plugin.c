/* An SGX runtime in a shared library: everything, CPUID included, happens in code that was loaded late. */
#include <cpuid.h>
#include "check.h"

int plugin_run(unsigned heap);

int plugin_run(unsigned heap)
{
	u32 a, b, c, d;
	struct enclave e;
	struct call *call;
	int bad;

	__cpuid_count(7, 0, a, b, c, d);
	if (!(b & 4))
		return 1;
	__cpuid_count(0x12, 0, a, b, c, d);
	if ((a & 3) != 3)
		return 2;
	if (enclave_load(&e, (struct spec){ .heap = heap }))
		return 3;
	call = call_new(e.tcs[0], vdso_by_sections());
	bad = ask(call, NULL, OP_FILL, e.heap, heap, heap, 0) || ask(call, NULL, OP_CHECK, e.heap, heap, heap, 0) ||
	      call->asked.result;
	enclave_unload(&e);
	call_free(call);
	return bad ? 4 : 0;
}
