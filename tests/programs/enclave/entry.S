/* The way in and out.
 *
 * EENTER: rax = CSSA, rbx = TCS, rcx = address after the host's ENCLU, rdi = request.
 * The stack of this level is the page at TCS - 4096 * (CSSA + 1).  Its highest word keeps
 * where the saved registers are, so that OP_UNWIND of another level can find them.
 */
	.section .entry, "ax"
	.globl entry
entry:
	mov	%rax, %r10
	shl	$12, %r10
	neg	%r10
	lea	-64(%rbx, %r10), %r10
	xchg	%rsp, %r10
	push	%r10			/* the host's stack pointer */
	push	%rcx			/* where EEXIT goes */
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rax, %r10
	shl	$12, %r10
	neg	%r10
	mov	%rsp, -8(%rbx, %r10)
	mov	%rbx, %rsi
	mov	%rax, %rdx
	cld
	call	serve

	.globl leave_enclave
	.hidden leave_enclave
leave_enclave:				/* rsp at the saved registers */
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx			/* the TCS */
	pop	%rbp
	pop	%rbx
	pop	%rsp
	xor	%edx, %edx
	xor	%esi, %esi
	mov	$4, %eax
	enclu
	ud2

/* u64 eaccept(secinfo, page), emodpe(secinfo, page): as in Gramine and in Intel's SDK. */
	.globl	eaccept, emodpe
	.hidden	eaccept, emodpe
eaccept:
	mov	%rbx, %r10
	movl	$5, %eax
	movq	%rdi, %rbx
	movq	%rsi, %rcx
	enclu
	mov	%r10, %rbx
	ret
emodpe:
	push	%rbx
	mov	%rdi, %rbx
	mov	%rsi, %rcx
	mov	$6, %eax
	enclu
	pop	%rbx
	ret

/* Another way in, at offset 256: tell what every register is, set every register, leave.
 * RDI is a struct probe (../host/enclave.h). */
	.org	256
probe:
	mov	%rax, 0(%rdi)
	mov	%rbx, 8(%rdi)
	mov	%rcx, 16(%rdi)
	mov	%rdx, 24(%rdi)
	mov	%rsi, 32(%rdi)
	mov	%rdi, 40(%rdi)
	mov	%rbp, 48(%rdi)
	mov	%rsp, 56(%rdi)
	mov	%r8, 64(%rdi)
	mov	%r9, 72(%rdi)
	mov	%r10, 80(%rdi)
	mov	%r11, 88(%rdi)
	mov	%r12, 96(%rdi)
	mov	%r13, 104(%rdi)
	mov	%r14, 112(%rdi)
	mov	%r15, 120(%rdi)
	pushfq
	pop	128(%rdi)
	rdfsbase %rax
	mov	%rax, 136(%rdi)
	rdgsbase %rax
	mov	%rax, 144(%rdi)
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movups	%xmm\n, 160 + 16 * \n(%rdi)
	.endr
	mov	16(%rdi), %rbx		/* where EENTER came from */
	push	512(%rdi)
	mov	416(%rdi), %rdx
	mov	424(%rdi), %rsi
	mov	440(%rdi), %rbp
	mov	448(%rdi), %r8
	mov	456(%rdi), %r9
	mov	464(%rdi), %r10
	mov	472(%rdi), %r11
	mov	480(%rdi), %r12
	mov	488(%rdi), %r13
	mov	496(%rdi), %r14
	mov	504(%rdi), %r15
	mov	432(%rdi), %rdi
	popfq
	mov	$4, %eax
	enclu
	ud2

/* leaf_all(regs, at): the leaf at `at` with every register and the flags from regs (in the order of the
 * SSA, RSP left out, then RFLAGS), which are as found afterwards on return. */
	.globl	leaf_all, eaccept_all, emodpe_all
	.hidden	leaf_all, eaccept_all, emodpe_all
leaf_all:
	.irp	r, rbx, rbp, r12, r13, r14, r15, rdi, rsi
	push	%\r
	.endr
	push	128(%rdi)
	popfq
	mov	8(%rdi), %rcx
	mov	16(%rdi), %rdx
	mov	24(%rdi), %rbx
	mov	40(%rdi), %rbp
	mov	48(%rdi), %rsi
	.irp	n, 8, 9, 10, 11, 12, 13, 14, 15
	mov	8 * \n(%rdi), %r\n
	.endr
	mov	56(%rdi), %rdi
	ret
eaccept_all:
	mov	$5, %eax
	enclu
	jmp	0f
emodpe_all:
	mov	$6, %eax
	enclu
0:	push	%rdi
	mov	8(%rsp), %rdi
	pop	56(%rdi)
	pushfq
	pop	128(%rdi)
	mov	%rax, (%rdi)
	mov	%rcx, 8(%rdi)
	mov	%rdx, 16(%rdi)
	mov	%rbx, 24(%rdi)
	mov	%rbp, 40(%rdi)
	mov	%rsi, 48(%rdi)
	.irp	n, 8, 9, 10, 11, 12, 13, 14, 15
	mov	%r\n, 8 * \n(%rdi)
	.endr
	cld
	.irp	r, rdi, r15, r14, r13, r12, rbp, rbx
	pop	%\r
	.endr
	ret
	.section .note.GNU-stack, "", @progbits
