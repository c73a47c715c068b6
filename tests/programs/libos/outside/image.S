/* The library OS, as libos.py linked it. */
	.section .rodata
	.globl inside_image, inside_image_end
	.balign 4096
inside_image:
	.incbin "inside.bin"
inside_image_end:
	.section .note.GNU-stack, "", @progbits
