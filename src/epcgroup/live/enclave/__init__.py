"""The processor's part for real threads: ENCLU, CPUID, exceptions, enclave memory for debuggers."""
