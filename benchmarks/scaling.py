"""How update time grows: with members, and with batch, length, horizon and members in turn."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.ours import Program, make, seconds
from jaxwm.run.cost import human

BASE = dict(batch=8, length=16, horizon=8, members=1)
"""Where growth starts, on setting a."""
DOUBLINGS = 2
"""Between the two sizes of each; measured together, as every size takes the compiler longer than the update."""


def _measure(preset: str, members: int, repeats: int, **changes: Any) -> dict[str, Any]:
    """Updates of a population on setting a: seconds, FLOPs and scratch of one of the whole population."""
    program = Program(*make("a", preset, **changes), members)
    times = seconds(program, repeats)
    gc.collect()
    return dict(members=members, seconds=times, flops=program.flops, scratch_bytes=program.scratch)


def members(numbers: tuple[int, ...], preset: str, dtype: str, repeats: int) -> list[dict[str, Any]]:
    """One measurement for each number of members, at the preset's own batch."""
    return [_measure(preset, number, repeats, dtype=dtype) for number in numbers]


def members_table(preset: str, results: list[dict[str, Any]]) -> Table:
    title = f"One update of every member, preset {preset}: median (min..max)"
    table = Table("members", "time", "updates/s of all", "against the first row", "FLOP/s", "scratch", title=title)
    rates = [r["members"] / float(np.median(r["seconds"])) for r in results]
    for r, rate in zip(results, rates, strict=True):
        speed = human(r["flops"] / float(np.median(r["seconds"])), "FLOP/s")
        scratch = human(r["scratch_bytes"], "B")
        table.add_row(str(r["members"]), spread(r["seconds"]), f"{rate:.1f}", f"{rate / rates[0]:.2f}", speed, scratch)
    return table


def growth(preset: str, dtype: str, repeats: int) -> list[dict[str, Any]]:
    """Batch, length, horizon and members at `BASE` and doubled twice, the others held at `BASE`."""
    results, base = [], None
    for name, first in BASE.items():
        for factor in (1, 2**DOUBLINGS):
            if factor == 1 and base:
                results.append(base | dict(name=name, value=first))
                continue
            sizes = BASE | {name: factor * first}
            changes = dict(batch_size=sizes["batch"], batch_length=sizes["length"], imag_length=sizes["horizon"])
            measured = _measure(preset, sizes["members"], repeats, dtype=dtype, **changes)
            base = base or measured
            results.append(measured | dict(name=name, value=sizes[name]))
    return results


def growth_table(preset: str, results: list[dict[str, Any]]) -> Table:
    base = ", ".join(f"{name} {value}" for name, value in BASE.items())
    title = f"Growth of one update, preset {preset}, from {base}: median (min..max)"
    table = Table("what", "value", "time", "a doubling", "FLOPs a doubling", title=title)
    for before, now in zip([None, *results], results, strict=False):
        cells = [now["name"], str(now["value"]), spread(now["seconds"])]
        if before and before["name"] == now["name"]:
            factors = np.median(now["seconds"]) / np.median(before["seconds"]), now["flops"] / before["flops"]
            cells += [f"x {factor ** (1 / DOUBLINGS):.2f}" for factor in factors]
        table.add_row(*cells, end_section=now["value"] > BASE[now["name"]])
    return table


def spread(times: list[float]) -> str:
    """Seconds as "12.3 ms (12.0..13.1)"."""
    middle, least, most = (1000 * float(f(times)) for f in (np.median, min, max))
    digits = 0 if middle >= 1000 else 1 if middle >= 10 else 2
    return f"{middle:,.{digits}f} ms ({least:,.{digits}f}..{most:,.{digits}f})"
