"""A run's whole description: the command line parses it, config.json stores it, sweeps build it, reports print it."""

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import jax
import tyro

import jaxwm
from jaxwm import agents
from jaxwm.errors import Amount, Natural, check_number, check_types, suggest
from jaxwm.run import directory, flags
from jaxwm.run.flags import optional
from jaxwm.run.machine import Hosts

C = TypeVar("C")

NOT_SETTINGS = ("jaxwm", "jax", "jax_settings", "sharing")  # entries of config.json that say how it was written
JAX_SETTINGS = ("jax_default_matmul_precision", "jax_random_seed_offset", "jax_threefry_partitionable")
"""Settings of JAX that may be any, but on which the numbers of a run depend."""

ALWAYS = ("env", "steps", "members", "seed", "episodes")  # entries that a command always shows
FLAGS = dict(
    env_options="env-option", score_options="score-option", start="from", start_parts="from-parts", imports="import"
)
"""Entries with another name on the command line."""

_ENV_OPTION, _SCORE_OPTION = (optional("NAME=VALUE", FLAGS[name]) for name in ("env_options", "score_options"))


def jax_settings() -> dict[str, Any]:
    """`JAX_SETTINGS` as they are now."""
    return {name: getattr(jax.config, name) for name in JAX_SETTINGS}


@dataclass(frozen=True)
class Plan(Generic[C]):
    """The whole description of a run."""

    agent: tyro.conf.Suppress[str]
    """System to train, a name of `jaxwm list`."""
    env: Annotated[str | None, tyro.conf.arg(metavar="SUITE/TASK")]
    """Environment, SUITE/TASK; `jaxwm list` shows all. With --data, where it is scored (default: where recorded)."""
    settings: Annotated[C, tyro.conf.OmitArgPrefixes]
    """Settings of the system; the preset gives their defaults."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Environment steps of each member."""
    members: int = 1
    """Agents trained at once, each with its own seed."""
    seed: int = 0
    """Seed of the whole population."""
    episodes: int = 100
    """Episodes of the evaluation at the end."""
    env_options: Annotated[dict[str, Any], flags.OPTIONS, _ENV_OPTION] = field(default_factory=dict)
    """Options of the environment (sticky=0.25 image_size=64)."""
    checkpoint_minutes: Amount = 5.0
    """Minutes between checkpoints; one more is written at the end."""
    keep: int = 2
    """Newest checkpoints to keep; the one with the best training return is kept as well."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard."""
    gauge: Natural = 15
    """Steps over which dreamed returns are compared with real ones while training; 0 turns the gauge off."""
    profile: bool = False
    """Measure what the time goes to: environments, policy, updates, copies. Nothing overlaps then: it takes longer."""
    shards: int = 1
    """Devices that each member is spread over: its batch, and the replay of its environments. For one large model."""
    vary: Annotated[dict[str, list[float]], flags.VALUES, optional("NAME=VALUE,VALUE")] = field(default_factory=dict)
    """Hyper-parameters that differ between members, one value per member (lr=1e-4,3e-4,1e-3 for three)."""
    score_options: Annotated[dict[str, Any], flags.OPTIONS, _SCORE_OPTION] = field(default_factory=dict)
    """Options of the environment in which the policy is scored, where they differ (opponent=minimax)."""
    updates: Annotated[int | None, optional("INT")] = None
    """Updates of each member: the length of a run on recordings."""
    data: Annotated[str | None, optional("DIR")] = None
    """Folder of recorded episodes (see `jaxwm record`) to learn from, in place of an environment."""
    start: Annotated[str | None, optional("RUN", "from")] = None
    """Run, or file of `jaxwm export`, whose weights the run begins with."""
    start_parts: Annotated[tuple[str, ...], optional("NAME", "from-parts")] = ()
    """Components to take from there (enc dyn dec); default: all."""
    freeze: Annotated[tuple[str, ...], optional("NAME")] = ()
    """Components whose weights stay as they begin."""
    imports: Annotated[tuple[str, ...], optional("FILE.py|MODULE", "import")] = ()
    """Python files or modules that register environments of your own (jaxwm.envs.register)."""

    def __post_init__(self):
        for name in ("start_parts", "freeze", "imports"):
            parts = getattr(self, name)
            if isinstance(parts, str) or not all(isinstance(part, str) for part in parts):
                raise ValueError(f"{name} must be several names, not {parts!r}")
            parts = parts if name == "imports" else [p for part in parts for p in part.split(",") if p]
            object.__setattr__(self, name, tuple(parts))  # a list where it comes out of a file
        check_types(self)
        lengths = [name for name in ("steps", "updates") if getattr(self, name) is not None]
        for name in ("members", "episodes", "keep", "shards", *lengths):
            check_number(name, getattr(self, name), least=1, most=2**31 - 1, whole=True)
        check_number("seed", self.seed, least=0, most=2**32 - 1, whole=True)
        self._check_source()
        if not isinstance(self.settings, config := agents.find(self.agent).config):
            raise ValueError(f"the settings of {self.agent} are a {config.__module__}.Config, not {self.settings!r}")
        for name in ("env_options", "score_options"):
            if not isinstance(options := getattr(self, name), dict):
                raise ValueError(f"{name} must be a dict of the environment's options, not {options!r}")
        self._check_vary()

    def _check_source(self) -> None:
        if self.data is None and self.env is None:
            raise ValueError("which environment? --env SUITE/TASK, or --data DIR for recorded episodes")
        if self.data is not None and self.updates is None:
            raise ValueError("how long? a run on recordings (--data) takes --updates N")
        if self.data is not None and self.steps is not None:
            raise ValueError("a run on recordings (--data) takes --updates, not --steps: it takes no environment steps")
        if self.steps is None and self.updates is None:
            raise ValueError("how long? --steps N environment steps, or --updates N")
        if self.start is None and self.start_parts:
            raise ValueError("--from-parts names components of another run: say which with --from RUN")

    def _check_vary(self) -> None:
        if not isinstance(self.vary, dict):
            raise ValueError(f"vary must be a dict of lists with a value for each member, not {self.vary!r}")
        for name, values in self.vary.items():
            if not isinstance(values, list | tuple) or len(values) != self.members:
                text = f"vary {name} must be {self.members} numbers, one per member, not {values!r}"
                raise ValueError(f"{text}: give as many, or another --members")
            for value in values:
                check_number(f"vary {name}", value)
                if hasattr(self.settings, name):
                    replace(self.settings, **{name: float(value)})  # type: ignore[type-var]  # in range?

    @property
    def task(self) -> str:
        """Where records come from, for headings: the environment, or the recordings."""
        return self.env if self.data is None else f"recordings of {self.env}" if self.env else str(self.data)  # type: ignore[return-value]

    def to_json(self) -> dict[str, Any]:
        """What config.json holds: all entries, and the versions that wrote them."""
        return {"jaxwm": jaxwm.__version__, "jax": jax.__version__, "jax_settings": jax_settings(), **asdict(self)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Plan":
        """The plan that `to_json` wrote. ValueError where an entry is missing, unknown or out of range."""
        entries = {k: v for k, v in data.items() if k not in NOT_SETTINGS}
        _check_entries("", entries, Plan)
        entry = agents.find(entries["agent"])
        settings = entries["settings"]
        if isinstance(settings, dict):  # written before a setting had its present name
            settings = {entry.renamed.get(name, name): value for name, value in settings.items()}
        _check_entries("settings.", settings, entry.config)
        return Plan(**{**entries, "settings": entry.config(**settings)})

    def command(self, program: str = "jaxwm") -> str:
        """The command that makes this run again, from the preset that leaves the fewest flags."""
        entry = agents.find(self.agent)
        changes = {name: _changes(self.settings, preset) for name, preset in entry.presets.items()}
        preset = min(changes, key=lambda name: (len(changes[name]), name != entry.default))
        words = ["train", self.agent]
        words += [] if preset == entry.default else ["--preset", preset]
        for entry_field in fields(self):
            name, value = entry_field.name, getattr(self, entry_field.name)
            if name == "settings":
                for setting, changed in changes[preset].items():
                    words += _words(setting, changed)
            elif value is not None and name != "agent" and (name in ALWAYS or value != _default(entry_field)):
                words += _words(FLAGS.get(name, name), value)
        return f"{program} {shlex.join(words)}"


def _default(entry: Any) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _changes(settings: Any, preset: Any) -> dict[str, Any]:
    """Settings that are not those of the preset. JSON has no tuples, so lists and tuples are the same here."""
    plain = lambda value: tuple(value) if isinstance(value, list) else value  # noqa: E731
    pairs = {f.name: (getattr(settings, f.name), getattr(preset, f.name)) for f in fields(preset)}
    return {name: ours for name, (ours, theirs) in pairs.items() if plain(ours) != plain(theirs)}


def _words(name: str, value: Any) -> list[str]:
    """A flag and its value as words of a command."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, dict):
        write = flags.write_values if name == "vary" else flags.literal
        return [f"--{flag}", *(f"{key}={write(inner)}" for key, inner in value.items())]
    return [f"--{flag}", *map(str, value if isinstance(value, list | tuple) else [value])]


def _check_entries(prefix: str, entries: Any, config: type) -> None:
    """ValueError unless `entries` are an object with fields of the dataclass `config`; those without a default all."""
    if not isinstance(entries, dict):
        raise ValueError(f"{prefix.rstrip('.')} is no object but {entries!r}")
    known = config.__dataclass_fields__
    if unknown := [prefix + name for name in entries if name not in known]:
        raise ValueError(f"unknown entry {unknown[0]!r}; {suggest(unknown[0], [prefix + name for name in known])}")
    needed = [name for name, entry in known.items() if entry.default is entry.default_factory is MISSING]
    if missing := [prefix + name for name in needed if name not in entries]:
        raise ValueError(f"the entry {missing[0]!r} is missing")


def read_plan(folder: str | Path) -> Plan:
    """The plan of a run directory. FileNotFoundError where there is none, ValueError where it cannot be used."""
    data = directory.read_config(folder)
    try:
        return Plan.from_json(data)
    except ValueError as error:
        made = f"the run was made by jaxwm {data.get('jaxwm', 'of unknown version')}, this is {jaxwm.__version__}"
        raise ValueError(f"{Path(folder) / directory.CONFIG}: {error} ({made})") from error


@dataclass(frozen=True)
class Command(Generic[C]):
    """Train a system. Results go to a run directory of plain files: config.json, metrics.jsonl, scores.jsonl,
    evaluation.json and checkpoints/."""

    plan: Annotated[Plan[C], tyro.conf.OmitArgPrefixes]
    preset: str = ""
    """Preset of the system; the other flags change single settings of it."""
    run: Annotated[Path | None, optional("DIR")] = None
    """Run directory (default: runs/AGENT-TASK-TIME)."""
    hosts: Annotated[Hosts, tyro.conf.OmitArgPrefixes] = Hosts()


def parse(arguments: Sequence[str], members: int = 3) -> Command:
    """What the words after `jaxwm train` ask for; `members` is the default. ValueError for an unknown system, preset or
    flag, a missing or wrong value; SystemExit for --help."""
    name, rest = arguments[0], list(arguments[1:])
    entry = agents.find(name)
    own = {f.name for f in fields(Plan)}  # a flag of the run itself is never an old name
    for old, new in entry.renamed.items():
        if old not in own:
            before, now = (name.replace("_", "-") for name in (old, new))
            rest = [re.sub(rf"^--(no-)?{before}(?==|\Z)", rf"--\1{now}", word) for word in rest]
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # what decides on the real one's defaults
    for flag in ("--preset", "--data", "--updates"):
        early.add_argument(flag, nargs="?")
    given, _ = early.parse_known_args(rest)
    preset, data = given.preset or entry.default, given.data
    steps = entry.steps if data is None and given.updates is None else None
    plan = Plan.__new__(Plan)  # a default for the parser, which may be no plan yet: it is checked with what is parsed
    values = {f.name: _default(f) for f in fields(Plan)}
    values |= dict(agent=name, env=None if data else entry.env, steps=steps, members=members)
    values["settings"] = agents.settings(name, preset)
    plan.__dict__.update(values)
    presets = ", ".join(f"{preset} (default)" if preset == entry.default else preset for preset in entry.presets)
    text = f"{entry.summary}.\n\nPresets: {presets}. `jaxwm list {name}` says what each of them changes."
    kind: Any = Command[entry.config]  # type: ignore[valid-type]
    found = flags.read(kind, rest, f"jaxwm train {name}", default=Command(plan, preset), description=text)
    place = lambda path: path and str(Path(path).resolve())  # noqa: E731
    imports = tuple(str(place(x)) if x.endswith(".py") else x for x in found.plan.imports)
    start, data = place(found.plan.start), place(found.plan.data)
    return replace(found, plan=replace(found.plan, agent=name, imports=imports, start=start, data=data))
