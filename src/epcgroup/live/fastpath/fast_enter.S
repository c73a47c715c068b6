/*
 * EENTER without a trap, for a TCS that is in the table; see fasttable.py.
 *
 * A place where a program enters jumps here by a stub (fastcode.py) that has
 * moved RSP down by 128 bytes, over the red zone, and pushed the address of the
 * place's ENCLU.  Everything else is as the program left it: RAX leaf, RBX TCS,
 * RCX AEP.  Either the enclave is entered as by the instruction, or every
 * register and flag is put back and the ENCLU is executed after all: it traps.
 *
 *   frame   0 signal mask   8 slot, once its entry is set   16 flags   24 r11 … 80 rcx   88 rax
 *          96 the ENCLU; later the target   104 … red zone   232 what RSP was
 *
 * A signal that an instruction raises must not be blocked inside: the kernel would
 * reset its handler before anybody could prevent that.  So these are let through
 * from here on, and those that were blocked wait in the slot for the way out.  Not so
 * where SIGTRAP is blocked: the supervisor could not step a thread over its return.
 *
 * No signal is ever delivered here.  The supervisor steps a thread up to
 * at_body, and lets one between at_body and at_commit go back by at_bail: what
 * has happened until then is undone there, and may block (the store to the SSA
 * may have to load the page).  From at_commit on it steps the thread inside.
 */
	.set	MASK, 0
	.set	HELD, 8
	.set	RCX, 80
	.set	RAX, 88
	.set	PLACE, 96
	.set	OUTER, 232

	.set	SLOTS, 4096		/* by thread id */
	.set	ENTRIES, SLOTS * 64
	.set	S_TID, 0
	.set	S_ENTRY, 8
	.set	S_AEP, 16
	.set	S_FS, 24
	.set	S_GS, 32
	.set	S_STAYS, 40
	.set	S_MASK, 48
	.set	E_TCS, 0
	.set	E_OWNER, 8
	.set	E_TARGET, 16
	.set	E_URSP, 24
	.set	E_FS, 32
	.set	E_GS, 40
	.set	E_USED, 48
	.set	E_CSSA, 56

	.set	RAISED, 0x4c8		/* SIGILL SIGBUS SIGFPE SIGSEGV */
	.set	TRAP, 0x10		/* SIGTRAP */
	.set	SIG_BLOCK, 0
	.set	SIG_UNBLOCK, 1
	.set	NR_SIGPROCMASK, 14
	.set	NR_GETTID, 186

	.macro	restore			/* flags and registers of the frame, RAX left in it */
	addq	$16, %rsp
	popq	%rax
	addb	$0x7f, %al
	sahf
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rdx
	popq	%rcx
	.endm

	.text
	.globl	enter, at_body, at_commit, at_bail, at_table
enter:
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	seto	%al
	lahf
	pushq	%rax
	pushq	$0
	pushq	$0
at_body:
	cmpl	$2, RAX(%rsp)
	jne	.Lbail
	movq	.Ltable(%rip), %r9
	testq	%r9, %r9
	jz	.Lbail
	testq	%rbx, %rbx
	jz	.Lbail
	movq	%rbx, %rdi
	shrq	$12, %rdi
	imull	$0x9e3779b1, %edi, %edi
	shrl	$18, %edi
	shll	$6, %edi
	leaq	ENTRIES(%r9,%rdi), %r8
	cmpq	%rbx, (%r8)
	je	.Lfound
	addq	$64, %r8
	cmpq	%rbx, (%r8)
	je	.Lfound
	addq	$64, %r8
	cmpq	%rbx, (%r8)
	je	.Lfound
	addq	$64, %r8
	cmpq	%rbx, (%r8)
	jne	.Lbail
.Lfound:
	movl	$SIG_UNBLOCK, %edi
	leaq	.Lraised(%rip), %rsi
	movq	%rsp, %rdx
	movl	$8, %r10d
	movl	$NR_SIGPROCMASK, %eax
	syscall
	testl	%eax, %eax
	jnz	.Lbail
	testl	$TRAP, MASK(%rsp)
	jnz	.Lbail
	movl	$NR_GETTID, %eax
	syscall
	testl	%eax, %eax
	js	.Lbail			/* a filter of the program's own forbids it */
	movl	%eax, %edx
	andl	$SLOTS - 1, %eax
	shll	$6, %eax
	leaq	(%r9,%rax), %r10
	cmpq	%rdx, S_TID(%r10)
	je	.Lmine
	xorl	%eax, %eax
	lock cmpxchgq %rdx, S_TID(%r10)
	jne	.Lbail			/* another thread with the same low bits */
.Lmine:
	cmpq	$0, S_ENTRY(%r10)
	jne	.Lbail
	movq	%r8, S_ENTRY(%r10)
	movq	%r10, HELD(%rsp)
	movq	RCX(%rsp), %rax
	movq	%rax, S_AEP(%r10)
	rdfsbase %rax
	movq	%rax, S_FS(%r10)
	rdgsbase %rax
	movq	%rax, S_GS(%r10)
	movl	MASK(%rsp), %eax
	andl	$RAISED, %eax
	movq	%rax, S_MASK(%r10)
	xorl	%eax, %eax
	lock cmpxchgq %rdx, E_OWNER(%r8)
	jne	.Lbail
	cmpq	%rbx, E_TCS(%r8)	/* the supervisor may have taken it out meanwhile */
	jne	.Lbail
	leaq	OUTER(%rsp), %rcx
	movq	E_URSP(%r8), %rax
	movq	%rcx, (%rax)
	movq	%rbp, 8(%rax)
at_commit:
	movq	$1, E_USED(%r8)
	incq	S_STAYS(%r10)
	movq	PLACE(%rsp), %rax
	addq	$3, %rax
	movq	%rax, RCX(%rsp)
	movq	E_TARGET(%r8), %rax
	movq	%rax, PLACE(%rsp)
	movq	E_FS(%r8), %rax
	wrfsbase %rax
	movq	E_GS(%r8), %rax
	wrgsbase %rax
	movq	E_CSSA(%r8), %rax
	movq	%rax, RAX(%rsp)
	restore
	movq	(%rsp), %rax
	leaq	OUTER - RAX(%rsp), %rsp
	jmp	*PLACE - OUTER(%rsp)

at_bail:
.Lbail:
	movq	HELD(%rsp), %r10
	testq	%r10, %r10
	jz	.Lback
	movq	S_ENTRY(%r10), %r8
	movq	S_TID(%r10), %rdx
	cmpq	%rdx, E_OWNER(%r8)
	jne	.Lnot_locked
	movq	$0, E_OWNER(%r8)
.Lnot_locked:
	movq	$0, S_ENTRY(%r10)
.Lback:
	movl	MASK(%rsp), %eax
	andl	$RAISED, %eax
	jz	.Lclosed
	movq	%rax, MASK(%rsp)
	movl	$SIG_BLOCK, %edi
	movq	%rsp, %rsi
	xorl	%edx, %edx
	movl	$8, %r10d
	movl	$NR_SIGPROCMASK, %eax
	syscall
.Lclosed:
	restore
	popq	%rax
	leaq	OUTER - PLACE(%rsp), %rsp
	jmp	*PLACE - OUTER(%rsp)

	.balign	8
.Lraised:
	.quad	RAISED
.Ltable:
at_table:				/* address of the table in this process; 0: there is none */
	.quad	0
	.section .note.GNU-stack, "", @progbits
