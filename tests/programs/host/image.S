/* The flat enclave image, as build.py linked it. */
	.section .rodata
	.globl enclave_image, enclave_image_end
	.balign 4096
enclave_image:
	.incbin "enclave.bin"
enclave_image_end:
	.section .note.GNU-stack, "", @progbits
