"""An SGX client of our own: a signed enclave that touches its heap. No part of the emulator."""
