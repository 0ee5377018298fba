"""Sweeps: many runs from one Python file, one after another in this process.

An experiment file defines `runs(**options) -> dict[str, Plan]`. A run that is finished is skipped, one that was stopped
is resumed, so the same command goes on after any interruption.
"""

from __future__ import annotations

import importlib.util
import json
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxwm.training import run, rundir


def plans(file: Path) -> dict[str, run.Plan]:
    """What an experiment file wants to run. FileNotFoundError or ValueError where it is none."""
    module = load(file)
    try:
        found = module.runs()
    except Exception as error:
        raise ValueError(f"runs() of {_place(file, error)}") from error
    if not isinstance(found, dict) or not all(isinstance(plan, run.Plan) for plan in found.values()):
        raise ValueError(f"runs() of {file} must return a dict {{name: jaxwm.training.run.Plan}}, not {found!r:.80}")
    if not found:
        raise ValueError(f"runs() of {file} returned no run: there is nothing to do")
    for name in found:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"runs() of {file}: {name!r} cannot be the name of a run directory")
    return found


def _place(file: Path, error: Exception) -> str:
    """`file, line 3: NameError: ...`: the last line of the file that took part in an error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == file.absolute()]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = error.msg if isinstance(error, SyntaxError) else error
    return f"{file}{f', line {line}' if line else ''}: {type(error).__name__}: {text}"


def load(file: Path) -> Any:
    """The module of an experiment file. FileNotFoundError or ValueError where it is none."""
    if not file.is_file():
        raise FileNotFoundError(f"no experiment {file}: give a Python file that defines runs(), see experiments/")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if not spec or not spec.loader:
        raise ValueError(f"{file} is no Python file: give one that defines runs(), see experiments/")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"cannot load {_place(file, error)}") from error
    if not callable(getattr(module, "runs", None)):
        raise ValueError(f"{file} is no experiment: it must define runs() -> dict[str, jaxwm.training.run.Plan]")
    return module


def sweep(plans: dict[str, run.Plan], root: Path, console: Console | None = None) -> dict[str, dict[str, Any]]:
    """Run what is not finished yet; the evaluations by name. Stops early, resumably, when a run is interrupted."""
    console, results = console or Console(), {}
    for name, plan in plans.items():
        _check_same(plan, root / name)
    for i, (name, plan) in enumerate(plans.items()):
        folder = root / name
        console.rule(f"{name} ({i + 1} of {len(plans)})")
        results[name] = outcome(folder) or _run(plan, folder, console)
        if not results[name]:
            console.print("stopped; the same command goes on from here")
            return {}
        console.print(f"{name}: {_summary(results[name])}")
    console.print(table(plans, results))
    return results


def _check_same(plan: run.Plan, folder: Path) -> None:
    """ValueError where `folder` holds a run of another plan, whose score would pass for that of this one."""
    if not (folder / rundir.CONFIG).exists():
        return
    there, here = asdict(run.read_plan(folder)), json.loads(json.dumps(asdict(plan)))  # tuples become lists
    there, here = there | there.pop("settings"), here | here.pop("settings")
    if changed := [f"{name}: {there[name]} there, {here[name]} now" for name in here if there[name] != here[name]]:
        raise ValueError(
            f"{folder} was made by another plan ({'; '.join(changed[:3])}): choose another --root, or delete it"
        )


def outcome(folder: Path) -> dict[str, Any]:
    """The evaluation of a finished run, {} for any other."""
    file = folder / run.EVALUATION
    return json.loads(file.read_text()) if file.exists() else {}


def _run(plan: run.Plan, folder: Path, console: Console) -> dict[str, Any]:
    if (folder / rundir.CONFIG).exists():
        return run.resume(folder, console)
    return run.train(plan, folder, console)


def _summary(result: dict[str, Any]) -> str:
    returns = " ".join(f"{value:.2f}" for value in result["trained"])
    return f"{returns} after {result['env_steps']:,} steps"


def table(plans: dict[str, run.Plan], results: dict[str, dict[str, Any]]) -> Table:
    """A row for each run: mean over members, their minimum, and the random policy."""
    out = Table("run", "environment", "members", "mean", "minimum", "random", "minutes")
    for name, result in results.items():
        scores = result["trained"]
        numbers = (sum(scores) / len(scores), min(scores), sum(result["random"]) / len(scores), result["seconds"] / 60)
        out.add_row(name, plans[name].env, str(len(scores)), *(f"{x:.2f}" for x in numbers))
    return out
