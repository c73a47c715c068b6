/* What must be refused, and with which error. */
#include <errno.h>
#include "check.h"

static void expect(struct spec spec, const char *step, int error)
{
	struct enclave e;

	if (!enclave_load(&e, spec))
		CHECK(0, "the enclave was accepted");
	CHECK(!strcmp(e.step, step) && e.error == error, "%s: %s; expected %s: %s", e.step, strerror(e.error), step,
	      strerror(error));
	enclave_unload(&e);
	e = load((struct spec){ .heap = 4 });	/* and a good one is still accepted */
	CHECK_EQ(must(by_vdso(&e, 0), OP_NOP, 0, 0, 0, 0), 0);
}

/* One field changed before or after signing. */
static int when, at;
static u8 with;

static void edit(u8 *sigstruct, int signed_already)
{
	if (signed_already == when)
		sigstruct[at] ^= with;
}

static void edited(int signed_already, int offset, u8 bits, int error)
{
	when = signed_already;
	at = offset;
	with = bits;
	expect((struct spec){ .edit_sigstruct = edit }, "init", error);
}

static void flipped_byte(void)
{
	expect((struct spec){ .flip_page = 1 }, "init", EPERM);
}

static void wrong_measurement(void)
{
	edited(0, 960, 1, EPERM);
}

static void wrong_signature(void)
{
	edited(1, 516 + 100, 1, EPERM);
}

static void wrong_q1(void)
{
	edited(1, 1040 + 10, 1, EPERM);
}

static void changed_after_signing(void)
{
	edited(1, 1024, 1, EPERM);		/* ISVPRODID */
}

static void another_modulus(void)
{
	edited(1, 128 + 60, 1, EPERM);
}

static void wrong_exponent(void)
{
	edited(1, 512, 2, EPERM);
}

static void wrong_header(void)
{
	edited(0, 0, 1, EPERM);
}

static void wrong_vendor(void)
{
	edited(0, 16, 1, EINVAL);
}

/* The SIGSTRUCT demands attributes the enclave does not have. */
static void attributes_differ(void)
{
	edited(0, 928, 2, EPERM);		/* DEBUG */
}

static void xfrm_differs(void)
{
	edited(0, 936, 4, EPERM);
}

static void unknown_attribute(void)
{
	edited(0, 928 + 4, 1, EINVAL);		/* bit 32: reserved */
}

static void provision_without_the_right(void)
{
	expect((struct spec){ .attributes = ATTR_DEBUG | ATTR_MODE64 | ATTR_PROVISION }, "init", EACCES);
}

/* ---- SECS ---- */

static void edit_size(u8 *secs)
{
	secs[1] ^= 0x30;			/* no power of two */
}

static void odd_size(void)
{
	expect((struct spec){ .edit_secs = edit_size }, "create", EINVAL);
}

static void edit_reserved(u8 *secs)
{
	secs[30] = 1;
}

static void reserved_secs_byte(void)
{
	expect((struct spec){ .edit_secs = edit_reserved }, "create", EIO);
}

static void edit_base(u8 *secs)
{
	secs[9] ^= 0x10;			/* not aligned to the size */
}

static void odd_base(void)
{
	expect((struct spec){ .edit_secs = edit_base }, "create", EIO);
}

static void edit_no_x87(u8 *secs)
{
	secs[56] &= ~1;
}

static void xfrm_without_x87(void)
{
	expect((struct spec){ .edit_secs = edit_no_x87 }, "create", EIO);
}

/* ---- SECINFO ---- */

static void secinfo(u64 flags)
{
	expect((struct spec){ .heap = 1, .heap_secinfo = flags }, "add", EINVAL);
}

static void reserved_secinfo_bit(void)
{
	secinfo(R | W | TYPE_REG << 8 | 1UL << 16);
}

static void pending_secinfo_bit(void)
{
	secinfo(R | W | TYPE_REG << 8 | SECINFO_PENDING);
}

static void write_without_read(void)
{
	secinfo(W | TYPE_REG << 8);
}

static void tcs_with_permissions(void)
{
	secinfo(R | TYPE_TCS << 8);
}

static void page_type_zero(void)
{
	secinfo(R | 1UL << 63);
}

static void va_page(void)
{
	secinfo(R | W | 3 << 8);
}

static void trim_page(void)
{
	secinfo(R | W | TYPE_TRIM << 8);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "flipped_byte", flipped_byte },
		{ "wrong_measurement", wrong_measurement },
		{ "wrong_signature", wrong_signature },
		{ "wrong_q1", wrong_q1 },
		{ "changed_after_signing", changed_after_signing },
		{ "another_modulus", another_modulus },
		{ "wrong_exponent", wrong_exponent },
		{ "wrong_header", wrong_header },
		{ "wrong_vendor", wrong_vendor },
		{ "attributes_differ", attributes_differ },
		{ "xfrm_differs", xfrm_differs },
		{ "unknown_attribute", unknown_attribute },
		{ "provision_without_the_right", provision_without_the_right },
		{ "odd_size", odd_size },
		{ "reserved_secs_byte", reserved_secs_byte },
		{ "odd_base", odd_base },
		{ "xfrm_without_x87", xfrm_without_x87 },
		{ "reserved_secinfo_bit", reserved_secinfo_bit },
		{ "pending_secinfo_bit", pending_secinfo_bit },
		{ "write_without_read", write_without_read },
		{ "tcs_with_permissions", tcs_with_permissions },
		{ "page_type_zero", page_type_zero },
		{ "va_page", va_page },
		{ "trim_page", trim_page },
	};

	return RUN(argc, argv, tests);
}
