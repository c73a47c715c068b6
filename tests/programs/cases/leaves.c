/* The leaves that only some runtimes use: EACCEPTCOPY, EDECCSSA, AEX-Notify, key separation (KSS),
 * provisioning keys, new TCSs; and what they find where a page is missing. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include "check.h"

enum { LEAF_EACCEPT = 5, LEAF_EMODPE = 6, LEAF_EACCEPTCOPY = 7, LEAF_EDECCSSA = 9 };
enum { RFLAGS_ZF = 1 << 6, RFLAGS_STATUS = 0x8d5 };

static u64 secinfo(struct call *c, u64 at, u64 flags)
{
	must(c, OP_PUT, at, flags, 0, 0);
	return at;
}

static void expect_gp(struct enclave *e, u64 leaf, u64 rbx, u64 rcx, u64 rdx)
{
	struct call *c = by_vdso(e, 0);
	int error = ask(c, NULL, OP_ENCLU, leaf, rbx, rcx, rdx);

	CHECK(error == EXCEPTION && c->result.vector == 13, "leaf %lu: returned %d, vector %u, code %#x", leaf, error,
	      c->result.vector, c->result.error_code);
	call_unwind(e, c, 0, 0);
	call_free(c);
}

/* ---- EACCEPTCOPY ---- */

static void accept_copy(void)
{
	struct enclave e = load((struct spec){ .heap = 150, .hole = 8 });
	struct call *c = by_vdso(&e, 0);

	must(c, OP_FILL, e.heap + PAGE, 8, 3, 0);
	for (u64 i = 0; i < 8; i++) {
		u64 source = e.heap + (1 + i) * PAGE, page = e.hole + i * PAGE;
		u64 info = secinfo(c, e.heap, (i & 1 ? R | W : R | X) | TYPE_REG << 8);

		must(c, OP_FILL, e.heap + 20 * PAGE, 120, i, 0);	/* evict info and source */
		CHECK_EQ(must(c, OP_ENCLU, LEAF_EACCEPTCOPY, info, page, source), 0);
		CHECK(!(c->asked.a[5] & RFLAGS_ZF), "ZF is set");
		for (u64 word = 0; word < 512; word += 73)
			CHECK_EQ(must(c, OP_GET, page + word * 8, 0, 0, 0), pattern(3, i, word));
		CHECK_EQ(must(c, OP_ENCLU, LEAF_EACCEPTCOPY, info, page, source), 19);	/* not PENDING any more */
		CHECK(c->asked.a[5] & RFLAGS_ZF, "ZF is not set");
	}
	EXPECT_FAULT(c, ask(c, NULL, OP_PUT, e.hole, 1, 0, 0), 14, 0x8007, e.hole);
}

static void accept_copy_refuses(void)
{
	struct enclave e = load((struct spec){ .heap = 4, .hole = 4 });
	struct call *c = by_vdso(&e, 0);
	u64 info = secinfo(c, e.heap, R | W | TYPE_REG << 8), good = e.heap + PAGE;

	expect_gp(&e, LEAF_EACCEPTCOPY, info, e.hole, good + 8);
	expect_gp(&e, LEAF_EACCEPTCOPY, info, e.hole + 8, good);
	expect_gp(&e, LEAF_EACCEPTCOPY, info + 8, e.hole, good);
	expect_gp(&e, LEAF_EACCEPTCOPY, info, e.hole, e.base + e.size);
	secinfo(c, e.heap, W | TYPE_REG << 8);
	expect_gp(&e, LEAF_EACCEPTCOPY, info, e.hole, good);
	secinfo(c, e.heap, R | TYPE_TCS << 8);
	expect_gp(&e, LEAF_EACCEPTCOPY, info, e.hole, good);
	/* a source that is PENDING: a page fault on it, the target stays as it was */
	secinfo(c, e.heap, R | W | TYPE_REG << 8);
	EXPECT_FAULT(c, ask(c, NULL, OP_ENCLU, LEAF_EACCEPTCOPY, info, e.hole, e.hole + PAGE), 14, 0x8005, e.hole + PAGE);
	call_unwind(&e, c, 0, 0);
	CHECK_EQ(must(by_vdso(&e, 0), OP_ENCLU, LEAF_EACCEPTCOPY, info, e.hole, good), 0);
}

/* T10: an operand on a hole adds the page and faults like a load; accepted, the leaf works. */
static void operand_on_a_hole(void)
{
	struct enclave e = load((struct spec){ .threads = 2, .heap = 4, .hole = 2 });
	struct call *c = by_vdso(&e, 0), *second = by_vdso(&e, 1);

	EXPECT_FAULT(c, ask(c, NULL, OP_ENCLU, LEAF_EACCEPT, e.hole, e.heap, 0), 14, 0x8005, e.hole);
	CHECK_EQ(must(second, OP_ACCEPT, e.hole, R | W | TYPE_REG << 8 | SECINFO_PENDING, 0, 0), 0);
	secinfo(second, e.hole, R | W | TYPE_REG << 8 | SECINFO_PENDING);
	CHECK_EQ(call_enter(c, ERESUME), 0);
	CHECK_EQ(c->asked.result, 19);		/* heap page 0 is not PENDING */
	EXPECT_FAULT(c, ask(c, NULL, OP_ENCLU, 1, e.heap, e.hole + PAGE, 0), 14, 0x8007, e.hole + PAGE);
}

/* Leaves with a result clear the other status flags; those without leave them. */
static void status_flags(void)
{
	struct enclave e = load((struct spec){ .heap = 4, .hole = 2 });
	struct call *c = by_vdso(&e, 0);
	u64 info = secinfo(c, e.heap, R | W | TYPE_REG << 8 | SECINFO_PENDING);

	CHECK_EQ(must(c, OP_ENCLU, LEAF_EACCEPT, info, e.hole, 0), 0);
	CHECK_EQ(c->asked.a[5] & RFLAGS_STATUS, 0);
	CHECK_EQ(must(c, OP_ENCLU, LEAF_EACCEPT, info, e.hole, 0), 19);
	CHECK_EQ(c->asked.a[5] & RFLAGS_STATUS, RFLAGS_ZF);
}

/* EACCEPT of what no driver makes is #GP, not a mismatch. */
static void nothing_to_accept(void)
{
	struct enclave e = load((struct spec){ .heap = 4, .hole = 1 });
	struct call *c = by_vdso(&e, 0);
	static const u64 flags[] = { R | W | TYPE_REG << 8, R | TYPE_REG << 8 | SECINFO_MODIFIED, TYPE_TRIM << 8,
				     TYPE_TCS << 8 | SECINFO_PENDING, R | W | 0x300 | SECINFO_PENDING };

	for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++)
		expect_gp(&e, LEAF_EACCEPT, secinfo(c, e.heap, flags[i]), e.heap + PAGE, 0);
}

/* ---- TCS ---- */

static void store_tcs(struct call *c, struct enclave *e, u64 page, u64 nssa, u64 aep)
{
	must(c, OP_COPY, page, (u64)(u8[PAGE]){ 0 }, PAGE, 0);
	must(c, OP_PUT, page + 16, ssa_address(e, 0, 0) - e->base, 0, 0);
	must(c, OP_PUT, page + 24, nssa << 32, 0, 0);
	must(c, OP_PUT, page + 32, e->spec.start, 0, 0);
	must(c, OP_PUT, page + 40, aep, 0, 0);
}

/* A page becomes a TCS only in a TCS's first state; the entry through it works. */
static void new_tcs(void)
{
	struct enclave e = load((struct spec){ .heap = 20 });
	struct call *c = by_vdso(&e, 0), *through;
	u64 good = e.heap + 10 * PAGE, bad = e.heap + 16 * PAGE, result;
	u64 info = e.heap;

	store_tcs(c, &e, good, 2, 0);
	store_tcs(c, &e, bad, 2, 1);
	CHECK_EQ(modify_type(&e, good, PAGE, TYPE_TCS, &result), 0);
	CHECK_EQ(modify_type(&e, bad, PAGE, TYPE_TCS, &result), 0);
	secinfo(c, info, TYPE_TCS << 8 | SECINFO_MODIFIED);
	expect_gp(&e, LEAF_EACCEPT, info, bad, 0);
	through = call_new(good, vdso_by_dynamic());
	CHECK_EQ(ask(through, NULL, OP_NOP, 0, 0, 0, 0), EXCEPTION);	/* not accepted yet */
	CHECK_EQ(through->result.vector, 14);
	CHECK_EQ(through->result.error_code, 0x8005);
	CHECK_EQ(must(c, OP_ENCLU, LEAF_EACCEPT, info, good, 0), 0);
	for (int i = 0; i < 10; i++)
		CHECK_EQ(must(through, OP_NOP, 0, 0, 0, 0), 0);
}

/* A loader whose image has DBGOPTIN set: EADD clears it, and measures what it made. */
static void dbgoptin_in_the_image(void)
{
	struct enclave e;

	CHECK_EQ(enclave_load(&e, (struct spec){ .tcs_flags = 1 }), -1);
	CHECK(!strcmp(e.step, "init") && e.error == EPERM, "%s: %s", e.step, strerror(e.error));
}

/* ---- AEX-Notify ---- */

static void offered(void)
{
	u32 a, b, c, d;

	__cpuid_count(0x12, 0, a, b, c, d);
	CHECK(a & 1 << 11, "leaf 0x12.0: no EDECCSSA (eax %#x)", a);
	__cpuid_count(0x12, 1, a, b, c, d);
	CHECK((a & 0x4b6) == 0x4b6, "leaf 0x12.1: attributes %#x", a);
}

static void edeccssa_at_0(void)
{
	struct enclave e = load((struct spec){ 0 });

	expect_gp(&e, LEAF_EDECCSSA, 0, 0, 0);
}

/* A handler at CSSA 1 gives the frame up, and leaves for good. */
static void edeccssa(void)
{
	struct enclave e = load((struct spec){ .heap = 150 });
	struct call *c = by_vdso(&e, 0), *handler = by_vdso(&e, 0);

	EXPECT_FAULT(c, ask(c, NULL, OP_RAISE, RAISE_UD2, 0, 0, 0), 6, 0, 0);
	must(handler, OP_FILL, e.heap, 150, 1, 0);	/* the TCS is evicted on small machines */
	CHECK_EQ(must(handler, OP_NOP, 0, 0, 0, 0), 1);
	CHECK_EQ(must(handler, OP_ENCLU, LEAF_EDECCSSA, 0, 0, 0), LEAF_EDECCSSA);
	CHECK_EQ(must(handler, OP_NOP, 0, 0, 0, 0), 0);
	EXPECT_FAULT(c, call_enter(c, ERESUME), 13, 0, 0);	/* nothing to resume */
}

static void aex_notify(void)
{
	struct enclave e = load((struct spec){ .attributes = ATTR_DEBUG | ATTR_MODE64 | ATTR_AEXNOTIFY, .tcs_flags = 2 });
	struct call *c = by_vdso(&e, 0), *handler = by_vdso(&e, 0);
	u64 enable = gprsgx_address(&e, 0, 0) + 167;
	u8 on = 1, off = 0;

	/* off: resumed as ever */
	EXPECT_FAULT(c, ask(c, NULL, OP_RAISE, RAISE_UD2, 0, 0, 0), 6, 0, 0);
	must(handler, OP_PUT, gprsgx_address(&e, 0, 0) + SSA_RIP,
	     must(handler, OP_GET, gprsgx_address(&e, 0, 0) + SSA_RIP, 0, 0, 0) + 2, 0, 0);
	CHECK_EQ(call_enter(c, ERESUME), 0);
	CHECK_EQ(c->asked.result, 1);
	/* on: ERESUME enters at the entry point, CSSA 1, as often as it is tried */
	must(c, OP_COPY, enable, (u64)&on, 1, 0);
	EXPECT_FAULT(c, ask(c, NULL, OP_RAISE, RAISE_UD2, 0, 0, 0), 6, 0, 0);
	for (int i = 0; i < 3; i++) {
		handler->asked = (struct request){ .op = OP_NOP };
		CHECK_EQ(call_enter(handler, ERESUME), 0);
		CHECK_EQ(handler->asked.result, 1);
	}
	/* the handler mends the frame, switches off and gives up its own frame's turn: resumed */
	must(handler, OP_PUT, gprsgx_address(&e, 0, 0) + SSA_RIP,
	     must(handler, OP_GET, gprsgx_address(&e, 0, 0) + SSA_RIP, 0, 0, 0) + 2, 0, 0);
	must(handler, OP_COPY, enable, (u64)&off, 1, 0);
	CHECK_EQ(call_enter(c, ERESUME), 0);
	CHECK_EQ(c->asked.result, 1);
}

/* In an enclave with the attribute, every TCS must have the flag. */
static void aex_notify_on_both_sides(void)
{
	struct enclave e = load((struct spec){ .attributes = ATTR_DEBUG | ATTR_MODE64 | ATTR_AEXNOTIFY });
	struct call *c = by_vdso(&e, 0);

	CHECK_EQ(ask(c, NULL, OP_NOP, 0, 0, 0, 0), EXCEPTION);
	CHECK_EQ(c->result.vector, 13);
	CHECK_EQ(c->result.function, EENTER);
}

/* ---- keys ---- */

static void configure(u8 *secs)
{
	memset(secs + 192, 0xc1, 64);		/* CONFIGID */
	secs[260] = 3;				/* CONFIGSVN */
}

static void name_product(u8 *sigstruct, int signed_already)
{
	if (signed_already)
		return;
	memset(sigstruct + 912, 0xfa, 16);	/* ISVFAMILYID */
	memset(sigstruct + 1008, 0xe1, 16);	/* ISVEXTPRODID */
}

static void name_another(u8 *sigstruct, int signed_already)
{
	name_product(sigstruct, signed_already);
	if (!signed_already)
		memset(sigstruct + 1008, 0xe2, 16);
}

static u64 key(struct call *c, u8 name, u16 policy, u16 config_svn, u8 out[16])
{
	u8 request[512] = { name, 0, policy };

	request[76] = config_svn;
	return must(c, OP_KEY, (u64)request, (u64)out, 0, 0);
}

#define KSS (ATTR_DEBUG | ATTR_MODE64 | ATTR_KSS)

static void kss_report(void)
{
	static u8 target[512] __attribute__((aligned(512))), data[64], made[432];
	static const u8 zeros[16];
	struct enclave e = load((struct spec){ .attributes = KSS, .edit_secs = configure, .edit_sigstruct = name_product,
					       .heap = 150 });
	struct enclave plain = load((struct spec){ 0 });
	struct call *c = by_vdso(&e, 0);
	u8 request[512] = { 3 }, mine[16], mac[16];
	u64 attributes;

	memcpy(target, e.mrenclave, 32);
	memcpy(target + 32, &(u64){ KSS | 1 }, 8);
	memcpy(target + 40, &e.spec.xfrm, 8);
	target[50] = 3;
	memset(target + 64, 0xc1, 64);
	must(c, OP_FILL, e.heap, 150, 1, 0);	/* the SECS and all may have been out meanwhile */
	must(c, OP_REPORT, (u64)target, (u64)data, (u64)made, 0);
	memcpy(&attributes, made + 48, 8);
	CHECK_EQ(attributes, KSS | 1);
	for (int i = 0; i < 64; i++)
		CHECK_EQ(made[192 + i], 0xc1);
	CHECK_EQ(made[260], 3);
	CHECK_EQ(made[32], 0xe1);
	CHECK_EQ(made[304], 0xfa);
	memcpy(request + 40, made + 384, 32);
	CHECK_EQ(must(c, OP_KEY, (u64)request, (u64)mine, 0, 0), 0);
	aes_cmac(mine, made, 384, mac);
	CHECK(!memcmp(mac, made + 416, 16), "the enclave cannot verify a report for itself");
	target[64] ^= 1;			/* for another CONFIGID: not ours to verify */
	must(c, OP_REPORT, (u64)target, (u64)data, (u64)made, 0);
	memcpy(request + 40, made + 384, 32);
	CHECK_EQ(must(c, OP_KEY, (u64)request, (u64)mine, 0, 0), 0);
	aes_cmac(mine, made, 384, mac);
	CHECK(memcmp(mac, made + 416, 16), "CONFIGID of the target does not matter");
	must(by_vdso(&plain, 0), OP_REPORT, (u64)target, (u64)data, (u64)made, 0);
	CHECK(!memcmp(made + 32, zeros, 16) && !memcmp(made + 304, zeros, 16), "identities without KSS");
}

static void kss_keys(void)
{
	struct enclave a = load((struct spec){ .attributes = KSS, .edit_secs = configure, .edit_sigstruct = name_product });
	struct enclave b = load((struct spec){ .attributes = KSS, .edit_secs = configure, .edit_sigstruct = name_another });
	struct enclave plain = load((struct spec){ 0 });
	struct call *ca = by_vdso(&a, 0), *cb = by_vdso(&b, 0), *cp = by_vdso(&plain, 0);
	u8 ka[16], kb[16], svn[16];

	CHECK_EQ(key(ca, 4, 2, 0, ka), 0);
	CHECK_EQ(key(cb, 4, 2, 0, kb), 0);
	CHECK(!memcmp(ka, kb, 16), "two products of a signer share no key");
	CHECK_EQ(key(ca, 4, 2 | 32, 0, ka), 0);
	CHECK_EQ(key(cb, 4, 2 | 32, 0, kb), 0);
	CHECK(memcmp(ka, kb, 16), "ISVEXTPRODID does not separate");
	CHECK_EQ(key(ca, 4, 2 | 16, 0, ka), 0);
	CHECK_EQ(key(cb, 4, 2 | 16, 0, kb), 0);
	CHECK(!memcmp(ka, kb, 16), "one family shares no key");
	CHECK_EQ(key(ca, 4, 2 | 8, 3, ka), 0);
	CHECK_EQ(key(ca, 4, 2 | 8, 2, svn), 0);
	CHECK(memcmp(ka, svn, 16), "CONFIGSVN does not separate");
	CHECK_EQ(key(ca, 4, 2 | 8, 4, svn), 64);
	for (unsigned policy = 4; policy <= 32; policy *= 2) {	/* #GP for an enclave without KSS */
		u8 request[512] = { 4, 0, policy | 2 };

		CHECK_EQ(ask(cp, NULL, OP_KEY, (u64)request, (u64)ka, 0, 0), EXCEPTION);
		CHECK_EQ(cp->result.vector, 13);
		call_unwind(&plain, cp, 0, 0);
	}
}

static void kss_fields_without_kss(void)
{
	struct enclave e;

	CHECK_EQ(enclave_load(&e, (struct spec){ .edit_secs = configure }), -1);
	CHECK(!strcmp(e.step, "create") && e.error == EIO, "CONFIGID: %s: %s", e.step, strerror(e.error));
	CHECK_EQ(enclave_load(&e, (struct spec){ .edit_sigstruct = name_product }), -1);
	CHECK(!strcmp(e.step, "init") && e.error == EPERM, "ISVFAMILYID: %s: %s", e.step, strerror(e.error));
}

static void provisioning(void)
{
	struct spec want = { .attributes = ATTR_DEBUG | ATTR_MODE64 | ATTR_PROVISION };
	struct enclave e;
	struct call *c;
	u8 provision[16], seal[16], again[16];

	CHECK_EQ(enclave_load(&e, want), -1);
	CHECK(!strcmp(e.step, "init") && e.error == EACCES, "without the ioctl: %s: %s", e.step, strerror(e.error));
	want.provision = 1;
	e = load(want);
	c = by_vdso(&e, 0);
	CHECK_EQ(key(c, 1, 0, 0, provision), 0);
	CHECK_EQ(key(c, 2, 0, 0, seal), 0);
	CHECK_EQ(key(c, 1, 0, 0, again), 0);
	CHECK(memcmp(provision, seal, 16), "PROVISION and PROVISION_SEAL are one key");
	CHECK(!memcmp(provision, again, 16), "the same request gave another key");
	CHECK_EQ(key(c, 0, 0, 0, again), 2);	/* EINITTOKEN needs its own attribute */
	want.attributes = ATTR_DEBUG | ATTR_MODE64 | ATTR_EINITTOKEN;
	CHECK_EQ(enclave_load(&e, want), -1);	/* which this driver grants to nobody */
	CHECK(!strcmp(e.step, "init") && e.error == EACCES, "EINITTOKENKEY: %s: %s", e.step, strerror(e.error));
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "accept_copy", accept_copy },
		{ "accept_copy_refuses", accept_copy_refuses },
		{ "operand_on_a_hole", operand_on_a_hole },
		{ "status_flags", status_flags },
		{ "nothing_to_accept", nothing_to_accept },
		{ "new_tcs", new_tcs },
		{ "dbgoptin_in_the_image", dbgoptin_in_the_image },
		{ "offered", offered },
		{ "edeccssa_at_0", edeccssa_at_0 },
		{ "edeccssa", edeccssa },
		{ "aex_notify", aex_notify },
		{ "aex_notify_on_both_sides", aex_notify_on_both_sides },
		{ "kss_report", kss_report },
		{ "kss_keys", kss_keys },
		{ "kss_fields_without_kss", kss_fields_without_kss },
		{ "provisioning", provisioning },
	};

	return RUN(argc, argv, tests);
}
