"""Names of the columns of the compiled engine's arrays.

The kernel's state is a handful of arrays (see :mod:`.tables`); their columns are
module constants, because the compiler freezes those into the machine code.
"""

from __future__ import annotations

from typing import Final

# One row per cgroup. First what a load must know: a cache line. Then what it counts, and a batch: a second.
PARENT: Final = 0
USAGE: Final = 1  # pages charged to the subtree
LIMIT: Final = 2  # misc.max in whole pages
PEAK: Final = 3
BELOW: Final = 4  # reclaimable pages in the subtree
COUNT: Final = 5  # reclaimable pages on the group's own list
TAIL: Final = 6  # last chunk
TAIL_AT: Final = 7  # next free entry there
HEAD: Final = 8  # first chunk, -1: none
HEAD_AT: Final = 9  # next entry to take there
PINS: Final = 10  # pages charged directly to this group
LOADED: Final = 11
FAULTS: Final = 12
EVICTED: Final = 13
SCANNED: Final = 14
YOUNG: Final = 15
# What a walk touches: a third.
POS: Final = 16  # place in the pre-order of the whole tree
END: Final = 17  # where its subtree ends there
CURSOR: Final = 18
ONLINE: Final = 19
WAITING: Final = 20
QUEUED: Final = 21
WANTED: Final = 22
PATH_MIN: Final = 23  # smallest limit on the way to the root, in pages
EVENTS: Final = 24
EVENTS_LOCAL: Final = 25
TASKS: Final = 26
KIDS: Final = 27  # children not released
FIRST: Final = 28
LAST: Final = 29
NEXT: Final = 30
PREV: Final = 31
UNREC_HEAD: Final = 32  # list of unreclaimable pages: nodes
UNREC_TAIL: Final = 33
RELEASED: Final = 34
VICTIM: Final = 35  # enclave disabled for this group's sake, -1: none
VICTIM_SEQ: Final = 36
RETRIED: Final = 37
ADDED: Final = 38
AUGMENTED: Final = 39
REMOVED: Final = 40
GROUP_COLUMNS: Final = 48

# One row per enclave. What a fault and an eviction touch is one cache line.
FLAGS: Final = 0
GROUP: Final = 1  # of its process, now
HOME: Final = 2  # of all its resident pages, unless MIXED
CHILDREN: Final = 3  # resident pages
SECS: Final = 4  # node, -1: evicted
E_FAULTS: Final = 5
E_LOADED: Final = 6
E_EVICTED: Final = 7
BASE: Final = 8  # number of its first page
SIZE: Final = 9
PAGE_CNT: Final = 10
VA_COUNT: Final = 11
VA_FIRST: Final = 12
VA_LAST: Final = 13
E_RETRIED: Final = 14
E_ADDED: Final = 15
E_AUGMENTED: Final = 16
E_FAILED: Final = 17  # accesses that ended in SIGBUS or did not end
ENCLAVE_COLUMNS: Final = 24

# FLAGS of an enclave.
CREATED: Final = 1
INITIALISED: Final = 2
DISABLED: Final = 4
RELEASED_ENCLAVE: Final = 8
MIXED: Final = 16  # resident pages are charged to more than one group
AWAITED: Final = 32  # groups wait for its release

# Bits of a page's flag byte.
EXISTS: Final = 1
RESIDENT: Final = 2
MAPPED: Final = 4
ACCESSED: Final = 8
DEAD: Final = 128  # its enclave is gone; an entry of a list may still name it
READY: Final = EXISTS | RESIDENT | MAPPED | ACCESSED  # a hit that changes nothing
BLOCK: Final = 6  # log2: pages of one owner come in blocks of 64 numbers

# One row per SECS or VA page.
N_ENCLAVE: Final = 0
N_GROUP: Final = 1
N_PREV: Final = 2
N_NEXT: Final = 3
N_LISTED: Final = 4
N_CHAIN: Final = 5  # next VA page of the enclave
N_IS_SECS: Final = 6
NODE_COLUMNS: Final = 8

# Rows of the table of group numbers.
T_ORDER: Final = 0  # groups in pre-order
T_WORKS: Final = 1  # ring of queued workers
T_DYING: Final = 2  # ring of groups that wait for their release

# Scalars of the machine.
EPC: Final = 0
LOW: Final = 1
HIGH: Final = 2
PENDING: Final = 3  # works + dying + woken: anything to settle
WORKS_AT: Final = 4
WORKS: Final = 5
DYING_AT: Final = 6
DYING: Final = 7
WOKEN: Final = 8
KSGXD_WANTED: Final = 9
CHUNK_FREE: Final = 10
CHUNKS: Final = 11  # ever used
STALE: Final = 12  # list entries whose page is dead
DIRTY: Final = 13  # the pre-order is to be made anew
WORKS_RUN: Final = 14
KSGXD_RUNS: Final = 15
EVICTED_TOTAL: Final = 16
LOADED_TOTAL: Final = 17
NODE_FREE: Final = 18
NODES: Final = 19
LOGGING: Final = 20
LOGGED: Final = 21
GROUPS: Final = 22
ADDED_VA: Final = 23
LAST_K: Final = 24
SGX2: Final = 25
SEQ: Final = 26
RINGS: Final = 27  # length of a ring
SKIPPED: Final = 28  # accesses to enclaves that are gone
FAILED: Final = 29
HITS: Final = 30
AUGMENTED_TOTAL: Final = 31
RESULT: Final = 32
# Scalars: the policy's knobs.
K_REFUSING: Final = 40
K_RESTART: Final = 41
K_STOP: Final = 42
K_BATCH_MIN: Final = 43
K_BATCH_MAX: Final = 44
K_GLOBAL: Final = 45
K_BY_NEED: Final = 46
K_IGNORE_AFTER: Final = 47  # -1: never
K_GIVE_UP: Final = 48
K_DIRECT: Final = 49
K_GOAL: Final = 50  # 0 v5, 1 v17, 2 standard
K_DISABLE: Final = 52  # 0 never, 1 cascade, 2 one and wait
K_PAIR: Final = 53
K_WITH_ROOT: Final = 54  # events: the root counts, no events_local
K_TRACK: Final = 55  # SECS and VA pages are on a list
K_EDMM: Final = 51  # the SGX2 ioctls also reclaim from their group
K_GLOBAL_IGNORE: Final = 56  # a reclaimer for the whole machine may ignore age
SCALARS: Final = 64
# After the scalars: where the tables are, and how many rows they have (see tables).
AT_GROUPS: Final = 64
AT_ENCLAVES: Final = 65
AT_FLAGS: Final = 66
AT_OWNERS: Final = 67
AT_CHUNKS: Final = 68
AT_LINKS: Final = 69
AT_NODES: Final = 70
AT_ORDER: Final = 71
AT_BITS: Final = 72
AT_LOG: Final = 73
AT_BATCH: Final = 74
AT_SCRATCH: Final = 75
AT_THREADS: Final = 76
LEN_GROUPS: Final = 80
LEN_ENCLAVES: Final = 81
LEN_FLAGS: Final = 82
LEN_OWNERS: Final = 83
LEN_CHUNKS: Final = 84
LEN_NODES: Final = 85
LEN_BITS: Final = 86
LEN_LOG: Final = 87
STATE: Final = 96

CHUNK: Final = 16  # page numbers in a chunk: a cache line, a reclaim batch
BATCH: Final = 64  # room of one round

# Virtual time of one replay.
CLOCK: Final = 0  # ns
DEADLINE: Final = 1
ACCESS_NS: Final = 2  # between one access and the next
FAULT_NS: Final = 3  # exit, handler and resume, per handler call
LOAD_NS: Final = 4
EVICT_NS: Final = 5
AUGMENT_NS: Final = 6
BATCH_NS: Final = 7  # tracking of one batch of 16
AWAY: Final = 8  # share of background eviction that the faulter pays
STALL_NS: Final = 9  # out: time lost to paging
BEHIND_NS: Final = 10  # out: time of background eviction (another core's)
TIMES: Final = 16

# One row per thread of a simulation.
TH_BASE: Final = 0  # number of its enclave's first page
TH_PAGES: Final = 1  # address of its next accesses
TH_AT: Final = 2  # the next of them
TH_STOP: Final = 3  # how many there are
TH_TIMES: Final = 4  # address of its times
TH_GONE: Final = 5  # it has ended
THREAD_COLUMNS: Final = 8

# Operations that Python asks the kernel for.
REPLAY: Final = 0
SETTLE: Final = 1
CREATE: Final = 2
ADD_PAGES: Final = 3
RELEASE: Final = 4
PURGE: Final = 5
SETTLE_GROUP: Final = 6
QUEUE_WORK: Final = 7
FAULT_VEPC: Final = 8
FILL_VEPC: Final = 9
UNCHARGE: Final = 10
REMOVE_PAGES: Final = 11
RUN_THREADS: Final = 12
