/* The way in and out.
 *
 * EENTER: rax = CSSA, rbx = TCS, rcx = where EEXIT goes, rdi = the thread's block.  CSSA 0 is a fresh thread
 * or the answer to an ocall; CSSA 1 is the first stage of an exception.  GS base is the struct thread.
 */
#include "../libos.h"
	.section .entry, "ax"
	.globl	entry
entry:
	cld
	test	%rax, %rax
	jnz	exception
	mov	%rsp, %gs:T_HOST_RSP
	mov	%rcx, %gs:T_HOST_RETURN
	mov	%gs:T_OS_RSP, %rsp
	test	%rsp, %rsp
	jz	fresh
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	ret
fresh:
	mov	%gs:T_OS_STACK, %rsp
	sub	$4096, %rsp		/* the struct context */
	xor	%ebp, %ebp
	call	thread_start
	ud2

exception:
	mov	%gs:T_EXCEPTION_STACK, %r10
	xchg	%rsp, %r10
	push	%r10
	push	%rcx
	call	first_stage
	pop	%rbx
	pop	%rsp
	jmp	out

	.globl	leave, leave_for_good
	.hidden	leave, leave_for_good
leave:
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, %gs:T_OS_RSP
	jmp	0f
leave_for_good:
	movq	$0, %gs:T_OS_RSP
0:	mov	%gs:T_HOST_RETURN, %rbx
	mov	%gs:T_HOST_RSP, %rsp
out:	.irp	r, ecx, edx, esi, edi, ebp, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d
	xor	%\r, %\r
	.endr
	mov	$4, %eax
	enclu
	ud2

/* void resume(struct context *c): the program goes on with all that is in c.  Below its red zone is where
 * it goes. */
	.globl	resume
	.hidden	resume
resume:
	mov	$0xe7, %eax		/* x87, SSE, AVX, AVX-512 */
	xor	%edx, %edx
	xrstor64 C_XSAVE(%rdi)
	mov	168(%rdi), %rax
	wrfsbase %rax
	mov	32(%rdi), %rax
	mov	136(%rdi), %rcx
	mov	%rcx, -136(%rax)
	push	128(%rdi)
	popfq
	mov	0(%rdi), %rax
	mov	8(%rdi), %rcx
	mov	16(%rdi), %rdx
	mov	24(%rdi), %rbx
	mov	40(%rdi), %rbp
	mov	48(%rdi), %rsi
	mov	64(%rdi), %r8
	mov	72(%rdi), %r9
	mov	80(%rdi), %r10
	mov	88(%rdi), %r11
	mov	96(%rdi), %r12
	mov	104(%rdi), %r13
	mov	112(%rdi), %r14
	mov	120(%rdi), %r15
	mov	32(%rdi), %rsp
	mov	56(%rdi), %rdi
	jmp	*-136(%rsp)
	.section .note.GNU-stack, "", @progbits
