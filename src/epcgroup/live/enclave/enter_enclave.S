/*
 * __vdso_sgx_enter_enclave for kernels whose vDSO has none.
 *
 * Written from the documented interface (struct sgx_enclave_run in asm/sgx.h,
 * "vDSO" in the kernel's SGX documentation):
 *
 *   int f(rdi, rsi, rdx, unsigned function, r8, r9, struct sgx_enclave_run *run)
 *
 *   run:   0 tcs     8 function (u32)   12 vector (u16)   14 error code (u16)
 *         16 address   24 user_handler   32 user_data   40 reserved, must be zero
 *
 * RDI, RSI, RDX, R8 and R9 reach the enclave as they are, and the handler as the
 * enclave left them. RBP is the anchor: the enclave has to preserve it. RSP may
 * come back lower than it went in; the handler gets it and it is put back before
 * the next entry, so that an enclave can pass data on the untrusted stack. Of
 * the callee-saved registers only RBX and RBP are saved here, the others belong
 * to the enclave.
 *
 * The assembled bytes are in enter_enclave.py; a test holds the two together.
 */
	.set	TCS, 0
	.set	FUNCTION, 8
	.set	VECTOR, 12
	.set	ERROR_CODE, 14
	.set	ADDRESS, 16
	.set	HANDLER, 24
	.set	RESERVED, 40
	.set	RUN_SIZE, 256
	.set	EENTER, 2
	.set	EEXIT, 4
	.set	EINVAL, 22

	.text
	.globl	enter_enclave, at_jump, at_enclu, at_fixup
enter_enclave:
	endbr64
	pushq	%rbp
	movq	%rsp, %rbp
	pushq	%rbx			/* at -8(%rbp) */
	movl	%ecx, %eax

.Lenter:				/* EAX = leaf; RSP as it shall be inside */
	movq	16(%rbp), %rbx		/* RBX = run: above our RBP and the return address */
	leal	-EENTER(%rax), %ecx
	cmpl	$1, %ecx		/* neither EENTER nor ERESUME */
	ja	.Linvalid
	movl	$(RUN_SIZE - RESERVED) / 8, %ecx
.Lreserved:
	cmpq	$0, RESERVED - 8(%rbx,%rcx,8)
	jne	.Linvalid
	decl	%ecx
	jnz	.Lreserved

	movq	TCS(%rbx), %rbx
	leaq	.Laep(%rip), %rcx	/* AEP: an interrupted enclave resumes from here */
at_jump:				/* room for a jump: the way in without a trap */
	.byte	0x0f, 0x1f, 0x44, 0, 0	/* nop */
at_enclu:
.Laep:
	enclu

	/* EEXIT comes here. */
	movq	16(%rbp), %rbx
	movl	$EEXIT, FUNCTION(%rbx)
	xorl	%eax, %eax

.Ldone:					/* EAX = result, RBX = run */
	cld
	cmpq	$0, HANDLER(%rbx)
	jne	.Lhandler
.Lreturn:
	movq	-8(%rbp), %rbx
	leave
	ret

.Lhandler:
	movq	HANDLER(%rbx), %rax
	movq	%rsp, %rcx		/* its fourth argument */
	andq	$-16, %rsp
	subq	$8, %rsp
	pushq	%rbx			/* its seventh: run */
	movq	%rcx, %rbx
	call	*%rax
	movq	%rbx, %rsp
	testl	%eax, %eax		/* > 0: the leaf to go on with */
	jg	.Lenter
	jmp	.Lreturn

.Linvalid:
	movl	$-EINVAL, %eax
	jmp	.Lreturn

	/*
	 * An exception at the ENCLU, or inside the enclave (then the AEX has been
	 * done and EAX is ERESUME): EAX leaf, RDI vector, RSI error code, RDX address.
	 */
at_fixup:
	movq	16(%rbp), %rbx
	movl	%eax, FUNCTION(%rbx)
	movw	%di, VECTOR(%rbx)
	movw	%si, ERROR_CODE(%rbx)
	movq	%rdx, ADDRESS(%rbx)
	xorl	%eax, %eax		/* the ENCLU was attempted; FUNCTION tells the rest */
	jmp	.Ldone
	.section .note.GNU-stack, "", @progbits
