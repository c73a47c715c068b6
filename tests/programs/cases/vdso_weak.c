/* The third way: an undefined weak symbol and linux-vdso.so.1 in DT_NEEDED; the dynamic linker binds it. */
#include "check.h"

extern int __vdso_sgx_enter_enclave(void) __attribute__((weak));

static void by_weak_symbol(void)
{
	void *function = (void *)__vdso_sgx_enter_enclave;
	struct enclave e;

	CHECK(function, "the dynamic linker found no __vdso_sgx_enter_enclave");
	CHECK(function == vdso_by_dynamic(), "the linker found %p, PT_DYNAMIC has %p", function, vdso_by_dynamic());
	e = load((struct spec){ .heap = 2 });
	CHECK_EQ(must(call_new(e.tcs[0], function), OP_NOP, 0, 0, 0, 0), 0);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = { { "by_weak_symbol", by_weak_symbol } };

	return RUN(argc, argv, tests);
}
