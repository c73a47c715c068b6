/* EREPORT and EGETKEY: local attestation between two enclaves, sealing keys, bad operands. */
#include "check.h"

static void key_for(struct call *c, const u8 *report, u8 key[16])
{
	u8 request[512] = { 0 };

	request[0] = 3;				/* REPORT key */
	memcpy(request + 40, report + 384, 32);	/* KEYID */
	CHECK_EQ(must(c, OP_KEY, (u64)request, (u64)key, 0, 0), 0);
	CHECK(!(c->asked.a[5] & 1 << 6), "ZF is set");
}

static void report(void)
{
	static u8 target[512] __attribute__((aligned(512))), data[64], made[432];
	struct enclave a = load((struct spec){ .heap = 3 }), b = load((struct spec){ .heap = 4 });
	struct call *ca = by_vdso(&a, 0), *cb = by_vdso(&b, 0);
	u64 attributes = 0;
	u8 key[16], mac[16];

	memset(data, 0x5a, sizeof data);
	memcpy(target, b.mrenclave, 32);
	memcpy(target + 32, &b.spec.attributes, 8);
	target[32] |= 1;			/* INIT */
	memcpy(target + 40, &b.spec.xfrm, 8);
	must(ca, OP_REPORT, (u64)target, (u64)data, (u64)made, 0);
	CHECK(!memcmp(made + 64, a.mrenclave, 32), "MRENCLAVE in the report is not ours");
	CHECK(!memcmp(made + 128, a.mrsigner, 32), "MRSIGNER in the report is not ours");
	CHECK(!memcmp(made + 320, data, 64), "report data");
	memcpy(&attributes, made + 48, 8);
	CHECK_EQ(attributes, a.spec.attributes | 1);
	CHECK_EQ(made[256], 7);			/* ISVPRODID */
	CHECK_EQ(made[258], 1);			/* ISVSVN */
	key_for(cb, made, key);
	aes_cmac(key, made, 384, mac);
	CHECK(!memcmp(mac, made + 416, 16), "the target cannot verify the report");
	key_for(ca, made, key);
	aes_cmac(key, made, 384, mac);
	CHECK(memcmp(mac, made + 416, 16), "a report for another enclave verifies here");
}

static void keys(void)
{
	struct enclave a = load((struct spec){ .heap = 3 }), b = load((struct spec){ .heap = 4 });
	struct call *ca = by_vdso(&a, 0), *cb = by_vdso(&b, 0);
	u8 request[512] = { 0 }, ka[16], kb[16], again[16];

	request[0] = 4;		/* SEAL */
	request[2] = 1;		/* policy MRENCLAVE */
	CHECK_EQ(must(ca, OP_KEY, (u64)request, (u64)ka, 0, 0), 0);
	CHECK_EQ(must(ca, OP_KEY, (u64)request, (u64)again, 0, 0), 0);
	CHECK_EQ(must(cb, OP_KEY, (u64)request, (u64)kb, 0, 0), 0);
	CHECK(!memcmp(ka, again, 16), "the same request gave another key");
	CHECK(memcmp(ka, kb, 16), "two enclaves share an MRENCLAVE key");
	request[2] = 2;		/* policy MRSIGNER */
	CHECK_EQ(must(ca, OP_KEY, (u64)request, (u64)ka, 0, 0), 0);
	CHECK_EQ(must(cb, OP_KEY, (u64)request, (u64)kb, 0, 0), 0);
	CHECK(!memcmp(ka, kb, 16), "one signer's enclaves do not share the MRSIGNER key");
	request[4] = 2;		/* ISVSVN above our own */
	CHECK_EQ(must(ca, OP_KEY, (u64)request, (u64)ka, 0, 0), 64);
	CHECK(ca->asked.a[5] & 1 << 6, "ZF is not set");
	request[4] = 0;
	request[0] = 1;		/* PROVISION, without the attribute */
	CHECK_EQ(must(ca, OP_KEY, (u64)request, (u64)ka, 0, 0), 2);
	request[0] = 99;
	CHECK_EQ(must(ca, OP_KEY, (u64)request, (u64)ka, 0, 0), 256);
}

/* Operands at the wrong alignment are #GP, an unknown leaf too. */
static void bad_operands(void)
{
	struct enclave e = load((struct spec){ .heap = 4, .threads = 4 });
	static const u64 bad[][4] = {	/* leaf, offsets of RBX, RCX, RDX in the heap */
		{ 0, 256, 1024, 2048 }, { 0, 512, 1024 + 64, 2048 }, { 1, 256, 1024, 0 }, { 5, 32, 4096, 0 }, { 77, 0, 0, 0 },
	};

	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct call *c = by_vdso(&e, 0);
		int error = ask(c, NULL, OP_ENCLU, bad[i][0], e.heap + bad[i][1], e.heap + bad[i][2], e.heap + bad[i][3]);

		CHECK(error == EXCEPTION && c->result.vector == 13, "leaf %lu, case %u: returned %d, vector %u", bad[i][0], i,
		      error, c->result.vector);
		call_unwind(&e, c, 0, 0);
		call_free(c);
	}
}

/* `keys seal`: print a sealing key, to be compared with that of another run. */
static int print_sealing_key(void)
{
	struct enclave a = load((struct spec){ .heap = 3 });
	u8 request[512] = { 0 }, key[16];

	request[0] = 4;		/* SEAL */
	request[2] = 1;		/* policy MRENCLAVE */
	CHECK_EQ(must(by_vdso(&a, 0), OP_KEY, (u64)request, (u64)key, 0, 0), 0);
	for (unsigned i = 0; i < sizeof key; i++)
		printf("%02x", key[i]);
	printf("\n");
	return 0;
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "report", report },
		{ "keys", keys },
		{ "bad_operands", bad_operands },
	};

	if (argc == 2 && !strcmp(argv[1], "seal"))
		return print_sealing_key();
	return RUN(argc, argv, tests);
}
