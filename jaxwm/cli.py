"""The command line: `jaxwm list | train | resume | eval | dream | watch | play | record | data | report | export |
push | pull | serve | studio | sweep`.

Every setting of a system is a flag of `jaxwm train AGENT`; `jaxwm train AGENT --help` explains them."""

import contextlib
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from jaxwm import agents, data
from jaxwm.envs import wire
from jaxwm.errors import check_choice, check_number, suggest
from jaxwm.run import cluster, cost, directory, flags, hub, load, machine, session, sinks, sweep
from jaxwm.run import plan as planning
from jaxwm.run.flags import optional
from jaxwm.training import processes
from jaxwm.training.host import EnvironmentDied

ERRORS = (ValueError, OSError, ImportError, EnvironmentDied)
"""Errors whose message is meant for the user; anything else is a bug and keeps its traceback."""

STOPPED, INTERRUPTED = 1, 130


def main(arguments: list[str]) -> int:
    """Run a command; the exit status, as `jaxwm.__main__.main` has it."""
    command, *rest = arguments
    if command not in COMMANDS:
        return _fail(f"unknown command {command!r}; {suggest(command, COMMANDS)} (see jaxwm --help)")
    machine.use_compilation_cache()
    warnings.showwarning = _show_warning
    action = COMMANDS[command]
    if isinstance(action, type):
        return guarded(lambda: _check_device() or flags.read(action, rest, f"jaxwm {command}")() or 0)
    return guarded(lambda: action(rest))


def guarded(action: Callable[[], int]) -> int:
    """Run `action`; bad input becomes one line on stderr and status 2, unless JAXWM_TRACEBACK is set."""
    try:
        return action()
    except BrokenPipeError:  # `jaxwm list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
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
        return _fail("interrupted; a run with a checkpoint goes on with jaxwm resume RUN", INTERRUPTED)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print our own warnings as one line for people; those of libraries are for their developers."""
    if category is UserWarning:
        print(f"warning: {message}", file=sys.stderr)


def _check_device() -> None:
    """ValueError where JAX_PLATFORMS asks for an accelerator that is not there. A CPU is left for `use_cores`."""
    asked = os.environ.get("JAX_PLATFORMS", "cpu")
    if "cpu" in asked or not asked:
        return
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where not even JAX's plugin is installed
        text = f"JAX finds no device for JAX_PLATFORMS={asked}: unset it or set it to cpu; for an NVIDIA GPU install"
        raise ValueError(f"{text} jaxwm[cuda] and check that nvidia-smi lists it") from error


def _fail(message: object, status: int = 2) -> int:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return status


def _next(commands: dict[str, str]) -> str:
    """What to run next, as lines: the words after `jaxwm`, and what for."""
    commands = {f"{machine.program()} {words}": what for words, what in commands.items()}
    width = max(map(len, commands))
    return "\n".join(["next:", *(f"  {command:<{width}}  {what}" for command, what in commands.items())])


def _list(arguments: list[str]) -> int:
    from jaxwm.report import lineage

    if len(arguments) != 1:
        raise ValueError(f"jaxwm list takes the name of one agent or nothing, got {' '.join(arguments)}")
    print(lineage.describe(arguments[0]))
    return 0


def _train(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"which agent? jaxwm train AGENT, with AGENT one of {', '.join(agents.AGENTS)}")
    found = planning.parse(arguments)
    asked = found.plan
    if asked.data and not asked.env:
        asked = replace(asked, env=data.recorded_env(asked.data, **asked.data_options))
    count = _start_jax(found.hosts, asked.members, asked.shards)
    folder = found.run or directory.default_path(asked.agent, asked.env or Path(str(asked.data)).name)
    if not found.run and count > 1:
        raise ValueError("several processes need --run DIR, the same for all of them")
    result = session.train(asked, folder)
    if result and found.pictures and processes.first():
        _pictures(folder)
    if result and processes.first():
        entry = agents.find(asked.agent)
        steps = _after_training(folder, asked.env or "", entry.baseline, acts=not entry.video)
        print(f"\nrun directory: {folder}\n\n{_next(steps)}")
    return 0 if result else STOPPED


def _pictures(folder: Path) -> None:
    """What `jaxwm watch` and `jaxwm dream` draw of a finished run; what cannot be drawn costs a line."""
    for command in (Watch, Dream):
        try:
            command(folder)()
        except ERRORS as error:
            print(f"no {command.__name__.lower()}: {error}")


def _start_jax(meet: machine.Hosts, members: int, shards: int) -> int:
    """Decide on devices and meet the other processes; how many there are."""
    count = max(1, meet.expected())
    machine.use_cores(max(1, members // count), shards=max(1, shards) if count == 1 else 1)
    count = meet.join()
    _check_device()
    return count


def _after_training(folder: Path, env: str, baseline: bool = False, acts: bool = True) -> dict[str, str]:
    run = shlex.quote(str(folder))
    dream = {} if baseline else {f"dream {run}": "see what the world model dreams"}
    look = dream | ({f"watch {run}": "see the policy play"} if acts else {})
    return {
        f"eval {run}": "score the checkpoint again",
        **({f"play {run}": "play against it"} if env.startswith("pgx/") else look),
        f"report {run}": "curves, losses and the exploitation gauge as a page",
        "train dreamer-v3 --env minatar/Breakout --help": "another environment, every setting",
        "list": "all agents and environments",
    }


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with a stopped run, from its newest checkpoint; --steps (or --updates) trains a finished one longer."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    steps: Annotated[int | None, optional("INT")] = None
    """Environment steps of each member in all, more than before."""
    updates: Annotated[int | None, optional("INT")] = None
    """Updates of each member in all, for a run that was planned in updates."""
    hosts: Annotated[machine.Hosts, tyro.conf.OmitArgPrefixes] = machine.Hosts()


def _resume(arguments: list[str]) -> int:
    if not arguments:
        raise ValueError("usage: jaxwm resume RUN, with a run directory; got nothing")
    options = flags.read(ResumeOptions, arguments, "jaxwm resume")
    planned = planning.read_plan(options.run)
    _start_jax(options.hosts, planned.members, planned.shards)  # as when it started: the same bits
    return 0 if session.resume(options.run, steps=options.steps, updates=options.updates) else STOPPED


@dataclass(frozen=True)
class RunOptions:
    """What commands that look at a run have in common."""

    run: tyro.conf.Positional[Path]
    """Run directory, a file written by jaxwm export, or a model that was pulled."""
    checkpoint: str = "newest"
    """Checkpoint: newest, best (highest training return) or its environment step."""


@dataclass(frozen=True)
class MemberOptions(RunOptions):
    """What commands that look at one member have in common."""

    member: int = 0
    """Member of the population."""
    seed: int = 1
    """Seed of environments, policy and dreams."""


@dataclass(frozen=True)
class Eval(RunOptions):
    """Score a checkpoint of a run next to a random policy."""

    episodes: int = 100
    """Episodes of each member."""
    seed: int = 1
    """Seed of the evaluation's environments."""
    mode: str = "greedy"
    """Policy: greedy or explore."""
    score_option: Annotated[dict[str, Any], flags.OPTIONS, optional("NAME=VALUE")] = field(default_factory=dict)
    """Options of the environment, over those of the run (opponent=mcts side=first)."""

    def __call__(self) -> None:
        check_choice("--mode", self.mode, ("greedy", "explore"))
        check_number("--episodes", self.episodes, least=1, most=2**31 - 1, whole=True)
        check_number("--seed", self.seed, least=0, most=2**32 - 1, whole=True)
        plan, agent, state, steps = load.load(self.run, self.checkpoint)
        plan = replace(plan, score_options=plan.score_options | self.score_option)
        scores, _ = load.scores(plan, agent, state, self.episodes, self.mode, self.seed)
        where = f"{steps:,} {'environment steps' if plan.data is None else 'updates'}"
        Console().print(session.table(plan, scores, where, self.mode, self.episodes))


@dataclass(frozen=True)
class Export(RunOptions):
    """Write the weights of all members, without optimiser and replay, as one safetensors file. `jaxwm eval`,
    `jaxwm.load` and `jaxwm train --from` read it, and so does any other framework."""

    out: Annotated[Path | None, optional("FILE")] = None
    """File to write (default: RUN/weights.safetensors)."""

    def __call__(self) -> None:
        file = self.out or self.run / load.WEIGHTS
        if self.out and (file.suffix != ".safetensors" or not file.parent.is_dir()):
            raise ValueError(f"--out must be FOLDER/NAME.safetensors in a folder that exists, got {file}")
        size = load.export_params(self.run, file, self.checkpoint)
        print(f"{file}: {cost.human(size, 'B')}\n\n{_next({f'eval {shlex.quote(str(file))}': 'score it'})}")


@dataclass(frozen=True)
class Push(RunOptions):
    """Share the weights of a run, with a card that says what they are: environment, scores, command, versions.

    NAME is a folder (./breakout) or USER/MODEL on the Hugging Face hub, which needs pip install 'jaxwm[hub]' and
    `hf auth login`. What is written: README.md (the card), weights.safetensors, plan.json, evaluation.json where these
    weights were evaluated, and the run's watch.gif and dreams/dream.gif where there are some."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = tyro.MISSING
    """Where to: ./FOLDER, or USER/MODEL on the Hugging Face hub."""
    private: bool = False
    """Make a new model on the hub private."""

    def __call__(self) -> None:
        place = hub.push(self.run, self.name, self.checkpoint, self.private)
        print(f"{place}\n\n{_next({f'pull {shlex.quote(self.name)}': 'fetch it, here or on another machine'})}")


@dataclass(frozen=True)
class Pull:
    """Fetch a model that `jaxwm push` shared. It holds arrays and text only: nothing in it is run."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Where from: USER/MODEL on the Hugging Face hub, or ./FOLDER."""
    folder: Annotated[tyro.conf.Positional[Path | None], optional("DIR")] = None
    """Folder to write, new or empty (default: models/ and the name's last part)."""

    def __call__(self) -> None:
        folder = hub.pull(self.name, self.folder)
        plan, where = load.plan_of(folder), shlex.quote(str(folder))
        ways = {f"eval {where}": "score it", f"watch {where}": "see its policy play"}
        print(f"{folder}: {plan.agent} on {plan.task}\n\n{_next({**ways, f'serve {where}': 'let others ask it'})}")


def _player(options: Any) -> Any:
    """The member that the options of a command name, ready to play."""
    from jaxwm.studio.episodes import open_player

    return open_player(options.run, options.member, options.seed, options.checkpoint)


def _home(run: Path) -> Path:
    """The directory of a run, or the one that a file of weights is in."""
    return run.parent if run.is_file() else run


def _publish(run: Path, player: Any, files: list[Path]) -> None:
    """Show pictures in the sinks of the run, if it has some."""
    if player.plan.log and (run / directory.CONFIG).is_file():
        sinks.publish(player.plan.log, run, files, player.env_steps)


@dataclass(frozen=True)
class Dream(MemberOptions):
    """Show what the world model of a run dreams, next to what really happens.

    The exploring policy plays; the model sees some records of an episode and dreams on, open loop, under the same
    actions. RUN/dreams then holds dream.gif and dream.png (truth, dream and their difference, for images, 0/1 planes
    and some drawn tasks), vector.png and reward.png (truth and dream of all numbers), error.png (error by horizon, next
    to two baselines: the last observation kept forever, and the dream under the actions of another sequence) and
    dreams.json with the numbers of error.png. A model that is no better than the first baseline has learned nothing
    about change; one that is no better than the second does not look at its actions."""

    context: int = 8
    """Real records that the model sees first (at least 2)."""
    horizon: int = 45
    """Steps that it dreams; shortened where all episodes are shorter."""
    episodes: int = 6
    """Sequences in the video and the plots."""
    sequences: int = 64
    """Start points of the error curves."""
    out: Annotated[Path | None, optional("DIR")] = None
    """Where to write (default: RUN/dreams)."""
    format: str = "gif"
    """Video format: gif, or mp4 (needs pip install 'jaxwm[video]')."""

    def __call__(self) -> None:
        from jaxwm.studio import dream

        settings = dream.Settings(self.context, self.horizon, self.episodes, self.sequences, self.format)
        player = _player(self)
        files = dream.dream(player, self.out or _home(self.run) / "dreams", settings, Console())
        _publish(self.run, player, files)


@dataclass(frozen=True)
class Watch(MemberOptions):
    """Record the policy of a run in the real environment, as a video.

    Images and 0/1 planes are shown as they are; CartPole, Pendulum, MountainCar and Acrobot are drawn; other numbers
    are written on strips, above step, action, reward and return."""

    episodes: int = 2
    """Episodes, shown one after the other."""
    max_steps: int = 500
    """Steps after which an episode is cut off."""
    mode: str = "greedy"
    """Policy: greedy or explore."""
    out: Annotated[Path | None, optional("FILE")] = None
    """File to write (default: RUN/watch.gif)."""
    format: str = "gif"
    """Video format where --out has no suffix: gif, or mp4 (needs pip install 'jaxwm[video]')."""

    def __call__(self) -> None:
        from jaxwm.studio import video, watch

        settings = watch.Settings(self.episodes, self.max_steps, self.mode)
        out, player = video.named(self.out or _home(self.run) / "watch", self.format), _player(self)
        watch.watch(player, out, settings, Console())
        _publish(self.run, player, [out])


@dataclass(frozen=True)
class Play(MemberOptions):
    """Play a board game against the agent of a run, in the terminal. It answers with its greedy policy."""

    side: str = "first"
    """Your side: first or second."""

    def __call__(self) -> None:
        from jaxwm.studio import play

        play.play(_player(self), Console(), self.side)


@dataclass(frozen=True)
class Serve(MemberOptions):
    """Let other programs ask the agent of a run, over a socket: they send an observation, it answers with its action.

    Each client has a memory of its own. A client needs Python, NumPy and the file jaxwm/envs/wire.py, or any language
    that speaks its protocol (docs/sharing.md). By default only this machine can connect. For another --host a token
    is asked for: the one in JAXWM_TOKEN, or one that is made and printed."""

    host: str = "127.0.0.1"
    """Address to listen on (0.0.0.0 for all of this machine)."""
    port: int = wire.PORT
    """Port to listen on; 0 for any that is free."""
    mode: str = "greedy"
    """Policy: greedy or explore."""

    def __call__(self) -> None:
        from jaxwm.studio import serve

        check_choice("--mode", self.mode, ("greedy", "explore"))
        check_number("--port", self.port, least=0, most=65535, whole=True)
        mode: Any = self.mode
        serve.serve(_player(self), mode, self.host, self.port, Console())


@dataclass(frozen=True)
class Record:
    """Write whole episodes into a folder, for `jaxwm train AGENT --data DIR` and for other programs. A folder with a
    recording of the same environment in the same format grows (one of LeRobot does not)."""

    run: Annotated[tyro.conf.Positional[Path | None], optional("RUN")] = None
    """Run whose policy plays; without one, or with --random, actions are random."""
    random: bool = False
    """Play at random, in the environment of RUN or --env."""
    env: Annotated[str | None, optional("SUITE/TASK")] = None
    """Environment (default: that of RUN)."""
    env_option: Annotated[dict[str, Any], flags.OPTIONS, optional("NAME=VALUE")] = field(default_factory=dict)
    """Options of the environment (default: those of RUN)."""
    imports: Annotated[tuple[str, ...], optional("FILE.py|MODULE", "import")] = ()
    """Python files or modules that register environments of your own."""
    episodes: int = 100
    """Episodes to record."""
    steps: Annotated[int | None, optional("INT")] = None
    """Record until there are so many steps instead."""
    out: Annotated[Path | None, optional("DIR")] = None
    """Folder to write (default: recordings/TASK)."""
    mode: str = "explore"
    """Policy of RUN: explore or greedy."""
    format: str = "npy"
    """Format: npy (arrays, our own), npz (a file per episode), minari, lerobot, or mp4 (what is seen, and no more)."""
    checkpoint: str = "newest"
    """Checkpoint: newest, best (highest training return) or its environment step."""
    member: int = 0
    """Member of the population."""
    seed: int = 1
    """Seed of environments and policy."""

    def __call__(self) -> None:
        from jaxwm.studio import record

        check_choice("--mode", self.mode, ("greedy", "explore"))
        check_number("--episodes", self.episodes, least=1, whole=True)
        if self.run is None and self.env is None:
            raise ValueError("record what? jaxwm record RUN, or jaxwm record --random --env SUITE/TASK")
        mode: Any = "random" if self.random or self.run is None else self.mode
        what = record.Settings(self.episodes, self.steps, mode, self.seed, self.format)
        where = record.place(self.run, self.env, self.env_option, self.imports)
        out = self.out or Path("recordings") / where.env.split("/")[-1]
        record.record(None if mode == "random" else _player(self), where, out, what, Console())
        folder = shlex.quote(str(out))
        learn = {f"train dreamer-v3 --data {folder} --updates 3000": "learn from it, and nothing else"}
        print(_next({f"data show {folder}": "look at it", **(learn if self.format != "mp4" else {})}))


def _data(arguments: list[str]) -> int:
    """Commands about recordings."""
    from jaxwm.studio import recordings

    word, *rest = arguments or [""]
    known = recordings.COMMANDS
    if word not in known:
        wrong = f"unknown word {word!r}; {suggest(word, known)}: " if word not in ("", "-h", "--help") else ""
        usage = f"jaxwm data {'|'.join(known)} PATH (`jaxwm data WORD --help` explains each)"
        if word not in ("-h", "--help"):
            raise ValueError(f"{wrong}usage: {usage}")
        print(f"usage: {usage}")
        return 0
    return flags.read(known[word], rest, f"jaxwm data {word}")() or 0


@dataclass(frozen=True)
class Report:
    """Write report.html and report.md about runs: learning curves, losses, evaluations, throughput, settings."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, directories that contain some, or an experiment file, for its runs below runs/."""
    out: Annotated[Path | None, optional("DIR")] = None
    """Where to write (default: RUN/report for one run, runs/report-TIME for several below runs/)."""

    def __call__(self) -> None:
        from jaxwm.report.page import opening, report

        paths, out = [sweep.default_root(path) if path.suffix == ".py" else path for path in self.runs], self.out
        if not out and len(paths) == 1 and paths != list(self.runs):
            out = paths[0] / "report"
        with Console().status("drawing figures (about a second for each environment)"):
            page = report(paths, out)
        print(opening(page))


@dataclass(frozen=True)
class SweepOptions:
    """Run every run of an experiment file, side by side on all devices, and write a report. Finished ones are skipped,
    stopped ones resumed: after any interruption the same command goes on.

    Keyword arguments of the file's runs() are flags too, shown below."""

    file: tyro.conf.Positional[Path]
    """Python file that defines runs() -> {name: Plan}; see experiments/."""
    root: Annotated[Path | None, optional("DIR")] = None
    """Where the runs go (default: runs/ and the file's name); on a cluster, a directory that all machines share."""
    retries: int = 2
    """How often a task that failed is tried again; it goes on from its checkpoint."""
    address: Annotated[str | None, optional("ADDRESS")] = None
    """Ray cluster to use, as HOST:PORT, ray://HOST:PORT or auto (default: this machine only)."""
    cores: int = 1
    """CPU cores of each task. Part of the result: more cores may round differently."""
    gpus: Annotated[int | None, optional("INT")] = None
    """GPUs of each task (default: one where there are any)."""
    ray: bool = True
    """Run tasks side by side with Ray; --no-ray runs one after another in this process."""
    report: bool = True
    """Write ROOT/report/report.html at the end."""


def _sweep(arguments: list[str]) -> int:
    from jaxwm.report.page import report

    files = [argument for argument in arguments if argument.endswith(".py")]
    if {"-h", "--help"} & set(arguments):
        with contextlib.suppress(SystemExit):
            flags.read(SweepOptions, ["--help"], "jaxwm sweep FILE" if files else "jaxwm sweep")
        if files:
            flags.read(sweep.load(Path(files[0])).runs, ["--help"], f"jaxwm sweep {files[0]}")
        return 0
    options, rest = flags.read(SweepOptions, arguments, "jaxwm sweep", return_unknown_args=True)
    check_number("--retries", options.retries, least=0, whole=True)
    check_number("--cores", options.cores, least=1, whole=True)
    check_number("--gpus", options.gpus or 0, least=0, whole=True)
    plans = sweep.plans(options.file, lambda runs: flags.read(runs, rest, f"jaxwm sweep {options.file}"))
    root = options.root or sweep.default_root(options.file)
    if options.ray and not cluster.available():
        print("Ray is not installed: tasks run one after another in this process (pip install 'jaxwm[sweep]')")
    if options.ray and cluster.available():
        wish = dict(file=options.file, address=options.address, cores=options.cores, gpus=options.gpus)
        runner: Any = partial(cluster.on_ray, **wish)
    else:
        if options.address:
            raise ValueError(f"a cluster ({options.address}) needs Ray: install jaxwm[sweep], and leave --no-ray out")
        machine.use_cores(max(p.members for p in plans.values()), shards=max(p.shards for p in plans.values()))
        runner = sweep.one_by_one
    out = sweep.sweep(plans, root, options.retries, runner=runner)
    if options.report and out.results and not out.stopped:
        with Console().status("drawing the report"):
            page = report([root / name for name in plans if name in out.results], root / "report")
        print(f"report: {page}")
    return 1 if out.stopped or out.failures else 0


@dataclass(frozen=True)
class Studio:
    """Look at runs, play in their dreams and see them plan, in a browser.

    The printed link opens five pages: a maze that an agent learns in front of you (it needs no run), all runs with
    their curves, the real game and the model's dream of it under the same keys, the quality of dreams, and plans. By
    default only this machine can connect. For another --host the link holds a random token, or the one in JAXWM_TOKEN.
    Nothing that a visitor sends is run or unpickled. Needs pip install 'jaxwm[studio]'."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN ...]")] = ()
    """Runs, folders with runs, or exported weights (default: runs/, and a small model that comes along)."""
    recording: Annotated[Path | None, optional("DIR")] = None
    """Recording (see jaxwm data) from whose moments dreams may begin."""
    host: str = "127.0.0.1"
    """Address to listen on (0.0.0.0 for all of this machine)."""
    port: int = 8500
    """Port to listen on; 0 for any that is free."""
    seed: int = 1
    """Seed of what is played for the page about dream quality."""

    def __call__(self) -> None:
        from jaxwm.web import server

        check_number("--port", self.port, least=0, most=65535, whole=True)
        check_number("--seed", self.seed, least=0, most=2**32 - 1, whole=True)
        server.open_studio(self.runs, self.recording, self.host, self.port, self.seed)


COMMANDS: dict[str, Any] = dict(list=_list, train=_train, resume=_resume, eval=Eval, dream=Dream, watch=Watch)
COMMANDS |= dict(play=Play, record=Record, data=_data, report=Report, export=Export)
COMMANDS |= dict(push=Push, pull=Pull, serve=Serve, studio=Studio, sweep=_sweep)
"""A command is a class of its options, called without arguments, or a function of the words that follow."""
