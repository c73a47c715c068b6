/* u64 hold_state(struct state *s): load a pattern into every register the host could disturb,
 * touch pages (each touch may be a page fault, each moment a timer signal), compare.
 *
 * rdi = s, rsi = page pointer, rcx = pages left, r14 = passes left, rax and r15 scratch.
 * The others hold the pattern: rdx rbx r8-r13, ymm0-ymm14, three x87 registers.
 */
#define PAGE 0
#define PAGES 8
#define PASSES 16
#define FAULT 24
#define BAD 32
#define GPR 40
#define MXCSR 104
#define FCW 108
#define X87 112
#define YMM 136
#define SEEN 616

	.text
	.globl hold_state
	.hidden hold_state
hold_state:
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	sub	$16, %rsp
	stmxcsr	(%rsp)
	fnstcw	4(%rsp)

	fninit
	fldcw	FCW(%rdi)
	ldmxcsr	MXCSR(%rdi)
	fldl	X87(%rdi)
	fldl	X87+8(%rdi)
	fldl	X87+16(%rdi)
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14
	vmovdqu	YMM+32*\n(%rdi), %ymm\n
	.endr
	mov	GPR(%rdi), %rdx
	mov	GPR+8(%rdi), %rbx
	mov	GPR+16(%rdi), %r8
	mov	GPR+24(%rdi), %r9
	mov	GPR+32(%rdi), %r10
	mov	GPR+40(%rdi), %r11
	mov	GPR+48(%rdi), %r12
	mov	GPR+56(%rdi), %r13
	movq	$0, BAD(%rdi)
	mov	PASSES(%rdi), %r14

	cmpq	$0, FAULT(%rdi)
	je	.Lpass
	ud2
	vmovdqu	%ymm0, SEEN(%rdi)
.Lpass:
	mov	PAGE(%rdi), %rsi
	mov	PAGES(%rdi), %rcx
.Ltouch:
	test	%rcx, %rcx
	jz	.Lcompare
	mov	(%rsi), %rax
	add	%rdx, %rax
	mov	%rax, (%rsi)
	add	$4096, %rsi
	dec	%rcx
	jmp	.Ltouch
.Lcompare:
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14
	vpxor	YMM+32*\n(%rdi), %ymm\n, %ymm15
	vptest	%ymm15, %ymm15
	jz	1f
	orq	$(1 << \n), BAD(%rdi)
1:
	.endr
	xor	%r15d, %r15d
	mov	%rdx, %rax
	xor	GPR(%rdi), %rax
	or	%rax, %r15
	mov	%rbx, %rax
	xor	GPR+8(%rdi), %rax
	or	%rax, %r15
	mov	%r8, %rax
	xor	GPR+16(%rdi), %rax
	or	%rax, %r15
	mov	%r9, %rax
	xor	GPR+24(%rdi), %rax
	or	%rax, %r15
	mov	%r10, %rax
	xor	GPR+32(%rdi), %rax
	or	%rax, %r15
	mov	%r11, %rax
	xor	GPR+40(%rdi), %rax
	or	%rax, %r15
	mov	%r12, %rax
	xor	GPR+48(%rdi), %rax
	or	%rax, %r15
	mov	%r13, %rax
	xor	GPR+56(%rdi), %rax
	or	%rax, %r15
	jz	2f
	orq	$0x10000, BAD(%rdi)
2:
	dec	%r14
	jg	.Lpass

	stmxcsr	8(%rsp)
	mov	8(%rsp), %eax
	and	$~0x3f, %eax		/* without the sticky exception flags */
	cmp	MXCSR(%rdi), %eax
	je	3f
	orq	$0x40000, BAD(%rdi)
3:
	fnstcw	8(%rsp)
	mov	8(%rsp), %ax
	cmp	FCW(%rdi), %ax
	je	4f
	orq	$0x80000, BAD(%rdi)
4:
	.irp	n, 16, 8, 0
	fstpl	8(%rsp)
	mov	8(%rsp), %rax
	cmp	X87+\n(%rdi), %rax
	je	5f
	orq	$0x20000, BAD(%rdi)
5:
	.endr
	vzeroall
	fninit
	fldcw	4(%rsp)
	ldmxcsr	(%rsp)
	add	$16, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	ret
	.section .note.GNU-stack, "", @progbits
