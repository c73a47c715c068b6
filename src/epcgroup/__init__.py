"""SGX enclaves and EPC cgroups on any Linux machine."""

__version__ = "0.1.0"
