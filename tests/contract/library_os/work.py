"""What CPython has to do: once inside an enclave, once outside. Argument: a file to write."""

import hashlib
import json
import re
import sys
import threading
from pathlib import Path

words = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(1500)]
words.sort(key=lambda word: word[::-1])
text = json.dumps({"words": words})
Path(sys.argv[1]).write_text(text)
assert json.loads(Path(sys.argv[1]).read_text())["words"] == words
sums = []


def work(factor: int) -> None:
    """Some computing, and memory of its own."""
    sums.append(sum(len(str([factor * i] * 3)) for i in range(1500)))


threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sys.version)
print(hashlib.sha256(text.encode()).hexdigest(), len(re.findall("a.c", text)), sorted(sums))
print(f"{2**0.5:.12f} {sys.float_info.epsilon} {float('1e-300') * 3}")
