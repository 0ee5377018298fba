"""Sweeps: the runs of an experiment file, on every device that there is.

An experiment file defines `runs(...) -> dict[str, Plan]`; its keyword arguments, with defaults, become flags of
`jaxwm sweep FILE`. A task is one run: one compiled population. One that is finished is skipped and one that was stopped
is resumed, so the same command goes on after any interruption. With Ray, tasks run side by side, one a device, on this
machine or on a cluster (see `jaxwm.run.cluster`); without it one after another in this process."""

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxwm.run import directory, session
from jaxwm.run.load import import_file
from jaxwm.run.plan import Plan, read_plan

LOGS = "logs"  # below the sweep's directory: what each task printed, when it did so in a process of its own


@dataclass
class Outcome:
    """What became of a sweep: evaluations and messages of failed tasks by name. `stopped` before all were done."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


def load(file: Path) -> Any:
    """The module of an experiment file. FileNotFoundError or ValueError where it is none."""
    if not file.is_file():
        raise FileNotFoundError(f"no experiment {file}: give a Python file that defines runs(), see experiments/")
    if file.suffix != ".py":
        raise ValueError(f"{file} is no Python file: give one that defines runs(), see experiments/")
    try:
        module = import_file(file, f"jaxwm_sweep_{file.stem}")
    except Exception as error:
        raise ValueError(f"cannot load {_place(file, error)}") from error
    if not callable(getattr(module, "runs", None)):
        raise ValueError(f"{file} is no experiment: it must define runs() -> dict[str, jaxwm.Plan]")
    return module


def plans(file: Path, call: Callable[[Callable[..., Any]], Any] = lambda runs: runs()) -> dict[str, Plan]:
    """What an experiment file wants to run; `call` calls its `runs`, with arguments perhaps. Errors as in `load`."""
    module = load(file)
    try:
        found = call(module.runs)
    except Exception as error:
        raise ValueError(f"runs() of {_place(file, error)}") from error
    if not isinstance(found, dict) or not all(isinstance(plan, Plan) for plan in found.values()):
        raise ValueError(f"runs() of {file} must return a dict {{name: jaxwm.Plan}}, not {found!r:.80}")
    if not found:
        raise ValueError(f"runs() of {file} returned no run: there is nothing to do")
    for name in found:
        if not isinstance(name, str) or Path(name).name != name or name.startswith(".") or name == LOGS:
            raise ValueError(f"runs() of {file}: {name!r} cannot be the name of a run directory")
    return found


def default_root(file: Path) -> Path:
    """Where the runs of an experiment file go unless `--root` says otherwise."""
    return Path("runs") / file.stem


def _place(file: Path, error: Exception) -> str:
    """`file, line 3: NameError: ...`: the last line of the file that took part in an error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == file.absolute()]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = error.msg if isinstance(error, SyntaxError) else error
    return f"{file}{f', line {line}' if line else ''}: {type(error).__name__}: {text}"


def check(plans: dict[str, Plan], root: Path) -> None:
    """ValueError where `root` holds a run of another plan, whose score would pass for that of one of these."""
    for name, plan in plans.items():
        if not (root / name / directory.CONFIG).exists():
            continue
        there, here = (json.loads(json.dumps(asdict(p))) for p in (read_plan(root / name), plan))  # tuples are lists
        there, here = there | there.pop("settings"), here | here.pop("settings")
        if changed := [f"{key}: {there[key]} there, {here[key]} now" for key in here if there[key] != here[key]]:
            text = f"{root / name} was made by another plan ({'; '.join(changed[:3])})"
            raise ValueError(f"{text}: choose another --root, or delete it")


def outcome(folder: Path) -> dict[str, Any]:
    """The evaluation of a finished run, {} for any other."""
    file = folder / directory.EVALUATION
    return json.loads(file.read_text()) if file.exists() else {}


def perform(plan: Plan, folder: Path, console: Console) -> dict[str, Any]:
    """Do a task from wherever it stands; its evaluation, {} where a signal stopped it."""
    if found := outcome(folder):
        return found
    begun = (folder / directory.CONFIG).exists()
    return session.resume(folder, console) if begun else session.train(plan, folder, console)


def message(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def one_by_one(plans: dict[str, Plan], root: Path, retries: int, console: Console) -> Outcome:
    """The tasks in this process, one after another. A task that fails is tried again at once, up to `retries` times;
    bad input (ValueError, a missing file or package) is not, as it would fail again."""
    out = Outcome()
    for i, (name, plan) in enumerate(plans.items()):
        console.rule(f"{escape(name)} ({i + 1} of {len(plans)})")
        for _ in range(retries + 1):
            try:
                found = perform(plan, root / name, console)
            except Exception as error:
                out.failures[name] = message(error)
                console.print(f"{escape(name)} failed: {escape(out.failures[name])}", style="red")
                if not worth_retrying(error):
                    break
            else:
                out.failures.pop(name, None)
                if not found:
                    out.stopped = True
                    return out
                out.results[name] = found
                console.print(f"{escape(name)}: {summary(found)}")
                break
    return out


def worth_retrying(error: BaseException) -> bool:
    """Whether a task may succeed when it is tried again. What the user has to mend first fails the same way again."""
    return not isinstance(error, ValueError | ImportError | FileNotFoundError | PermissionError | TypeError)


def sweep(
    plans: dict[str, Plan], root: Path, retries: int = 2, console: Console | None = None,
    runner: Callable[[dict[str, Plan], Path, int, Console], Outcome] = one_by_one,
) -> Outcome:  # fmt: skip
    """Run what is not finished yet and print the table; `runner` is `one_by_one` or a part of `cluster.on_ray`.
    ValueError where a directory holds a run of another plan or a task wants more than there is, BlockingIOError where
    another sweep is working in `root`, ConnectionError where no cluster answers."""
    console = console or Console()
    check(plans, root)
    root.mkdir(parents=True, exist_ok=True)
    with directory.lock(root, "sweep", wait=session.LOCK_SECONDS):
        out = runner(plans, root, retries, console)
    console.print(table(plans, out))
    for name, why in out.failures.items():
        console.print(f"{escape(name)} failed: {escape(why)}", style="red")
    if out.stopped or out.failures:
        console.print("the same command goes on from here")
    return out


def named_scores(result: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """The named scores of an evaluation. Before they had names there were returns alone."""
    return result.get("scores", {"return": {who: result[who] for who in ("trained", "random") if who in result}})


def summary(result: dict[str, Any]) -> str:
    """The first score of the members, in one line."""
    name, scores = next(iter(named_scores(result).items()), ("", {"trained": []}))
    returns = " ".join([name, *(f"{value:.2f}" for value in scores["trained"])])
    where = f"{result['env_steps']:,} steps" if "env_steps" in result else f"{result['updates']:,} updates"
    return f"{returns} after {where}"


def table(plans: dict[str, Plan], out: Outcome) -> Table:
    """A row for each task and score: mean over members, their minimum, and the random policy; or why it failed."""
    rows = Table("run", "task", "score", "members", "mean", "minimum", "random", "minutes")
    for name, plan in plans.items():
        first = (escape(name), escape(plan.task))
        for score, found in named_scores(out.results[name]).items() if name in out.results else ():
            numbers = [np.mean(found["trained"]), min(found["trained"])]
            numbers += [np.mean(found["random"])] if "random" in found else []
            texts = [f"{x:.2f}" for x in numbers] + [""] * (3 - len(numbers))
            rows.add_row(*first, score, str(plan.members), *texts, f"{out.results[name]['seconds'] / 60:.2f}")
        if name in out.failures:
            rows.add_row(*first, "", str(plan.members), "failed", "", "", "", style="red")
    return rows
