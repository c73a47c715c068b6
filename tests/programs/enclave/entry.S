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
	.section .note.GNU-stack, "", @progbits
