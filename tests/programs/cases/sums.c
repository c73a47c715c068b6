/* The loader's arithmetic, without SGX: known answers, and a SIGSTRUCT for others to verify.
 *
 *     sums            known answers of SHA-256 and AES-CMAC
 *     sums sigstruct  writes 1808 signed bytes to standard output
 */
#include "check.h"

static void hex(const u8 *bytes, size_t n, char *out)
{
	for (size_t i = 0; i < n; i++)
		sprintf(out + 2 * i, "%02x", bytes[i]);
}

static void sha256(void)
{
	static const struct { size_t n; const char *want; } known[] = {	/* of n times 'a' */
		{ 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
		{ 55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318" },
		{ 56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a" },
		{ 64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb" },
		{ 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0" },
	};

	for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
		struct sha256 s;
		u8 sum[32];
		char text[65];

		sha256_start(&s);
		for (size_t n = 0; n < known[i].n; n++)
			sha256_add(&s, "a", 1);
		sha256_end(&s, sum);
		hex(sum, 32, text);
		CHECK(!strcmp(text, known[i].want), "%zu bytes: %s", known[i].n, text);
	}
}

static void cmac(void)
{
	static const u8 key[16] = { 0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6,
				    0xab, 0xf7, 0x15, 0x88, 0x09, 0xcf, 0x4f, 0x3c };
	static const u8 message[40] = {
		0x6b, 0xc1, 0xbe, 0xe2, 0x2e, 0x40, 0x9f, 0x96, 0xe9, 0x3d, 0x7e, 0x11, 0x73, 0x93,
		0x17, 0x2a, 0xae, 0x2d, 0x8a, 0x57, 0x1e, 0x03, 0xac, 0x9c, 0x9e, 0xb7, 0x6f, 0xac,
		0x45, 0xaf, 0x8e, 0x51, 0x30, 0xc8, 0x1c, 0x46, 0xa3, 0x5c, 0xe4, 0x11,
	};
	static const struct { size_t n; const char *want; } known[] = {	/* RFC 4493, section 4 */
		{ 0, "bb1d6929e95937287fa37d129b756746" },
		{ 16, "070a16b46b4d4144f79bdd9dd04a287c" },
		{ 40, "dfa66747de9ae63030ca32611497c827" },
	};

	for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
		u8 mac[16];
		char text[33];

		aes_cmac(key, message, known[i].n, mac);
		hex(mac, 16, text);
		CHECK(!strcmp(text, known[i].want), "%zu bytes: %s", known[i].n, text);
	}
}

int main(int argc, char **argv)
{
	static const struct test tests[] = { { "sha256", sha256 }, { "cmac", cmac } };
	u8 sigstruct[1808];

	if (argc < 2 || strcmp(argv[1], "sigstruct"))
		return RUN(argc, argv, tests);
	for (size_t i = 0; i < sizeof sigstruct; i++)
		sigstruct[i] = i * 7;
	sign_sigstruct(sigstruct);
	fwrite(sigstruct, sizeof sigstruct, 1, stdout);
	return 0;
}
