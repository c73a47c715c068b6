/*
 * The whole code of the stress enclave: one page, position independent, no
 * stack. One ecall touches a number of heap pages. Touching means: check every
 * word of the page against what this enclave last wrote there, then write the
 * next version. epcgroup/stress/code.py embeds the assembled bytes; a unit test
 * assembles this file again and compares.
 *
 *   gcc -c enclave.S -o enclave.o && objcopy -O binary -j .text enclave.o enclave.bin
 *
 * Entered by EENTER through the vDSO. On entry rcx is the address after the
 * ENCLU, rdi the call block in ordinary memory. rbp, rsp and r12..r15 belong to
 * the caller and are left alone, so nothing has to be saved.
 *
 * Call block, 64-bit words (see code.Call). The page numbers that come out of it
 * are checked against the measured heap size. It is not checked that the block
 * and the tables lie outside the enclave, as an enclave with secrets would have
 * to: this one has none to leak.
 *
 * A page at version v > 0 holds: word 0 its number, word 1 v, and word i >= 2
 * key + (i - 2) * STEP, where key mixes seed, number and v. At version 0, as the
 * loader leaves it, every word is zero. The versions live outside the enclave:
 * an old copy of a page that comes back is consistent in itself, and only a
 * table that paging never touches can tell.
 */
        .set    MODE, 0         /* 0 in order, 1 random, 2 from a list */
        .set    COUNT, 8        /* pages to touch */
        .set    FIRST, 16       /* first heap page of the range */
        .set    LENGTH, 24      /* pages in the range */
        .set    STATE, 32       /* cursor, generator state or list index; updated */
        .set    LIST, 40        /* u32 numbers within the range */
        .set    VERSIONS, 48    /* u64 per heap page; updated */
        .set    SEED, 56
        .set    WRITE, 64       /* 0: check only */
        .set    DONE, 72        /* pages touched, added up */
        .set    MISMATCHES, 80  /* pages with a wrong word, added up */
        .set    BAD_PAGE, 88    /* the first of them: its number, */
        .set    BAD_WORD, 96    /*   the word's index, */
        .set    WANTED, 104     /*   what it should be, */
        .set    FOUND, 112      /*   what it is, */
        .set    BAD_NUMBER, 120 /*   and whose contents the page claims to be */
        .set    BAD_VERSION, 128
        .set    VERSION, 136    /*   and the version it should be at */
        .set    REFUSED, 144    /* 1: the block named a page outside the heap */

        .set    MIX, 0x9e3779b97f4a7c15   /* odd, from the golden ratio */
        .set    STEP, 0x2545f4914f6cdd1d  /* odd; also xorshift64*'s multiplier */
        .set    WORDS, 512
        .set    EEXIT, 4

/* rax = first pattern word of page rdx at version r9; r11 = STEP */
        .macro  KEY
        movabs  $MIX, %r11
        mov     %r9, %rax
        imul    %r11, %rax
        xor     SEED(%rdi), %rax
        add     %rdx, %rax
        imul    %r11, %rax
        mov     %rax, %r11
        shr     $29, %r11
        xor     %r11, %rax
        movabs  $STEP, %r11
        .endm

        .text
entry:  jmp     start

        .balign 16
heap:   .quad   0               /* filled in by image.py, and measured: */
pages:  .quad   0               /* heap offset from entry, heap pages */

start:  mov     %rcx, %rbx      /* EEXIT wants its target in rbx */
        lea     entry(%rip), %rsi
        add     heap(%rip), %rsi
        mov     COUNT(%rdi), %r8
        test    %r8, %r8
        jz      leave

/* rdx = the next page */
next:   mov     MODE(%rdi), %rax
        cmp     $1, %rax
        je      random
        ja      list

        mov     STATE(%rdi), %rdx
        lea     1(%rdx), %rax
        cmp     LENGTH(%rdi), %rax
        jb      1f
        xor     %eax, %eax
1:      mov     %rax, STATE(%rdi)
        jmp     touch

random: mov     STATE(%rdi), %rax       /* xorshift64* */
        mov     %rax, %rdx
        shr     $12, %rdx
        xor     %rdx, %rax
        mov     %rax, %rdx
        shl     $25, %rdx
        xor     %rdx, %rax
        mov     %rax, %rdx
        shr     $27, %rdx
        xor     %rdx, %rax
        mov     %rax, STATE(%rdi)
        movabs  $STEP, %rdx
        imul    %rdx, %rax
        mulq    LENGTH(%rdi)            /* rdx = upper half: 0 .. LENGTH - 1 */
        jmp     touch

list:   mov     STATE(%rdi), %rax
        mov     LIST(%rdi), %r11
        mov     (%r11,%rax,4), %edx
        inc     %rax
        mov     %rax, STATE(%rdi)

touch:  add     FIRST(%rdi), %rdx
        cmp     pages(%rip), %rdx
        jae     refuse
        mov     %rdx, %r10
        shl     $12, %r10
        add     %rsi, %r10              /* r10 = the page */
        mov     VERSIONS(%rdi), %r11
        mov     (%r11,%rdx,8), %r9      /* r9 = the version it must hold */
        xor     %ecx, %ecx
        xor     %eax, %eax
        xor     %r11d, %r11d
        test    %r9, %r9
        jz      1f
        KEY
        mov     %rdx, %rcx
1:      cmp     %rcx, (%r10)
        jne     bad0
        cmp     %r9, 8(%r10)
        jne     bad1
        mov     $2, %ecx
1:      cmp     %rax, (%r10,%rcx,8)
        jne     bad
        add     %r11, %rax
        inc     %ecx
        cmp     $WORDS, %ecx
        jb      1b

write:  cmpq    $0, WRITE(%rdi)
        je      done
        inc     %r9
        KEY
        mov     %rdx, (%r10)
        mov     %r9, 8(%r10)
        mov     $2, %ecx
1:      mov     %rax, (%r10,%rcx,8)
        add     %r11, %rax
        inc     %ecx
        cmp     $WORDS, %ecx
        jb      1b
        mov     VERSIONS(%rdi), %r11
        mov     %r9, (%r11,%rdx,8)

done:   incq    DONE(%rdi)
        dec     %r8
        jnz     next

leave:  mov     $EEXIT, %eax
        .byte   0x0f, 0x01, 0xd7        /* enclu */

bad0:   mov     %rcx, %rax
        xor     %ecx, %ecx
        jmp     bad
bad1:   mov     %r9, %rax
        mov     $1, %ecx
bad:    incq    MISMATCHES(%rdi)
        cmpq    $1, MISMATCHES(%rdi)
        jne     write                   /* only the first is described */
        mov     %rdx, BAD_PAGE(%rdi)
        mov     %rcx, BAD_WORD(%rdi)
        mov     %rax, WANTED(%rdi)
        mov     (%r10,%rcx,8), %rax
        mov     %rax, FOUND(%rdi)
        mov     (%r10), %rax
        mov     %rax, BAD_NUMBER(%rdi)
        mov     8(%r10), %rax
        mov     %rax, BAD_VERSION(%rdi)
        mov     %r9, VERSION(%rdi)
        jmp     write

refuse: movq    $1, REFUSED(%rdi)
        jmp     leave

        .section .note.GNU-stack, "", @progbits
