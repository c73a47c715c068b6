"""The architecture: layouts, measurement, signatures, sealing, EPCM, leaves.

Import the modules one by one. Nothing is imported here, so that a real SGX
client can take ``layouts``, ``measure`` and ``sign`` without the emulation.
"""
