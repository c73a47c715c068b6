"""Enclave pages of real processes: frames, page tables, faults and the service that answers them."""
