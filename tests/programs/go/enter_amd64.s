#include "textflag.h"

// func enter(tcs, call uintptr): EENTER; an asynchronous exit resumes at aep.
TEXT ·enter(SB), NOSPLIT, $0-16
	MOVQ tcs+0(FP), BX
	MOVQ call+8(FP), DI
	LEAQ ·aep(SB), CX
	MOVL $2, AX
	BYTE $0x0f; BYTE $0x01; BYTE $0xd7
	RET

TEXT ·aep(SB), NOSPLIT, $0-0
	BYTE $0x0f; BYTE $0x01; BYTE $0xd7
	RET

// func sgx() uint32: CPUID leaf 7, ebx bit 2.
TEXT ·sgx(SB), NOSPLIT, $0-4
	MOVL $7, AX
	XORL CX, CX
	CPUID
	SHRL $2, BX
	ANDL $1, BX
	MOVL BX, ret+0(FP)
	RET
