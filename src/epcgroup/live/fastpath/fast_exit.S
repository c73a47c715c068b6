/*
 * EEXIT without a trap, for a thread that came in by fast_enter.S.
 *
 * The enclave's `mov $4, %eax` (or %rax) before its ENCLU was replaced by a
 * jump to a stub near the enclave, which ends here: RAX is 4, RBX the target.
 * As after the instruction RCX will be the AEP; nothing else may change, flags
 * included, and there is no stack.  So R11 and RDX are parked in GS and FS base,
 * which are about to be replaced.  Where
 * signals have to be blocked again (see fast_enter.S), more is parked behind the
 * table, in a place of this thread's own.
 *
 * No signal is ever delivered here: the supervisor steps a thread out.  A value
 * that is not canonical cannot be parked; the #GP at at_park is answered by
 * executing the EEXIT.  So is the trap at at_trap, when the thread came in by a
 * trap, or RBX is no address of user space.
 */
	.set	SLOTS, 4096
	.set	PARK, SLOTS * 64 + (16384 + 64) * 64	/* from a slot to its parking place */
	.set	S_MASK, 48
	.set	SIG_BLOCK, 0
	.set	NR_SIGPROCMASK, 14
	.set	NR_GETTID, 186

	.text
	.globl	exit, at_park, at_parked, at_trap, at_table
exit:
	seto	%al
	lahf
	movl	%eax, %ecx
	movq	%rbx, %rax
	shrq	$47, %rax
	jnz	.Lnot_ours
	movl	%ecx, %eax
	addb	$0x7f, %al
	sahf
at_park:
	wrgsbase %r11
	wrfsbase %rdx
at_parked:
	movl	$NR_GETTID, %eax
	syscall				/* keeps the flags */
	movl	%eax, %edx
	seto	%al
	lahf
	movl	%edx, %ecx
	andl	$SLOTS - 1, %ecx
	shll	$6, %ecx
	movq	.Ltable(%rip), %r11
	addq	%rcx, %r11
	cmpq	%rdx, (%r11)		/* slot: tid */
	jne	.Lslow
	movq	8(%r11), %rdx		/* its entry */
	testq	%rdx, %rdx
	jz	.Lslow
	cmpq	$0, S_MASK(%r11)
	jne	.Lmasked
.Lopen:
	addb	$0x7f, %al
	sahf
	movq	16(%r11), %rcx		/* AEP */
	movq	$0, 8(%rdx)		/* the TCS is free */
	movq	24(%r11), %rdx
	movq	32(%r11), %rax
	movq	$0, 8(%r11)
	rdgsbase %r11
	wrgsbase %rax
	rdfsbase %rax
	wrfsbase %rdx
	movq	%rax, %rdx
	movl	$4, %eax
	jmp	*%rbx

.Lmasked:
	movq	%r8, PARK(%r11)
	movq	%r11, %r8
	movq	%rdi, PARK + 8(%r8)
	movq	%rsi, PARK + 16(%r8)
	movq	%r10, PARK + 24(%r8)
	movq	%rax, PARK + 32(%r8)
	movl	$SIG_BLOCK, %edi
	leaq	S_MASK(%r8), %rsi
	xorl	%edx, %edx
	movl	$8, %r10d
	movl	$NR_SIGPROCMASK, %eax
	syscall
	movq	%r8, %r11
	movq	$0, S_MASK(%r11)
	movq	PARK + 32(%r11), %rax
	movq	PARK + 24(%r11), %r10
	movq	PARK + 16(%r11), %rsi
	movq	PARK + 8(%r11), %rdi
	movq	PARK(%r11), %r8
	movq	8(%r11), %rdx
	jmp	.Lopen

.Lslow:
	addb	$0x7f, %al
	sahf
	rdgsbase %r11
	rdfsbase %rdx
	jmp	.Ltrap
.Lnot_ours:
	movl	%ecx, %eax
	addb	$0x7f, %al
	sahf
.Ltrap:
	movl	$4, %eax
at_trap:
	int	$0x80
	ud2

	.balign	8
.Ltable:
at_table:
	.quad	0
	.section .note.GNU-stack, "", @progbits
