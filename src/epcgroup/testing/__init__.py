"""Public fakes: run the engine without a processor, a kernel or an enclave."""

from epcgroup.testing.table import TablePager, touch, touch_vepc

__all__ = ["TablePager", "touch", "touch_vepc"]
