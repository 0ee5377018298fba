"""Genie on footage: a moving square and MinAtar Breakout, whose actions it is to find out.

Expected: see docs/systems/genie.md.
Time:     an hour on two cores.
Command:  jaxwm record --random --env probe/Square --episodes 2000 --out recordings/square
          jaxwm record --random --env minatar/Breakout --episodes 2000 --out recordings/breakout
          make sweep EXPERIMENT=experiments/genie.py

The scores of each seed are in evaluation.json: whether a code tells which button was pressed (information, button
accuracy), whether actions matter to dreams (delta psnr against random codes, those of another window, and one code for
all) and how good dreams are (psnr, skill, token accuracy). The runs with one code and with the game's own actions show
what latent actions are worth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxwm import Plan, agents

RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Square": ("nano", "square", {}),
    "Square-one-code": ("nano", "square", {"action_codes": 1}),
    "Square-true-actions": ("nano", "square", {"actions": "true"}),
    "Breakout": ("micro", "breakout", {}),
}
"""Name of a run -> preset, recording, settings that differ."""
ENVS = {"square": "probe/Square", "breakout": "minatar/Breakout"}


def runs(seeds: int = 3, updates: int = 8000, recordings: str = "recordings") -> dict[str, Plan]:
    """Genie on recordings.

    Args:
        seeds: Members of each population.
        updates: Updates of each member, of all parts together.
        recordings: Folder with the recordings `square` and `breakout`.
    """

    def plan(preset: str, recording: str, options: dict[str, Any]) -> Plan:
        place = str((Path(recordings) / recording).resolve())
        settings = agents.settings("genie", preset, **options)
        return Plan("genie", ENVS[recording], settings, None, seeds, data=place, updates=updates)

    return {name: plan(*about) for name, about in RUNS.items()}
