"""The command line: `jaxwm list | train | resume | eval | dream | watch | play | report | export | sweep`.

Every setting of an agent is a flag of `jaxwm train AGENT`; `jaxwm train AGENT --help` explains them.
"""

from __future__ import annotations

import ast
import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from jaxwm.errors import check_choice, check_number, suggest
from jaxwm.report import lineage
from jaxwm.run import cluster, cost, directory, load, machine, session, sweep
from jaxwm.run.machine import use_compilation_cache, use_cores
from jaxwm.run.plan import Plan, read_plan
from jaxwm.training import processes
from jaxwm.training.host import EnvironmentDied

ERRORS = (ValueError, OSError, ImportError, EnvironmentDied)
"""Errors whose message is meant for the user; anything else is a bug and keeps its traceback."""

USAGE = """jaxwm: world-model reinforcement learning in JAX

  jaxwm list [AGENT]             agents, presets and environments; how one agent sees, predicts, acts, and its order
  jaxwm train AGENT [--help]     train a population, evaluate it, keep everything in a run directory
  jaxwm resume RUN               go on with a run that was stopped
  jaxwm eval RUN [--help]        score a run's newest checkpoint beside a random policy
  jaxwm dream RUN [--help]       what its world model dreams beside what happens: video, plots, error by horizon
  jaxwm watch RUN [--help]       a video of its policy
  jaxwm play RUN [--help]        a board game against it, in the terminal
  jaxwm report RUN...            a page with figures and tables about runs, side by side, or about an experiment
  jaxwm export RUN [--help]      write a run's weights as one safetensors file
  jaxwm sweep FILE [--help]      run all of an experiment file that is not finished yet, on every device

Start with: jaxwm train dreamer-v3
"""

C = TypeVar("C")


@dataclass(frozen=True)
class Hosts:
    """Several processes in one run, each with some of the members; all must see the run directory."""

    coordinator: str | None = None
    """Where they meet: HOST:PORT of the first process (default: JAX_COORDINATOR_ADDRESS)."""
    processes: int | None = None
    """How many there are (default: JAX_NUM_PROCESSES)."""
    process: int | None = None
    """Which one this is, from 0 (default: JAX_PROCESS_ID)."""
    distributed: bool = False
    """Find all of this out from Slurm, Open MPI, Kubernetes or a TPU pod."""

    def join(self) -> int:
        """Meet the others, before JAX starts; how many processes there are."""
        pass

        return machine.join(self.coordinator, self.processes, self.process, self.distributed)


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
    score_option: tuple[str, ...] = ()
    """Options of the environment in which the policy is scored, where they differ, as NAME=VALUE."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; one more is written at the end."""
    keep: int = 2
    """Newest checkpoints that are kept; the one with the best training return stays as well."""
    gauge: int = 15
    """Steps over which dreamed returns are compared with real ones while training; 0 for not at all."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard as well."""
    shards: int = 1
    """Devices over which each member is spread: its batch, and the replay of its environments. For one large model."""
    vary: tuple[str, ...] = ()
    """Hyper-parameters that differ between members, as NAME=VALUE,VALUE,... (lr=1e-4,3e-4,1e-3 for three members)."""
    hosts: Annotated[Hosts, tyro.conf.OmitArgPrefixes] = Hosts()


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with a run that was stopped, from its newest checkpoint."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    hosts: Annotated[Hosts, tyro.conf.OmitArgPrefixes] = Hosts()


@dataclass(frozen=True)
class EvalOptions:
    """Score a checkpoint of a run, beside a random policy."""

    run: tyro.conf.Positional[Path]
    """Run directory, or a file written by jaxwm export."""
    checkpoint: str = "newest"
    """Checkpoint: newest, best (highest training return) or its environment step."""
    episodes: int = 100
    """Episodes of each member."""
    seed: int = 1
    """Seed of the evaluation's environments."""
    mode: str = "greedy"
    """Policy: greedy or explore."""
    score_option: tuple[str, ...] = ()
    """Options of the environment as NAME=VALUE, over those of the run (opponent=mcts, side=first, ...)."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status (0 fine, 1 stopped by a signal, 2 bad input)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    commands = {
        "list": _list,
        "train": _train,
        "resume": _resume,
        "eval": _eval,
        "dream": _dream,
        "watch": _watch,
        "play": _play,
        "report": _report,
        "export": _export,
        "sweep": _sweep,
    }
    if command in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if command not in commands:
        return _fail(f"unknown command {command!r}; {suggest(command, commands)} (see jaxwm --help)")
    use_compilation_cache()
    warnings.showwarning = _show_warning
    # a run first meets its other processes; the driver of a sweep leaves the devices to its tasks
    early = command not in ("train", "resume", "sweep")
    return guarded(lambda: (_check_device() if early else None) or commands[command](rest))


def guarded(action: Callable[[], int]) -> int:
    """Run `action`; bad input becomes one line on stderr and status 2, unless JAXWM_TRACEBACK is set."""
    try:
        return action()
    except ERRORS as error:
        if os.environ.get("JAXWM_TRACEBACK"):
            raise
        # str(OSError) of a message of our own starts with "[Errno 2]", which says nothing more
        return _fail(error.strerror if isinstance(error, OSError) and not error.filename and error.strerror else error)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or os.environ.get("JAXWM_TRACEBACK"):
            raise
        return _fail("out of memory: lower --capacity, --members, --envs or --batch-size, or take a smaller preset")
    except KeyboardInterrupt:
        return _fail("interrupted; a run with a checkpoint goes on with jaxwm resume RUN", 1)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Our own warnings as one line for people; those of libraries are for their developers."""
    if category is UserWarning:
        print(f"warning: {message}", file=sys.stderr)


def _check_device() -> None:
    """ValueError where JAX_PLATFORMS asks for an accelerator that is not there. A CPU is left for `use_cores`."""
    asked = os.environ.get("JAX_PLATFORMS", "cpu")
    if "cpu" in asked or not asked:
        return
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where not even JAX's plugin is installed
        raise ValueError(
            f"JAX finds no device for JAX_PLATFORMS={asked}: unset it or set it to cpu; for an NVIDIA GPU install "
            "jaxwm[cuda] and check that nvidia-smi lists it"
        ) from error


def _fail(message: object, status: int = 2) -> int:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return status


def _list(arguments: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from jaxwm import agents, envs

    pass

    if len(arguments) > 1:
        raise ValueError(f"jaxwm list takes the name of one agent or nothing, got {' '.join(arguments)}")
    if arguments and arguments[0] not in ("-h", "--help"):
        print(lineage.describe(arguments[0]))
        return 0
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

    pass

    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"which agent? jaxwm train AGENT, with AGENT one of {', '.join(agents.AGENTS)}")
    name, rest = arguments[0], arguments[1:]
    entry = agents.find(name)
    preset = _flag(rest, "preset") or entry.default
    default = TrainOptions(settings=agents.settings(name, preset), preset=preset, env=entry.env, steps=entry.steps)
    options: Any = tyro.cli(
        TrainOptions[entry.config],  # type: ignore[name-defined]
        args=rest,
        default=default,
        prog=f"jaxwm train {name}",
    )
    count = _start_jax(options.hosts, options.members, options.shards)
    plan = Plan(
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
        options.gauge,
        options.shards,
        dict(map(_values, options.vary)),
        dict(map(_option, options.score_option)),
    )
    folder = options.run or directory.default_path(name, options.env)
    if not options.run and count > 1:
        raise ValueError("several processes need --run DIR, the same for all of them")
    result = session.train(plan, folder)
    if result and processes.first():
        print(f"\nrun directory: {folder}\n\nnext:\n" + _next_commands(folder, options.env))
    return 0 if result else 1


def _values(text: str) -> tuple[str, list[float]]:
    """`name=1,2,3` as a name and numbers."""
    name, _, values = text.partition("=")
    try:
        return name, [float(value) for value in values.split(",")]
    except ValueError:
        raise ValueError(f"--vary wants NAME=NUMBER,NUMBER,... with one for each member, got {text!r}") from None


def _start_jax(meet: Hosts, members: int, shards: int) -> int:
    """Decide on devices and meet the other processes; how many there are."""
    pass

    count = max(1, machine.expected(meet.processes))
    use_cores(max(1, members // count), shards=max(1, shards) if count == 1 else 1)
    count = meet.join()
    _check_device()
    return count


def _next_commands(folder: Path, env: str) -> str:
    if env.startswith("pgx/"):
        look = {f"jaxwm play {folder}": "play against it"}
    else:
        dreams = {f"jaxwm dream {folder}": "see what the world model dreams"}
        look = dreams | {f"jaxwm watch {folder}": "see the policy play"}
    commands = {
        f"jaxwm eval {folder}": "score the checkpoint again",
        **look,
        f"jaxwm report {folder}": "curves, losses and the exploitation gauge as a page",
        "jaxwm train dreamer-v3 --env minatar/Breakout --help": "another environment, every setting",
        "jaxwm list": "all agents and environments",
    }
    width = max(map(len, commands))
    return "\n".join(f"  {command:<{width}}  {what}" for command, what in commands.items())


def _option(text: str) -> tuple[str, Any]:
    """`name=value` with Python's literals; anything else is a string."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"options of an environment are NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _resume(arguments: list[str]) -> int:
    pass

    if not arguments:
        raise ValueError("usage: jaxwm resume RUN, with a run directory; got nothing")
    options = tyro.cli(ResumeOptions, args=arguments, prog="jaxwm resume")
    plan = read_plan(options.run)
    _start_jax(options.hosts, plan.members, plan.shards)  # as when it started: the same bits
    return 0 if session.resume(options.run) else 1


def _eval(arguments: list[str]) -> int:
    from rich.console import Console

    pass

    options = tyro.cli(EvalOptions, args=arguments, prog="jaxwm eval")
    check_choice("--mode", options.mode, ("greedy", "explore"))
    check_number("--episodes", options.episodes, least=1, most=2**31 - 1, whole=True)
    check_number("--seed", options.seed, least=0, most=2**32 - 1, whole=True)
    plan, agent, state, steps = load.load(options.run, options.checkpoint)
    plan = replace(plan, score_options=plan.score_options | dict(map(_option, options.score_option)))
    trained = load.score(plan, agent, state, options.episodes, options.mode, options.seed)
    chance = load.score(plan, agent, state, options.episodes, "random", options.seed)
    Console().print(session.table(replace(plan, seed=options.seed), trained, chance, steps))
    return 0


@dataclass(frozen=True)
class ExportOptions:
    """Write the weights of all members, without optimiser and replay, as one safetensors file. jaxwm eval and
    jaxwm.load read it, and so does any other framework."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: Path | None = None
    """File to write (default: RUN/weights.safetensors)."""
    checkpoint: str = "newest"
    """Checkpoint: newest, best (highest training return) or its environment step."""


def _export(arguments: list[str]) -> int:
    pass

    options = tyro.cli(ExportOptions, args=arguments, prog="jaxwm export")
    file = options.out or options.run / "weights.safetensors"
    if options.out and (file.suffix != ".safetensors" or not file.parent.is_dir()):
        raise ValueError(f"--out wants FOLDER/NAME.safetensors in a folder that exists, got {file}")
    size = load.export_params(options.run, file, options.checkpoint)
    print(f"{file}: {cost.human(size, 'B')}\n\nnext:\n  jaxwm eval {file}")
    return 0


@dataclass(frozen=True)
class DreamOptions:
    """Show what the world model of a run dreams, beside what really happens.

    The exploring policy plays; the model sees some records of an episode and dreams on, open loop, under the same
    actions. Writes into RUN/dreams:

    dream.gif, dream.png   truth, dream and their difference (images, 0/1 planes, some drawn tasks)
    vector.png             truth and dream of every number that is observed
    reward.png             truth and dream of reward and continue flag
    error.png              error by horizon, beside two baselines: the last observation kept for ever, and the dream
                           under the actions of another sequence. A model that is no better than the first has learned
                           nothing about change, one that is no better than the second does not look at its actions.
    dreams.json            the numbers of error.png
    """

    run: tyro.conf.Positional[Path]
    """Run directory, or a file written by jaxwm export."""
    checkpoint: str = "newest"
    """Checkpoint: newest, best (highest training return) or its environment step."""
    member: int = 0
    """Member of the population."""
    context: int = 8
    """Real records that the model sees first (at least 2)."""
    horizon: int = 45
    """Steps that it dreams; shortened where all episodes are shorter."""
    episodes: int = 6
    """Sequences in the video and the plots."""
    sequences: int = 64
    """Start points of the error curves."""
    seed: int = 1
    """Seed of environments, policy and dreams."""
    out: Path | None = None
    """Where to write (default: RUN/dreams)."""
    format: str = "gif"
    """Video format: gif, or mp4 (needs pip install 'jaxwm[video]')."""


def _dream(arguments: list[str]) -> int:
    from rich.console import Console

    from jaxwm.studio import dream

    options = tyro.cli(DreamOptions, args=arguments, prog="jaxwm dream")
    settings = dream.Settings(options.context, options.horizon, options.episodes, options.sequences)
    home = options.run.parent if options.run.is_file() else options.run
    out, console = options.out or home / "dreams", Console()
    dream.dream(options.run, out, options.member, options.seed, settings, options.format, console, options.checkpoint)
    return 0


@dataclass(frozen=True)
class WatchOptions:
    """Record the policy of a run in the real environment, as a video.

    Images and 0/1 planes are shown as they are; CartPole, Pendulum, MountainCar and Acrobot are drawn; other numbers
    are written on strips. Below stand step, action, reward and return.
    """

    run: tyro.conf.Positional[Path]
    """Run directory, or a file written by jaxwm export."""
    checkpoint: str = "newest"
    """Checkpoint: newest, best (highest training return) or its environment step."""
    member: int = 0
    """Member of the population."""
    episodes: int = 2
    """Episodes, shown one after the other."""
    max_steps: int = 500
    """Steps after which an episode is cut off."""
    mode: str = "greedy"
    """Policy: greedy or explore."""
    seed: int = 1
    """Seed of environments and policy."""
    out: Path | None = None
    """File to write (default: RUN/watch.gif)."""
    format: str = "gif"
    """Video format where --out has no suffix: gif, or mp4 (needs pip install 'jaxwm[video]')."""


def _watch(arguments: list[str]) -> int:
    from rich.console import Console

    from jaxwm.studio import watch

    options = tyro.cli(WatchOptions, args=arguments, prog="jaxwm watch")
    settings = watch.Settings(options.episodes, options.max_steps, options.mode)
    console, out = Console(), options.out
    watch.watch(options.run, out, options.member, options.seed, settings, options.format, console, options.checkpoint)
    return 0


@dataclass(frozen=True)
class PlayOptions:
    """Play a board game against the agent of a run, in the terminal. It answers with its greedy policy."""

    run: tyro.conf.Positional[Path]
    """Run directory, or a file written by jaxwm export."""
    side: str = "first"
    """Your side: first or second."""
    checkpoint: str = "newest"
    """Checkpoint: newest, best (highest training return) or its environment step."""
    member: int = 0
    """Member of the population."""
    seed: int = 1
    """Seed of the agent."""


def _play(arguments: list[str]) -> int:
    from rich.console import Console

    from jaxwm.studio import play

    options = tyro.cli(PlayOptions, args=arguments, prog="jaxwm play")
    play.play(options.run, Console(), options.side, options.member, options.seed, options.checkpoint)
    return 0


@dataclass(frozen=True)
class ReportOptions:
    """Write report.html and report.md about runs: learning curves, losses, evaluations, throughput, settings."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, directories that contain some, or an experiment file, for its runs below runs/."""
    out: Path | None = None
    """Where to write (default: RUN/report for one run, runs/report-TIME for several below runs/)."""


def _report(arguments: list[str]) -> int:
    from rich.console import Console

    from jaxwm.report.page import opening, report
    from jaxwm.run.sweep import default_root

    options = tyro.cli(ReportOptions, args=arguments, prog="jaxwm report")
    paths, out = [default_root(path) if path.suffix == ".py" else path for path in options.runs], options.out
    if not out and len(paths) == 1 and paths != list(options.runs):
        out = paths[0] / "report"
    with Console().status("drawing figures (about a second for each environment)"):
        page = report(paths, out)
    print(opening(page))
    return 0


@dataclass(frozen=True)
class SweepOptions:
    """Run every run of an experiment file, side by side on all devices, and write a report. Finished ones are skipped,
    stopped ones resumed: after any interruption the same command goes on.

    Keyword arguments of the file's runs() are flags too, shown below.
    """

    file: tyro.conf.Positional[Path]
    """Python file that defines runs() -> {name: Plan}; see experiments/."""
    root: Path | None = None
    """Where the runs go (default: runs/ and the file's name); on a cluster, a directory that all machines share."""
    retries: int = 2
    """How often a task that failed is tried again; it goes on from its checkpoint."""
    address: str | None = None
    """Ray cluster to use, as HOST:PORT, ray://HOST:PORT or auto (default: this machine alone)."""
    cores: int = 1
    """CPU cores of each task. Part of the result: more cores may round differently."""
    gpus: int | None = None
    """GPUs of each task (default: one where there are any)."""
    ray: bool = True
    """Run tasks side by side with Ray; --no-ray runs one after another in this process."""
    report: bool = True
    """Write ROOT/report/report.html at the end."""


def _sweep(arguments: list[str]) -> int:
    from functools import partial

    from rich.console import Console

    from jaxwm.report.page import report

    pass

    wants_help = bool({"-h", "--help"} & set(arguments))
    files = [argument for argument in arguments if argument.endswith(".py")]
    if wants_help and not files:
        tyro.cli(SweepOptions, args=["--help"], prog="jaxwm sweep")
    if wants_help:
        with contextlib.suppress(SystemExit):
            tyro.cli(SweepOptions, args=["--help"], prog="jaxwm sweep FILE")
        tyro.cli(sweep.load(Path(files[0])).runs, args=["--help"], prog=f"jaxwm sweep {files[0]}")
    options, rest = tyro.cli(SweepOptions, args=arguments, prog="jaxwm sweep", return_unknown_args=True)
    check_number("--retries", options.retries, least=0, whole=True)
    check_number("--cores", options.cores, least=1, whole=True)
    if options.gpus is not None:
        check_number("--gpus", options.gpus, least=0, whole=True)
    plans = sweep.plans(options.file, lambda runs: tyro.cli(runs, args=rest, prog=f"jaxwm sweep {options.file}"))
    root = options.root or sweep.default_root(options.file)
    if options.ray and not cluster.available():
        print("Ray is not installed: tasks run one after another in this process (pip install 'jaxwm[sweep]')")
    if options.ray and cluster.available():
        resources = cluster.Resources(options.address, options.cores, options.gpus)
        runner: Any = partial(cluster.on_ray, resources=resources, file=options.file)
    else:
        if options.address:
            raise ValueError(f"a cluster ({options.address}) needs Ray: install jaxwm[sweep], and leave --no-ray out")
        use_cores(max(p.members for p in plans.values()), shards=max(p.shards for p in plans.values()))
        runner = sweep.one_by_one
    out = sweep.sweep(plans, root, options.retries, runner=runner)
    if options.report and out.results and not out.stopped:
        with Console().status("drawing the report"):
            page = report([root / name for name in plans if name in out.results], root / "report")
        print(f"report: {page}")
    return 1 if out.stopped or out.failures else 0


if __name__ == "__main__":
    sys.exit(main())
