/* void probe_enter(struct probe *p, u64 tcs): set every register, enter as Gramine does, tell what every register is. */
	.text
	.globl	probe_enter, probe_after, probe_aep
	.type	probe_enter, @function
probe_enter:
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	push	%rdi
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movups	800 + 16 * \n(%rdi), %xmm\n
	.endr
	mov	624(%rdi), %rax
	wrgsbase %rax
	mov	%rsi, %rbx
	push	616(%rdi)
	mov	520(%rdi), %rdx
	mov	528(%rdi), %rsi
	mov	544(%rdi), %rbp
	mov	552(%rdi), %r8
	mov	560(%rdi), %r9
	mov	568(%rdi), %r10
	mov	576(%rdi), %r11
	mov	584(%rdi), %r12
	mov	592(%rdi), %r13
	mov	600(%rdi), %r14
	mov	608(%rdi), %r15
	popfq
	lea	probe_aep(%rip), %rcx
	mov	$2, %eax
	enclu
probe_after:
	pushfq
	push	%rdi
	mov	16(%rsp), %rdi
	mov	%rax, 640(%rdi)
	mov	%rbx, 648(%rdi)
	mov	%rcx, 656(%rdi)
	mov	%rdx, 664(%rdi)
	mov	%rsi, 672(%rdi)
	pop	680(%rdi)		/* rdi */
	mov	%rbp, 688(%rdi)
	mov	%r8, 704(%rdi)
	mov	%r9, 712(%rdi)
	mov	%r10, 720(%rdi)
	mov	%r11, 728(%rdi)
	mov	%r12, 736(%rdi)
	mov	%r13, 744(%rdi)
	mov	%r14, 752(%rdi)
	mov	%r15, 760(%rdi)
	pop	768(%rdi)		/* flags */
	mov	%rsp, 696(%rdi)
	rdfsbase %rax
	mov	%rax, 776(%rdi)
	rdgsbase %rax
	mov	%rax, 784(%rdi)
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movups	%xmm\n, 1056 + 16 * \n(%rdi)
	.endr
	xor	%eax, %eax
	wrgsbase %rax
	cld
	pop	%rdi
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	ret

probe_aep:
	enclu
	ud2
	.section .note.GNU-stack, "", @progbits
