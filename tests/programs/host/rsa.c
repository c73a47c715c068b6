/* The signature of a SIGSTRUCT: RSA-3072, exponent 3, PKCS#1 v1.5 with SHA-256.
 *
 * Numbers are 48 little-endian words.  Multiplication is Montgomery's; the quotients Q1 and Q2
 * that the SIGSTRUCT carries come from plain bit by bit division.  The key (key.h) is made by
 * build.py, for these tests only.
 */
#include <string.h>
#include "enclave.h"
#include "key.h"		/* static const u64 key_n[48], key_d[48] */

#define WORDS 48
typedef unsigned __int128 u128;

static u64 subtract(u64 *x, const u64 *y)
{
	u64 borrow = 0;

	for (int i = 0; i < WORDS; i++) {
		u128 d = (u128)x[i] - y[i] - borrow;

		x[i] = d;
		borrow = d >> 64 & 1;
	}
	return borrow;
}

static int at_least(const u64 *x, const u64 *y)
{
	for (int i = WORDS - 1; i >= 0; i--)
		if (x[i] != y[i])
			return x[i] > y[i];
	return 1;
}

/* r = a * b / 2^3072 mod n */
static void montgomery(u64 *r, const u64 *a, const u64 *b, u64 inverse)
{
	u64 t[WORDS + 2] = { 0 };

	for (int i = 0; i < WORDS; i++) {
		u128 c = 0;
		u64 m;

		for (int j = 0; j < WORDS; j++) {
			c += (u128)a[i] * b[j] + t[j];
			t[j] = c;
			c >>= 64;
		}
		c += t[WORDS];
		t[WORDS] = c;
		t[WORDS + 1] = c >> 64;
		m = t[0] * inverse;
		c = (u128)m * key_n[0] + t[0];
		c >>= 64;
		for (int j = 1; j < WORDS; j++) {
			c += (u128)m * key_n[j] + t[j];
			t[j - 1] = c;
			c >>= 64;
		}
		c += t[WORDS];
		t[WORDS - 1] = c;
		t[WORDS] = t[WORDS + 1] + (u64)(c >> 64);
	}
	if (t[WORDS] || at_least(t, key_n))
		subtract(t, key_n);
	memcpy(r, t, WORDS * 8);
}

/* quotient and remainder of the double-length x by n; x < n * 2^3072 */
static void divide(const u64 *x, u64 *quotient, u64 *remainder)
{
	u64 r[WORDS] = { 0 };

	memset(quotient, 0, WORDS * 8);
	for (int bit = 2 * WORDS * 64 - 1; bit >= 0; bit--) {
		u64 top = r[WORDS - 1] >> 63;

		for (int i = WORDS - 1; i > 0; i--)
			r[i] = r[i] << 1 | r[i - 1] >> 63;
		r[0] = r[0] << 1 | (x[bit / 64] >> bit % 64 & 1);
		if (top || at_least(r, key_n)) {
			subtract(r, key_n);
			if (bit < WORDS * 64)
				quotient[bit / 64] |= 1UL << bit % 64;
		}
	}
	memcpy(remainder, r, sizeof r);
}

static void multiply(u64 *product, const u64 *a, const u64 *b)
{
	memset(product, 0, 2 * WORDS * 8);
	for (int i = 0; i < WORDS; i++) {
		u128 c = 0;

		for (int j = 0; j < WORDS; j++) {
			c += (u128)a[i] * b[j] + product[i + j];
			product[i + j] = c;
			c >>= 64;
		}
		product[i + WORDS] = c;
	}
}

/* r = m^d mod n */
static void private_power(u64 *r, const u64 *m)
{
	u64 inverse = 1, one[WORDS] = { 1 }, x[WORDS], y[WORDS], square[WORDS] = { 0 };

	for (int i = 0; i < 6; i++)
		inverse *= 2 - key_n[0] * inverse;
	inverse = -inverse;
	/* square = 2^6144 mod n, by doubling 2^3072 mod n */
	subtract(square, key_n);
	while (at_least(square, key_n))
		subtract(square, key_n);
	for (int i = 0; i < WORDS * 64; i++) {
		u64 top = square[WORDS - 1] >> 63;

		for (int j = WORDS - 1; j > 0; j--)
			square[j] = square[j] << 1 | square[j - 1] >> 63;
		square[0] <<= 1;
		if (top || at_least(square, key_n))
			subtract(square, key_n);
	}
	montgomery(x, one, square, inverse);
	montgomery(y, m, square, inverse);
	for (int bit = WORDS * 64 - 1; bit >= 0; bit--) {
		montgomery(x, x, x, inverse);
		if (key_d[bit / 64] >> bit % 64 & 1)
			montgomery(x, x, y, inverse);
	}
	montgomery(r, x, one, inverse);
}

void sign_sigstruct(u8 *sigstruct)
{
	static const u8 prefix[19] = {	/* DigestInfo of SHA-256 */
		0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
		0x00, 0x04, 0x20,
	};
	u8 padded[384], digest[32];
	u64 m[WORDS], s[WORDS], q[WORDS], r[WORDS], product[2 * WORDS];
	struct sha256 sum;

	sha256_start(&sum);
	sha256_add(&sum, sigstruct, 128);
	sha256_add(&sum, sigstruct + 900, 128);
	sha256_end(&sum, digest);
	memset(padded, 0xff, sizeof padded);
	padded[0] = 0;
	padded[1] = 1;
	padded[384 - 32 - sizeof prefix - 1] = 0;
	memcpy(padded + 384 - 32 - sizeof prefix, prefix, sizeof prefix);
	memcpy(padded + 384 - 32, digest, 32);
	for (int i = 0; i < 384; i++)
		((u8 *)m)[i] = padded[383 - i];
	private_power(s, m);

	memcpy(sigstruct + 128, key_n, 384);
	memcpy(sigstruct + 512, &(u32){ 3 }, 4);
	memcpy(sigstruct + 516, s, 384);
	multiply(product, s, s);
	divide(product, q, r);
	memcpy(sigstruct + 1040, q, 384);
	multiply(product, s, r);
	divide(product, q, r);
	memcpy(sigstruct + 1424, q, 384);
}
