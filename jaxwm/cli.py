"""The command line: `jaxwm list | train | resume | eval | report | sweep`.

Every setting of an agent is a flag of `jaxwm train AGENT`; `jaxwm train AGENT --help` explains them.
"""

from __future__ import annotations

import ast
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

ERRORS = (ValueError, FileNotFoundError, FileExistsError, PermissionError, ImportError)
"""Errors whose message is meant for the user; anything else is a bug and keeps its traceback."""

USAGE = """jaxwm: world-model reinforcement learning in JAX

  jaxwm list                     agents, presets and environments
  jaxwm train AGENT [--help]     train a population, evaluate it, keep everything in a run directory
  jaxwm resume RUN               go on with a run that was stopped
  jaxwm eval RUN [--help]        score a run's newest checkpoint beside a random policy
  jaxwm report RUN...            a page with figures and tables about runs, side by side
  jaxwm sweep FILE [--help]      run all of an experiment file that is not finished yet

Start with: jaxwm train dreamer-v3
"""

C = TypeVar("C")


@dataclass(frozen=True)
class TrainOptions(Generic[C]):
    """Train an agent. Results go to a run directory of plain files: config.json, metrics.jsonl, scores.jsonl,
    evaluation.json and checkpoints/."""

    settings: Annotated[C, tyro.conf.OmitArgPrefixes]
    """Settings of the agent; the preset gives their defaults."""
    env: str = "gymnax/Catch-bsuite"
    """Environment, SUITE/TASK; `jaxwm list` shows all."""
    preset: str = ""
    """Preset of the agent; the other flags change single settings of it."""
    members: int = 3
    """Agents trained at once, with seeds of their own."""
    steps: int = 6000
    """Environment steps of each member."""
    seed: int = 0
    """Seed of the whole population."""
    run: Path | None = None
    """Run directory (default: runs/AGENT-TASK-TIME)."""
    episodes: int = 100
    """Episodes of the evaluation at the end."""
    env_option: tuple[str, ...] = ()
    """Options of the environment as NAME=VALUE."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; one more is written at the end."""
    keep: int = 2
    """Checkpoints that are kept."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard as well."""


@dataclass(frozen=True)
class EvalOptions:
    """Score the newest checkpoint of a run, beside a random policy."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    episodes: int = 100
    """Episodes of each member."""
    seed: int = 1
    """Seed of the evaluation's environments."""
    mode: str = "greedy"
    """Policy: greedy or explore."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status (0 fine, 1 stopped by a signal, 2 bad input)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    commands = {"list": _list, "train": _train, "resume": _resume, "eval": _eval, "report": _report, "sweep": _sweep}
    if command in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if command not in commands:
        return _fail(f"unknown command {command!r}; there are {', '.join(commands)} (see jaxwm --help)")
    use_compilation_cache()
    return guarded(lambda: commands[command](rest))


def guarded(action: Callable[[], int]) -> int:
    """Run `action`; bad input becomes one line on stderr and status 2, unless JAXWM_TRACEBACK is set."""
    try:
        return action()
    except ERRORS as error:
        if os.environ.get("JAXWM_TRACEBACK"):
            raise
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted; what was written since the last checkpoint is written again by jaxwm resume", 1)


def _fail(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def use_compilation_cache() -> None:
    """Programs compiled once are kept on disk, unless JAX_COMPILATION_CACHE_DIR says where (or, empty, that not)."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxwm" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_cores(members: int) -> None:
    """On a CPU, give members devices of their own, so that a population uses all cores. Call before JAX starts."""
    import jax

    cores = os.cpu_count() or 1
    count = members if members <= 2 * cores else max(n for n in range(1, cores + 1) if members % n == 0)
    with contextlib.suppress(RuntimeError):  # JAX runs already, in a test or a notebook: leave it as it is
        jax.config.update("jax_num_cpu_devices", count)


def _list(_: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from jaxwm import agents, envs

    console, table = Console(), Table("agent", "presets", "what it is")
    for name, entry in agents.AGENTS.items():
        table.add_row(name, ", ".join(entry.presets), entry.summary)
    console.print(table)
    suites = Table("suite", "number", "environments")
    for suite, tasks in envs.names().items():
        suites.add_row(suite, str(len(tasks)), ", ".join(tasks))
    console.print(suites)
    return 0


def _flag(arguments: list[str], name: str) -> str | None:
    """The value of `--name VALUE` or `--name=VALUE`, read before the real parser knows the agent's settings."""
    for i, argument in enumerate(arguments):
        if argument == f"--{name}" and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"--{name}="):
            return argument.split("=", 1)[1]
    return None


def _train(arguments: list[str]) -> int:
    from jaxwm import agents
    from jaxwm.training import run, rundir

    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"which agent? jaxwm train AGENT, with AGENT one of {', '.join(agents.AGENTS)}")
    name, rest = arguments[0], arguments[1:]
    entry = agents.find(name)
    preset = _flag(rest, "preset") or entry.default
    default = TrainOptions(settings=agents.settings(name, preset), preset=preset)
    options: Any = tyro.cli(
        TrainOptions[entry.config],  # type: ignore[name-defined]
        args=rest,
        default=default,
        prog=f"jaxwm train {name}",
    )
    use_cores(max(1, options.members))
    plan = run.Plan(
        name,
        options.env,
        options.settings,
        options.steps,
        options.members,
        options.seed,
        options.episodes,
        dict(map(_option, options.env_option)),
        options.checkpoint_minutes,
        options.keep,
        options.tensorboard,
    )
    folder = options.run or rundir.default_path(name, options.env)
    result = run.train(plan, folder)
    print(f"\nrun directory: {folder}\n\nnext:\n" + _next_commands(folder) if result else "")
    return 0 if result else 1


def _next_commands(folder: Path) -> str:
    commands = {
        f"jaxwm eval {folder}": "score the checkpoint again",
        "jaxwm train dreamer-v3 --env minatar/Breakout --help": "another environment, every setting",
        "jaxwm list": "all agents and environments",
    }
    width = max(map(len, commands))
    return "\n".join(f"  {command:<{width}}  {what}" for command, what in commands.items())


def _option(text: str) -> tuple[str, Any]:
    """`name=value` with Python's literals; anything else is a string."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--env-option wants NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _resume(arguments: list[str]) -> int:
    from jaxwm.training import run, rundir

    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: jaxwm resume RUN\n\nGo on with a run that was stopped, from its newest checkpoint.")
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    folder = Path(arguments[0])
    use_cores(run.Plan.from_json(rundir.read_config(folder)).members)  # as when it started: the same bits
    return 0 if run.resume(folder) else 1


def _eval(arguments: list[str]) -> int:
    from rich.console import Console

    from jaxwm.training import run

    options = tyro.cli(EvalOptions, args=arguments, prog="jaxwm eval")
    if options.mode not in ("greedy", "explore"):
        raise ValueError(f"--mode is greedy or explore, not {options.mode!r}")
    if options.episodes < 1:
        raise ValueError(f"--episodes must be at least 1, got {options.episodes}")
    plan, agent, state, steps = run.load(options.run)
    trained = run.score(plan, agent, state, options.episodes, options.mode, options.seed)
    chance = run.score(plan, agent, state, options.episodes, "random", options.seed)
    Console().print(run.table(replace(plan, seed=options.seed), trained, chance, steps))
    return 0


@dataclass(frozen=True)
class ReportOptions:
    """Write report.md about runs: learning curves, losses, evaluations, throughput, settings and what differs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, or directories that contain some, such as the root of a sweep."""
    out: Path | None = None
    """Where to write (default: RUN/report for one run, report-TIME for several)."""


def _report(arguments: list[str]) -> int:
    from jaxwm.studio.report import report

    options = tyro.cli(ReportOptions, args=arguments, prog="jaxwm report")
    print(report(options.runs, options.out))
    return 0


@dataclass(frozen=True)
class SweepOptions:
    """Run every run of an experiment file, one after another. Finished ones are skipped, stopped ones resumed."""

    file: tyro.conf.Positional[Path]
    """Python file that defines runs() -> {name: Plan}; see experiments/."""
    root: Path | None = None
    """Where the runs go (default: runs/ and the file's name)."""


def _sweep(arguments: list[str]) -> int:
    from jaxwm.training import sweep

    options = tyro.cli(SweepOptions, args=arguments, prog="jaxwm sweep")
    plans = sweep.load(options.file).runs()
    use_cores(max(plan.members for plan in plans.values()))
    return 0 if sweep.sweep(plans, options.root or Path("runs") / options.file.stem) else 1


if __name__ == "__main__":
    sys.exit(main())
