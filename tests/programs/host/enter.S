/* void enter(struct call *c): go in by bare ENCLU or through the vDSO, on c's own stack.
 *
 * The own stack makes the host's frames the same bytes at the same addresses on every entry,
 * so an enclave entered once and left by a fault can be resumed by a later call.  R12-R15 are
 * not kept across an asynchronous exit by anybody else; they are kept here.
 */
	.text
	.globl enter, bare_aep
	.type enter, @function
enter:
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, 32(%rdi)
	mov	24(%rdi), %rsp
	push	%rdi
	cmpq	$0, 40(%rdi)
	jne	.Lvdso

	mov	%rdi, %r11
	mov	0(%r11), %rbx
	mov	16(%r11), %rdi
	mov	56(%r11), %rcx
	cmpq	$2, 8(%r11)
	jne	.Lother_leaf
	mov	$2, %eax		/* as runtimes have it: a jump can stand in for it */
	enclu
	xor	%eax, %eax
	jmp	.Lout
.Lother_leaf:
	mov	8(%r11), %rax
	enclu
	xor	%eax, %eax
	jmp	.Lout

/* After an asynchronous exit: rax = 3, rbx = TCS, rcx = here. */
bare_aep:
	enclu
	ud2

.Lvdso:
	mov	%rdi, %r11
	push	48(%r11)		/* struct run, the seventh argument */
	mov	8(%r11), %rcx
	mov	16(%r11), %rdi
	xor	%esi, %esi
	xor	%edx, %edx
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	call	*40(%r11)
	add	$8, %rsp
.Lout:
	pop	%rdi
	mov	32(%rdi), %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	ret
	.section .note.GNU-stack, "", @progbits
