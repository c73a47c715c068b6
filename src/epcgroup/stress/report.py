"""What `epcgroup stress` says at the end: a few aligned lines, or JSON."""

from __future__ import annotations

import json
from typing import Any

from epcgroup.stress.image import Image
from epcgroup.stress.load import Outcome, Plan
from epcgroup.units import PAGE_SIZE, format_size


def to_json(image: Image, plan: Plan, outcome: Outcome, load_seconds: float) -> str:
    """One JSON object. Times in seconds, sizes in bytes, samples as [monotonic clock, touches]."""
    facts: dict[str, Any] = {
        "mrenclave": image.measure().hex(),
        "heap": image.heap_pages * PAGE_SIZE,
        "pages": image.heap_pages,
        "threads": image.threads,
        "pattern": plan.pattern,
        "seed": plan.seed,
        "load_seconds": round(load_seconds, 6),
        "fill_seconds": round(outcome.fill_seconds, 6),
        "started": outcome.started,
        "seconds": round(outcome.seconds, 6),
        "touches": outcome.touches,
        "touched_pages": plan.touched(image),
        "passes": round(outcome.touches / plan.touched(image), 3),
        "pages_per_second": round(_per_second(outcome), 1),
        "checked": outcome.checked,
        "mismatches": outcome.mismatches,
        "first_mismatches": [
            {"page": bad.page, "word": bad.word, "says": str(bad)} for bad in outcome.described
        ],
        "interrupted": outcome.interrupted,
        "error": None if outcome.error is None else message(outcome.error),
        "samples": [[round(at, 3), touches] for at, touches in outcome.samples],
    }
    return json.dumps(facts)


def to_text(image: Image, plan: Plan, outcome: Outcome, load_seconds: float) -> str:
    """Aligned lines for a person."""
    heap = format_size(image.heap_pages * PAGE_SIZE)
    threads = "1 thread" if image.threads == 1 else f"{image.threads} threads"
    pages = plan.touched(image)
    rows = [
        ("enclave", f"{heap} heap ({image.heap_pages} pages), {threads}, pattern {plan.pattern}"),
        ("loaded", f"in {load_seconds:.2f} s, heap filled in {outcome.fill_seconds:.2f} s"),
        ("touched", f"{outcome.touches} pages in {outcome.seconds:.2f} s: {_speed(pages, outcome)}"),
        ("verified", _verdict(pages, outcome)),
    ]
    rows += [("", str(bad)) for bad in outcome.described]
    if outcome.mismatches > len(outcome.described):
        rows.append(("", f"… {outcome.mismatches} in all"))
    if outcome.error is not None:
        rows.append(("lost", message(outcome.error)))
    return "\n".join(f"{name:<9} {text}" for name, text in rows)


def message(error: Exception) -> str:
    """The text of ``error`` without the errno in brackets that OSError prints."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _per_second(outcome: Outcome) -> float:
    return outcome.touches / outcome.seconds if outcome.seconds > 0 else 0.0


def _speed(pages: int, outcome: Outcome) -> str:
    passes = outcome.touches / pages
    end = ", interrupted" if outcome.interrupted else ""
    return f"{_per_second(outcome):,.0f} pages/s, {passes:.1f} passes{end}"


def _verdict(pages: int, outcome: Outcome) -> str:
    if outcome.mismatches:
        wrong = "page" if outcome.mismatches == 1 else "pages"
        return f"FAILED: {outcome.mismatches} {wrong} did not hold what was written"
    if outcome.checked < pages:
        return f"every touch; of the final check only {outcome.checked} of {pages} pages"
    return f"every touch, and all {pages} pages at the end"
