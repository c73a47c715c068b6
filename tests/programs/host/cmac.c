/* AES-128-CMAC (FIPS 197, RFC 4493): what a REPORT is signed with. */
#include <string.h>
#include "enclave.h"

static u8 sbox[256];

static u8 twice(u8 x)
{
	return x << 1 ^ (x & 0x80 ? 0x1b : 0);
}

static void make_sbox(void)
{
	u8 p = 1, q = 1;	/* p runs through all non-zero elements, q = 1/p */

	do {
		u8 x;

		p = p ^ twice(p);
		q ^= q << 1;
		q ^= q << 2;
		q ^= q << 4;
		if (q & 0x80)
			q ^= 0x09;
		x = q ^ (u8)(q << 1 | q >> 7) ^ (u8)(q << 2 | q >> 6) ^ (u8)(q << 3 | q >> 5) ^ (u8)(q << 4 | q >> 4);
		sbox[p] = x ^ 0x63;
	} while (p != 1);
	sbox[0] = 0x63;
}

static void encrypt(const u8 key[16], u8 s[16])
{
	u8 k[16], t[16], round_constant = 1;

	memcpy(k, key, 16);
	for (int round = 0; round <= 10; round++) {
		if (round) {
			for (int i = 0; i < 16; i++)	/* SubBytes and ShiftRows */
				t[i] = sbox[s[(i + 4 * (i % 4)) % 16]];
			for (int c = 0; c < 16 && round < 10; c += 4) {
				u8 a[4] = { t[c], t[c + 1], t[c + 2], t[c + 3] };

				for (int i = 0; i < 4; i++)
					t[c + i] = twice(a[i]) ^ twice(a[(i + 1) % 4]) ^ a[(i + 1) % 4] ^
						   a[(i + 2) % 4] ^ a[(i + 3) % 4];
			}
			memcpy(s, t, 16);
			for (int i = 0; i < 4; i++)
				k[i] ^= sbox[k[12 + (i + 1) % 4]] ^ (i ? 0 : round_constant);
			for (int i = 4; i < 16; i++)
				k[i] ^= k[i - 4];
			round_constant = twice(round_constant);
		}
		for (int i = 0; i < 16; i++)
			s[i] ^= k[i];
	}
}

static void double_block(u8 b[16])
{
	u8 carry = b[0] >> 7;

	for (int i = 0; i < 16; i++)
		b[i] = b[i] << 1 | (i < 15 ? b[i + 1] >> 7 : 0);
	if (carry)
		b[15] ^= 0x87;
}

void aes_cmac(const u8 key[16], const void *data, size_t n, u8 out[16])
{
	const u8 *from = data;
	u8 sub[16] = { 0 }, last[16] = { 0 }, x[16] = { 0 };
	size_t whole = n ? (n - 1) / 16 : 0, rest = n - whole * 16;

	if (!sbox[0])
		make_sbox();
	encrypt(key, sub);
	double_block(sub);
	if (rest < 16) {
		double_block(sub);
		last[rest] = 0x80;
	}
	memcpy(last, from + whole * 16, rest);
	for (size_t i = 0; i < whole; i++) {
		for (int j = 0; j < 16; j++)
			x[j] ^= from[i * 16 + j];
		encrypt(key, x);
	}
	for (int j = 0; j < 16; j++)
		x[j] ^= last[j] ^ sub[j];
	encrypt(key, x);
	memcpy(out, x, 16);
}
