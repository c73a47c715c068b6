"""Public fakes: run the engine without a processor, a kernel or an enclave."""

from epcgroup.testing.table import TablePager, touch, touch_vepc
from epcgroup.testing.world import World

__all__ = ["TablePager", "World", "touch", "touch_vepc"]
