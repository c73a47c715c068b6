"""Random scripts of operations, and two engines that follow the same script."""

from __future__ import annotations

import random
from collections.abc import Iterator

from epcgroup.conform.compiled_replay import CompiledReplay
from epcgroup.conform.epc_replay import EpcReplay
from epcgroup.epc import Policy


def tree(chance: random.Random, groups: int, depth: int) -> list[str]:
    """Paths of ``groups`` cgroups, at most ``depth`` levels deep, parents first."""
    paths: list[str] = []
    while len(paths) < groups:
        above = chance.choice(["", *paths])
        if above.count("/") < depth:
            paths.append(f"{above}/g{len(paths)}")
    return paths


def script(
    chance: random.Random, *, groups: int = 6, epc: int = 128, steps: int = 60, size: int = 64
) -> Iterator[str]:
    """Operations of a small data centre in which everything happens: births, moves, limits, deaths."""
    paths = tree(chance, groups, 4)
    for path in paths:
        yield f"mkcg {path}"
        if chance.random() < 0.4:
            limit = chance.choice((6, 12, 20, 33, 40, 90, 140, epc)) * 4096 + chance.choice((0, 77))
            yield f"max {path} {limit}"
    processes: dict[int, str] = {}
    enclaves: dict[int, int] = {}
    added: dict[int, int] = {}
    guests: dict[int, int] = {}
    for names in range(1, steps + 1):
        kind = chance.choices(
            ("touch", "spawn", "encl", "max", "move", "close", "exit", "rmcg", "guest", "mkcg", "remove"),
            (40, 6, 8, 6, 3, 3, 2, 2, 2, 2, 5),
        )[0]
        if kind == "touch" and enclaves:
            name = chance.choice(list(enclaves))
            reach = max(enclaves[name] if chance.random() < 0.1 else added[name], 1)
            pages = [chance.randrange(reach) for _ in range(chance.randint(1, 24))]
            if chance.random() < 0.3:
                first = chance.randrange(reach)
                yield f"touch {name} {first}-{min(first + 20, reach - 1)}"
            else:
                yield f"touch {name} {' '.join(map(str, pages))}"
        elif kind == "spawn" or not processes:
            processes[names] = chance.choice(["/", *paths])
            yield f"proc {names} {processes[names]}"
        elif kind == "encl":
            process = chance.choice(list(processes))
            enclaves[names] = chance.randint(1, size)
            yield f"encl {names} {process} {enclaves[names]}"
            added[names] = chance.randint(0, enclaves[names])
            yield f"{chance.choice(('add', 'addb'))} {names} 0 {added[names]}"
            if chance.random() < 0.2:  # some of these exist, some are outside
                first = chance.randrange(enclaves[names])
                yield f"{chance.choice(('add', 'addb'))} {names} {first} {chance.randint(1, size)}"
            if chance.random() < 0.8:
                yield f"init {names}"
        elif kind == "max":
            limit = chance.choice((0, 3, 8, 20, 33, 34, 60, 128, 129, 200, None))
            yield f"max {chance.choice(['/', *paths])} {'max' if limit is None else limit * 4096}"
        elif kind == "move":
            yield f"move {chance.choice(list(processes))} {chance.choice(['/', *paths])}"
        elif kind == "remove" and enclaves:
            name = chance.choice(list(enclaves))
            first = chance.randrange(enclaves[name])
            yield f"remove {name} {first} {chance.randint(1, enclaves[name] - first)}"
        elif kind == "close" and enclaves:
            name = chance.choice(list(enclaves))
            del enclaves[name]
            yield f"close {name}"
        elif kind == "exit":
            name = chance.choice(list(processes))
            del processes[name]
            yield f"exit {name}"
        elif kind == "rmcg":
            yield f"rmcg {chance.choice(paths)}"
        elif kind == "mkcg":
            yield f"mkcg {chance.choice(paths)}"
        elif kind == "guest":
            guests[names] = chance.choice(list(processes))
            yield f"vepc {names} {guests[names]} 40"
            yield f"vtouch {names} 0-{chance.randint(0, 39)}"


def both(policy: Policy, epc: int, *, sgx2: bool = False) -> tuple[EpcReplay, CompiledReplay]:
    """The reference engine and the compiled one, on equal machines."""
    return EpcReplay(policy, epc, sgx2), CompiledReplay(policy, epc, sgx2)
