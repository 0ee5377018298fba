"""Bad input: one message that names cause and way out, exit status 2, and nothing on disk changed.

Nothing here may compile or train: input that is accepted fails its row.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from toys import counting_env, toy_agent

import jaxwm
from jaxwm import agents, cli, envs, replay
from jaxwm.control.policy import forced
from jaxwm.envs import gym_spaces, gymnax, registry
from jaxwm.run import directory, load
from jaxwm.run.checkpoint import Checkpoints
from jaxwm.run.plan import Plan
from jaxwm.run.writer import Writer
from jaxwm.training.evaluation import evaluate
from jaxwm.training.life import Cursor, Life
from jaxwm.training.trainer import Trainer
from jaxwm.types import Batch, Box, Discrete, MultiDiscrete, Record, Spec, Step

TINY = dict(deter=16, hidden=8, units=8, stoch=4, classes=4, bins=11, batch_size=4, batch_length=6, prefill=64)

EXPERIMENTS = {
    "no_runs": "x = 1",
    "no_python": "this is no Python",
    "raises": "x = 1\nimport no_such_package",
    "raises_later": "def runs():\n    return {'a': 1 / 0}",
    "returns_nothing": "def runs():\n    pass",
    "returns_no_run": "def runs():\n    return {}",
    "returns_no_plans": "def runs():\n    return {'a': 'dreamer-v3'}",
    "climbs": "from jaxwm import agents\nfrom jaxwm import Plan\ndef runs():\n"
    "    return {'../a': Plan('dreamer-v3', 'probe/Recall', agents.settings('dreamer-v3'), 100)}",
    "other_plan": "from jaxwm import agents\nfrom jaxwm import Plan\ndef runs():\n"
    "    return {'good': Plan('dreamer-v3', 'gymnax/Catch-bsuite', agents.settings('dreamer-v3'), 800, 2)}",
    "wrong_plan": "from jaxwm import agents\nfrom jaxwm import Plan\ndef runs():\n"
    "    return {'a': Plan('dreamer-v3', 'probe/Recall', agents.settings('dreamer-v3'), -100)}",
}


# --- A folder to work in ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working directory with a run (its arrays are zeros), damaged copies of it, experiments and other files."""
    place = tmp_path_factory.mktemp("place")
    plan = Plan("dreamer-v3", "gymnax/Catch-bsuite", agents.settings("dreamer-v3", "nano", **TINY), 400, 2)
    make_run(place / "good", plan)
    good = json.loads((place / "good" / directory.CONFIG).read_text())
    settings, without = good["settings"], {k: v for k, v in good.items() if k != "steps"}
    changed = {
        "version": {**good, "jaxwm": "9.9", "dreams": 1},
        "setting": {**good, "settings": {**settings, "deterr": 16}},
        "missing": without,
        "agent": {**good, "agent": "dreamer-v33"},
        "env": {**good, "env": "gymnax/Cath-bsuite"},
        "steps": {**good, "steps": "many"},
        "range": {**good, "settings": {**settings, "lr": -1.0}},
        "no_object": {**good, "settings": [1]},
        "options": {**good, "env_options": [1]},
        "deter": {**good, "settings": {**settings, "deter": 32}},
        "layers": {**good, "settings": {**settings, "policy_layers": 2}},
        "members": {**good, "members": 3},
        "capacity": {**good, "settings": {**settings, "capacity": 200}},
    }
    for name, config in changed.items():
        shutil.copytree(place / "good", place / name)
        (place / name / directory.CONFIG).write_text(json.dumps(config))
    for name, text in {"half": '{"agent": "dre', "list": "[1]", "empty": ""}.items():
        shutil.copytree(place / "good", place / name)
        (place / name / directory.CONFIG).write_text(text)
    shutil.copytree(place / "good", place / "fresh")
    shutil.rmtree(place / "fresh" / directory.CHECKPOINTS)
    (place / "thesis").mkdir()
    (place / "thesis" / "thesis.tex").write_text("text")
    (place / "notes.txt").write_text("text")
    for name, text in EXPERIMENTS.items():
        (place / f"{name}.py").write_text(text + "\n")
    return place


def make_run(folder: Path, plan: Plan) -> None:
    """A run directory as training leaves it, without training."""
    directory.create(folder)
    directory.write_config(folder, plan.to_json())
    Writer(folder).close()
    _, _, trainer = load.build(plan)
    sizes = trainer.footprint()
    zeros = lambda tree: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)  # noqa: E731
    rings = {"real": replay.Ring(zeros(sizes["replay"]["real"]), 0)}  # type: ignore[arg-type]
    life = Life(zeros(sizes["state"]), *[{}] * 3, rings, *[{}] * 5)  # type: ignore[arg-type]
    with Checkpoints(folder / directory.CHECKPOINTS) as checkpoints:
        checkpoints.save(400, life, Cursor(), {})


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`, with the content of files."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def jaxwm_main(place, monkeypatch, capsys):
    """`main(command) -> text on stderr`; checks everything but the words of the message."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of experiment files
    monkeypatch.setenv("COLUMNS", "1000")

    def accepted(self, *_):
        raise AssertionError("bad input was accepted")

    monkeypatch.setattr(Trainer, "init", accepted)

    def main(command: str, parser: bool = False) -> str:
        before = tree(place)
        try:
            status = cli.main(command.split())
        except SystemExit as stop:
            assert parser
            status = stop.code
        out, error = capsys.readouterr()
        assert status == 2 and "Traceback" not in out + error
        if not parser:
            assert error.startswith("error: ") and error.count("error: ") == 1 and error.count("\n") == 1, error
            assert len(error) < 700
        assert tree(place) == before
        return " ".join(error.split())

    return main


def ids(rows):
    return [str(row[0]) for row in rows]


# --- Commands -----------------------------------------------------------------------------------------------------

COMMANDS = [
    # Names.
    ("trian dreamer-v3", "unknown command 'trian'", "did you mean train"),
    ("frobnicate", "unknown command", "there are list, train, resume"),
    ("list everything", "unknown agent 'everything'", "there are dreamer-v3"),
    ("list dyna-q planet", "the name of one agent or nothing"),
    ("train", "which agent?", "dreamer-v3"),
    ("train --steps 5", "which agent?"),
    ("train dreamer", "unknown agent 'dreamer'", "did you mean dreamer-v1, dreamer-v2, dreamer-v3"),
    ("train rainbow", "unknown agent 'rainbow'", "there are dreamer-v3"),
    ("train dreamer-v3 --preset nan0", "unknown preset 'nan0' of dreamer-v3", "did you mean nano"),
    ("train dreamer-v3 --preset 13m", "unknown preset '13m'", "12m"),
    ("train dreamer-v3 --env gymnax/Cach", "unknown environment", "gymnax/Catch-bsuite"),
    ("train dreamer-v3 --env atri/Pong", "unknown environment", "atari/Pong"),
    ("train dreamer-v3 --env Pong", "'suite/Task'", "atari/Pong"),
    ("train dreamer-v3 --env-option rows=9 --env gymnax/Catch", "unknown environment", "gymnax/Catch-bsuite"),
    ("train dreamer-v3 --env-option row=9", "has no option 'row'", "did you mean 'rows'"),
    ("train dreamer-v3 --env atari/Pong --env-option stiky=0.25", "did you mean 'sticky'"),
    ("train dreamer-v3 --env probe/Recall --env-option dely=2", "did you mean 'delay'"),
    # Values of the environment's options.
    ("train dreamer-v3 --env-option rows", "NAME=VALUE"),
    ("train dreamer-v3 --env-option rows=many", "rows must be a whole number", "not 'many'"),
    ("train dreamer-v3 --env-option rows=-3", "rows must be a whole number of at least 1, not -3"),
    ("train dreamer-v3 --env-option max_steps=0", "max_steps must be a whole number of at least 1"),
    ("train dreamer-v3 --env gymnax/CartPole-v1 --env-option gravity=1e999", "gravity must be a number, not inf"),
    ("train dreamer-v3 --env minatar/Breakout --env-option max_steps=x", "max_steps must be", "not 'x'"),
    ("train dreamer-v3 --env probe/Recall --env-option delay=-1", "delay must be", "at least 0"),
    ("train dreamer-v3 --env probe/Recall --env-option delay=long", "delay must be", "not 'long'"),
    ("train dreamer-v3 --env atari/Pong --env-option image_size=60", "multiples of 16", "60 x 60"),
    ("train dreamer-v3 --env atari/Pong --env-option sticky=much", "sticky", "at least 0 and at most 1"),
    ("train dreamer-v3 --env atari/Pong --env-option gray=5", "gray must be one of True, False, not 5"),
    ("train dreamer-v3 --env atari/Pong --env-option life_loss=end", "one of 'ignore', 'terminal'"),
    ("train dreamer-v3 --env dmc/WalkerWalk --env-option pixels=True", "pixels must be a whole number"),
    ("train dreamer-v3 --env classic/CartPole-v1 --env-option action_repeat=0.5", "action_repeat must be a whole"),
    # Values of the run.
    ("train dreamer-v3 --members 0", "members must be a whole number of at least 1"),
    ("train dreamer-v3 --members -3", "members must be a whole number of at least 1"),
    ("train dreamer-v3 --members 200000 --capacity 5000", "free: lower --capacity, --members"),
    ("train dreamer-v3 --steps 0", "steps must be"),
    ("train dreamer-v3 --steps 3000000000", "steps must be", "at most 2147483647"),
    ("train dreamer-v3 --seed -1", "seed must be", "at least 0 and at most 4294967295"),
    ("train dreamer-v3 --seed 4294967296", "seed must be"),
    ("train dreamer-v3 --episodes 0", "episodes must be"),
    ("train dreamer-v3 --keep 0", "keep must be"),
    ("train dreamer-v3 --checkpoint-minutes -1", "checkpoint_minutes must be a number of at least 0"),
    ("train dreamer-v3 --checkpoint-minutes nan", "checkpoint_minutes must be"),
    ("train dreamer-v3 --capacity 20", "replay holds only 5", "to at least 44"),
    ("train dreamer-v3 --steps 20", "replay holds only", "--steps to at least 44"),
    ("train dreamer-v3 --batch-length 50000", "raise --capacity and --steps", "or shorten the sequences"),
    # Run directories.
    ("train dreamer-v3 --run good", "holds a run already", "jaxwm resume good"),
    ("train dreamer-v3 --run thesis", "is not empty", "choose another directory with --run"),
    ("train dreamer-v3 --run notes.txt", "is a file", "choose another directory with --run"),
    ("train dreamer-v3 --run notes.txt/run", "cannot write to notes.txt/run", "--run"),
    ("train dreamer-v3 --run new/" + "x" * 300, "cannot write to new/xxx", "--run"),
    ("train dreamer-v3 --run new/run --env atari/Png", "atari/Pong"),
    ("resume", "usage: jaxwm resume RUN"),
    ("resume godo", "is no run directory", "did you mean good"),
    ("resume thesis", "is no run directory", "no config.json"),
    ("resume notes.txt", "is no run directory"),
    ("eval nowhere", "is no run directory", "did you mean"),
    ("eval thesis/thesis.tex", "is no safetensors file, or damaged"),
    ("eval fresh", "fresh/checkpoints", "Start it again with `", "jaxwm resume", "fresh`"),
    ("export fresh", "stopped before its first"),
    ("eval good --checkpoint 17", "no checkpoint '17'", "there are newest, best and 400"),
    ("export good --checkpoint bset", "no checkpoint 'bset'", "best"),
    ("export good --out weights.npz", "NAME.safetensors", "got weights.npz"),
    ("export good --out nowhere/weights.safetensors", "folder that exists"),
    ("export nowhere", "is no run directory"),
    ("eval notes.txt", "notes.txt is no safetensors file, or damaged"),
    ("dream nowhere", "is no run directory"),
    ("dream good --member 2", "there is no member 2", "members 0 to 1"),
    ("dream good --context 1", "context"),
    ("dream good --horizon 0", "horizon"),
    ("dream good --format avi", "avi"),
    ("watch good --mode gredy", "greedy or explore"),
    ("watch good --episodes 0", "--episodes must be at least 1"),
    ("watch good --checkpoint 3", "no checkpoint '3'"),
    ("train dreamer-v3 --run new/run --gauge -1", "gauge must be"),
    ("eval good --episodes 0", "--episodes must be"),
    ("eval good --seed -1", "--seed must be"),
    ("eval good --mode gredy", "--mode must be one of 'greedy', 'explore', not 'gredy'"),
    # config.json.
    ("resume half", "half/config.json is damaged"),
    ("eval list", "list/config.json is damaged", "expected an object"),
    ("eval empty", "empty/config.json is damaged"),
    ("resume version", "unknown entry 'dreams'", "made by jaxwm 9.9, this is"),
    ("resume setting", "unknown entry 'settings.deterr'", "did you mean settings.deter"),
    ("eval missing", "missing/config.json: how long? --steps N"),
    ("resume agent", "agent/config.json: unknown agent 'dreamer-v33'", "did you mean dreamer-v3"),
    ("resume env", "unknown environment", "gymnax/Catch-bsuite"),
    ("eval steps", "steps must be a whole number", "not 'many'"),
    ("eval range", "range/config.json: lr must be a number above 0, not -1.0"),
    ("eval no_object", "settings is no object"),
    ("eval options", "env_options must be a dict"),
    # A checkpoint of another configuration.
    ("eval deter", "does not fit its config.json", "agent/params/", "put back the config.json"),
    ("resume deter", "does not fit its config.json", "put back the config.json"),
    ("eval layers", "does not fit its config.json", "absent in the checkpoint"),
    ("eval members", "does not fit its config.json", "(2,", "(3,"),
    ("resume capacity", "does not fit its config.json", "rest/rings/real/data"),
    # Experiments.
    ("sweep nothing.py", "no experiment nothing.py", "see experiments/"),
    ("sweep thesis", "no experiment thesis"),
    ("sweep notes.txt", "notes.txt is no Python file"),
    ("sweep no_runs.py", "must define runs()"),
    ("sweep no_python.py", "cannot load no_python.py, line 1: SyntaxError"),
    ("sweep raises.py", "cannot load raises.py, line 2: ModuleNotFoundError: No module named 'no_such_package'"),
    ("sweep raises_later.py", "raises_later.py, line 2: ZeroDivisionError"),
    ("sweep returns_nothing.py", "must return a dict", "not None"),
    ("sweep returns_no_run.py", "returned no run"),
    ("sweep returns_no_plans.py", "must return a dict"),
    ("sweep climbs.py", "'../a' cannot be the name of a run directory"),
    ("sweep other_plan.py --root .", "good was made by another plan (steps: 400 there, 800 now", "another --root"),
    ("sweep wrong_plan.py", "wrong_plan.py, line 4", "steps must be"),
]


@pytest.mark.parametrize("row", COMMANDS, ids=ids(COMMANDS))
def test_commands(row, jaxwm_main):
    command, *words = row
    error = jaxwm_main(command)
    assert all(word in error for word in words), error


SETTINGS = [
    # What the parser says by itself.
    ("--stps 5", "did you mean --steps"),
    ("--lerning-rate 1", "Unrecognized options: --lerning-rate"),
    ("extra", "Unrecognized options: extra"),
    ("--members", "Missing value", "--members"),
    ("--members two", "--members", "'two'"),
    ("--deter 3.5", "--deter", "'3.5'"),
    ("--lr fast", "--lr", "'fast'"),
    ("--vary lr=1e-3,fast,1e-3", "--vary takes NAME=NUMBER,NUMBER", "'lr=1e-3,fast,1e-3'"),
    ("--vary lr", "--vary takes NAME=NUMBER"),
    ("--vary lr=1e-3,1e-2", "vary lr must be 3 numbers, one per member"),
    ("--vary lr=1e-3,1e-2,-1", "lr must be a number above 0"),
    ("--vary nothing=1,2,3", "'nothing'", "cannot differ between members", "lr"),
    ("--shards 0", "shards must be a whole number of at least 1"),
    ("--shards 3 --envs 4 --batch-size 6", "3 shards do not divide"),
    ("--online maybe", "maybe"),
    ("--dtype float16", "float32", "bfloat16"),
    # What the agent says of its settings.
    *[(f"--{name} 0", f"{name.replace('-', '_')} must be a whole number of at least 1, not 0")
      for name in "deter hidden stoch units depth blocks envs batch-size imag-length capacity".split()],
    *[(f"--{name} -1", f"{name.replace('-', '_')} must be a whole number of at least 0, not -1")
      for name in "sensor-layers policy-layers model-layers prefill warmup lr-decay-updates".split()],
    *[(f"--{name} -0.5", f"{name.replace('-', '_')} must be a number of at least 0, not -0.5")
      for name in "free-nats entropy disagreement rec-scale rew-scale con-scale dyn-scale rep-scale policy-scale "
      "value-scale repval-scale slow-scale".split()],
    *[(f"--{name} {value}", f"{name.replace('-', '_')} must be a number of at least 0 and at most 1, not {value}")
      for name, value in (("unimix", 1.5), ("actor-unimix", -0.1), ("lam", 1.01))],
    *[(f"--{name} {value}", f"{name.replace('-', '_')} must be a number above 0, not {value}")
      for name, value in (("train-ratio", 0.0), ("lr", -1.0), ("agc", 0.0), ("temperature", 0.0))],
    *[(f"--{name} {value}", f"{name.replace('-', '_')} must be a number, not {value}")
      for name, value in (("lr", "nan"), ("lr", "inf"), ("horizon", "nan"), ("entropy", "-inf"))],
    ("--ensemble 1", "ensemble must be a whole number of at least 2"),
    ("--batch-length 1", "batch_length must be a whole number of at least 2"),
    ("--classes 0", "classes must be a whole number of at least 1 and at most 256"),
    ("--classes 257", "classes must be a whole number of at least 1 and at most 256"),
    ("--horizon 1", "horizon must be a number above 1"),
    ("--slow-rate 0", "slow_rate must be a number above 0 and at most 1"),
    ("--slow-rate 1.5", "slow_rate must be a number above 0 and at most 1"),
    ("--bins 10", "odd number of bins, at least 3, got 10"),
    ("--bins 1", "odd number of bins"),
    ("--deter 33", "deter (33) must be a multiple of blocks (8)"),
]  # fmt: skip


@pytest.mark.parametrize("row", SETTINGS, ids=ids(SETTINGS))
def test_settings(row, jaxwm_main):
    flags, *words = row
    error = jaxwm_main(f"train dreamer-v3 {flags}", parser=True)
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    "command",
    ["eval", "eval good --episods 5", "resume --run", "resume good fresh", "sweep", "sweep other_plan.py extra"],
)
def test_other_parsers(command, jaxwm_main):
    error = jaxwm_main(command, parser=True)
    assert "required" in error or "Unrecognized" in error or "Missing" in error


# --- What a machine lacks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "command", "words"),
    [
        ("tensorboardX", "train dreamer-v3 --tensorboard --run new/board", ["pip install 'jaxwm[log]'"]),
        ("envpool", "train dreamer-v3 --env atari/Pong", ["atari/Pong needs envpool", "pip install envpool"]),
        ("gymnax", "train dreamer-v3", ["needs gymnax", "pip install 'gymnax>=1.0.1'"]),
    ],
)
def test_missing_packages(module, command, words, jaxwm_main, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    error = jaxwm_main(command)
    assert all(word in error for word in words), error


def test_missing_rom(jaxwm_main, monkeypatch):
    import envpool

    monkeypatch.setattr(envpool, "list_all_envs", lambda: ["Breakout-v5"])
    assert "finds no Pong-v5; ROMs come with its assets: pip install" in jaxwm_main("train dreamer-v3 --env atari/Pong")


def test_missing_download(jaxwm_main, monkeypatch):
    import gymnax as library

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(library, "make", fail)
    error = jaxwm_main("train dreamer-v3 --env gymnax/MNISTBandit-bsuite")
    assert "downloads its data set" in error and "no network" in error


def test_out_of_memory(jaxwm_main, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes")

    monkeypatch.setattr(Trainer, "init", full)
    assert "out of memory: lower --capacity" in jaxwm_main("train dreamer-v3 --run new/run " + flags(TINY))


def test_bugs_keep_their_traceback_and_leave_nothing_behind(place, jaxwm_main, monkeypatch):
    def bug(*_):
        raise RuntimeError("a bug")

    before = tree(place)
    monkeypatch.setattr(Trainer, "init", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(f"train dreamer-v3 --run deep/new/run {flags(TINY)}".split())
    assert tree(place) == before


def flags(settings: dict) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


def process(place: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Status and stderr of a real process in `place`."""
    env = {**os.environ, **variables, "PYTHONPATH": str(Path(jaxwm.__file__).parents[1])}
    command = [sys.executable, "-m", "jaxwm", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=env, timeout=120)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stderr


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_no_gpu_where_one_was_asked_for(place):
    before = tree(place)
    arguments = "train", "dreamer-v3", "--run", "new/gpu"
    status, error = process(place, *arguments, JAX_PLATFORMS="cuda")
    assert status == 2 and tree(place) == before
    assert [line for line in error.splitlines() if line.startswith("error: ")] == [
        "error: JAX finds no device for JAX_PLATFORMS=cuda: unset it or set it to cpu; for an NVIDIA GPU install "
        "jaxwm[cuda] and check that nvidia-smi lists it"
    ]


def test_no_traceback_reaches_a_terminal(place):
    before = tree(place)
    status, error = process(place, "train", "dreamer-v3", "--run", "good")
    assert status == 2 and error.startswith("error: good holds a run already") and error.count("\n") == 1
    assert tree(place) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(jaxwm_main, tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot write to" in jaxwm_main(f"train dreamer-v3 --run {tmp_path}/run")


# --- Environments of one's own ------------------------------------------------------------------------------------


def struct(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def pure(obs, action=Discrete(2)):
    """A constructor of an environment with these spaces."""

    def constructor(num_envs):
        zeros = lambda: jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), obs)  # noqa: E731
        spec = Spec("my/Env", obs, action, 10)
        return envs.from_functions(
            spec, lambda key: ((), zeros()), lambda key, s, a: (s, zeros(), 0.0, False, False), num_envs
        )

    return constructor


class Space:
    """Stands for a gymnasium space of the kind that its class is called."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def space(kind, **attributes):
    return type(kind, (Space,), {})(**attributes)


BOX = space("Box", shape=(3,), dtype=np.float32, low=-1.0, high=1.0)
TWO = space("Discrete", n=2)


class Native:
    """A gymnasium environment, correct but for what is given."""

    def __init__(self, obs=BOX, action=TWO, first=(np.zeros(3), {}), then=(np.zeros(3), 0.0, False, False, {})):
        self.observation_space, self.action_space, self.first, self.then = obs, action, first, then

    def reset(self, seed=None):
        return self.first

    def step(self, action):
        return self.then


def host(*given, **native):
    make_one = (lambda seed: given[0]) if given else lambda seed: Native(**native)
    return lambda num_envs: envs.from_gymnasium(make_one, num_envs)


SPACES = [
    ("image of odd size", pure(struct(60, 60, 3, dtype=np.uint8)), "multiples of 16", "60 x 60"),
    ("tiny image", pure(struct(16, 16, 3, dtype=np.uint8)), "between 48 and 256"),
    ("images of two sizes", pure({"a": struct(64, 64, 3, dtype=np.uint8), "b": struct(96, 96, 3, dtype=np.uint8)}),
     "one height and width"),
    ("float64", pure(struct(3, dtype=np.float64)), "float64", "numbers as float32"),
    ("int32", pure(struct(3, dtype=np.int32)), "int32", "one-hot classes as bool"),
    ("flat uint8", pure(struct(3, dtype=np.uint8)), "images as uint8 [H, W, C]"),
    ("empty vector", pure(struct(0)), "is empty"),
    ("nested dict", pure({"a": {"b": struct(3)}}), "not nested"),
    ("tuple", pure((struct(3), struct(3))), "not tuple"),
    ("no sensor", pure({}), "has no sensor"),
    ("reserved legal", pure({"legal": struct(3), "x": struct(3)}), "'legal' is reserved for the action mask"),
    ("reserved to_play", pure({"to_play": struct(3), "x": struct(3)}), "'to_play' is reserved"),
    ("legal of another size", pure({"legal": struct(3, dtype=np.bool_), "x": struct(3)}), "'legal' is reserved"),
    ("not understood", pure({"legal": struct(2, dtype=np.bool_)}), "does not understand", "'legal'", "take alphazero"),
    ("float image", pure(struct(64, 64, 3)), "(64, 64, 3) look like images", "as uint8"),
    ("flat float image", pure(struct(12288)), "(12288,) look like images"),
    ("stacked images", pure(struct(4, 64, 64, 3, dtype=np.uint8)), "(4, 64, 64, 3)", "images as uint8 [H, W, C]"),
    ("no action space", pure(struct(3), action=None), "has no action space"),
    ("host: image of odd size", host(obs=space("Box", shape=(84, 84, 3), dtype=np.uint8, low=0, high=255)), "84 x 84"),
    ("host: text observation", host(obs=space("Text")), "observation space of kind Text is not supported"),
    ("host: tuple action", host(action=space("Tuple")), "action space of kind Tuple is not supported"),
    ("host: reserved", host(obs=space("Dict", spaces={"legal": BOX})), "'legal' is reserved"),
    ("host: nothing", host(None), "must return an environment with observation_space", "NoneType"),
]  # fmt: skip


@pytest.mark.parametrize("row", SPACES, ids=ids(SPACES))
def test_unsupported_spaces(row, jaxwm_main, monkeypatch):
    _, constructor, *words = row
    monkeypatch.setitem(registry._registered, "my/Env", constructor)
    error = jaxwm_main("train dreamer-v3 --env my/Env")
    assert all(word in error for word in words), error


# --- In a notebook ------------------------------------------------------------------------------------------------


def pool(**native):
    """Reset and step a host environment of two."""
    env = host(**native)(2)
    handle, _ = env.reset(jax.random.split(jax.random.key(0), 1))
    return env.step(handle, np.zeros((1, 2), np.int32))


def dreamer(**options):
    return agents.make("dreamer-v3", envs.make("probe/Recall").spec, preset="nano", **TINY | options)


def record(batch, length):
    flag = np.zeros((batch, length), bool)
    zeros = np.zeros((batch, length), np.float32)
    return Record(zeros, zeros, flag, flag, flag, flag, {})


def learn(batch):
    return toy_agent(length=4).train_step(None, batch, jax.random.key(0))


def toy_batch(*shape):
    return Batch(Record((), np.zeros(shape), (), (), (), (), ()), (), ())  # type: ignore[arg-type]


def ring(rows=5):
    example = jax.tree.map(lambda x: x[:, 0], record(2, 1))
    return replay.init(example, 2 * rows, 2)


def toy_trainer(**options):
    return Trainer(toy_agent(), counting_env(4), **options)


def dream(context, actions=None, horizon=3):
    agent = dreamer()
    shapes = jax.eval_shape(lambda: agent.init(jax.random.key(0), agent.hyper))
    state = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    return agent.imagine(state, context, actions, jax.random.key(0), horizon)


def act(mode):
    step = Step(np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1))  # type: ignore[arg-type]
    return forced(Discrete(3), step, jax.random.key(0), mode)


NOTEBOOK = [
    ("unknown agent", lambda: agents.settings("dreamr"), "did you mean dreamer-v1, dreamer-v2, dreamer-v3"),
    ("unknown preset", lambda: agents.settings("dreamer-v3", "mikro"), "did you mean micro"),
    ("unknown setting", lambda: dreamer(imag_lenght=3), "did you mean imag_length"),
    ("text for a number", lambda: dreamer(deter="64"), "deter must be a whole number, not '64'"),
    ("a fraction", lambda: dreamer(deter=64.5), "deter must be a whole number, not 64.5"),
    ("a number for a bool", lambda: dreamer(online="yes"), "online must be one of True, False"),
    ("unknown dtype", lambda: dreamer(dtype="float16"), "one of 'float32', 'bfloat16', not 'float16'"),
    ("env for spec", lambda: agents.make("dreamer-v3", envs.make("probe/Recall")), "such as env.spec, not for a Env"),
    ("no options", lambda: Discrete(0), "whole number of at least 1, not 0"),
    ("half an option", lambda: Discrete(1.5), "whole number of at least 1, not 1.5"),  # type: ignore[arg-type]
    ("a list of options", lambda: MultiDiscrete([2, 3]), "wants a tuple"),  # type: ignore[arg-type]
    ("an empty box", lambda: Box(0), "size of Box"),
    ("max_steps", lambda: Spec("my/Env", struct(3), Discrete(2), 0), "max_steps"),
    ("num_envs", lambda: envs.make("probe/Recall", num_envs=0), "num_envs must be a whole number of at least 1"),
    ("register a built-in name", lambda: envs.register("atari/Pong", print), "choose another name, such as 'my/Pong'"),
    ("register without suite", lambda: envs.register("Maze", print), "'suite/Task'"),
    ("register no function", lambda: envs.register("my/Maze", 3), "must be a function"),  # type: ignore[arg-type]
    ("action of a pure env", lambda: envs.make("probe/Recall", 2).step(None, np.zeros(3)), "(3,), expected (2,)"),
    ("old reset", lambda: pool(first=np.zeros(3)), "reset must return (obs, info)"),
    ("old step", lambda: pool(then=(np.zeros(3), 0.0, False, {})), "step must return (obs, reward, terminated,"),
    ("observation of another size", lambda: pool(then=(np.zeros(2), 0.0, False, False, {})), "(2,), expected (3,)"),
    ("sensor left out", lambda: pool(obs=space("Dict", spaces={"x": BOX}), first=({"y": np.zeros(3)}, {})),
     "has 'y', expected 'x' too"),
    ("nested native space", lambda: gym_spaces.observation_space(space("Sequence")), "kind Sequence is not supported"),
    ("task of gymnax", lambda: gymnax.gymnax("CartPole-v1", max_steps=1.5), "max_steps must be a whole number"),
    ("members", lambda: toy_trainer(members=0), "members must be a whole number of at least 1"),
    ("capacity", lambda: toy_trainer(capacity=-5), "capacity must be"),
    ("small capacity", lambda: toy_trainer(capacity=8), "raise --capacity"),
    ("unknown hyper", lambda: toy_trainer(hyper={"wd": 1.0}), "['wd'] cannot differ", "['lr']"),
    ("hyper of another size", lambda: toy_trainer(members=3, hyper={"lr": np.ones(2)}), "one number or 3"),
    ("end of the schedule", lambda: toy_trainer().run(None, Cursor(9), 1), "the schedule has ended"),
    ("no iterations", lambda: toy_trainer().run(None, Cursor(), 0), "iterations must be"),
    ("no batch", lambda: learn(record(3, 4)), "wants a jaxwm.types.Batch"),
    ("batch of another length", lambda: learn(toy_batch(3, 7)), "wants sequences [B, 4], got [3, 7]"),
    ("batch of a population", lambda: learn(toy_batch(2, 3, 4)), "jax.vmap(agent.train_step)"),
    ("batches by other names", lambda: learn({"all": toy_batch(3, 4)}), "expected batches for ['average']"),
    ("sequences too long", lambda: replay.sample(ring(), jax.random.key(0), 2, 6), "at most 5, not 6"),
    ("sampler", lambda: replay.sample(ring(), jax.random.key(0), 2, 3, "newest"), "uniform, latest and online"),
    ("empty batch", lambda: replay.sample(ring(), jax.random.key(0), 0, 3), "batch must be"),
    ("horizon", lambda: dream(record(2, 4), horizon=0), "horizon must be a whole number of at least 1"),
    ("context", lambda: dream(record(2, 1)), "the length of the context"),
    ("actions", lambda: dream(record(2, 4), np.zeros((2, 4), int)), "[B, H, ...] = (2, 3) here, got (2, 4)"),
    ("mode", lambda: act("gredy"), "mode must be one of", "'greedy'"),
    ("episodes", lambda: evaluate(toy_agent(), counting_env(4), None, None, 6), "cannot be shared equally"),
    ("evaluation mode", lambda: evaluate(toy_agent(), counting_env(4), None, None, 4, "best"), "mode must be one of"),
    ("settings of a plan", lambda: Plan("dreamer-v3", "probe/Recall", {}, 100), "settings of dreamer-v3", "{}"),
    ("bool for a number", lambda: Plan("dreamer-v3", "probe/Recall", dreamer, True), "steps must be", "True"),
]  # fmt: skip


@pytest.mark.parametrize("row", NOTEBOOK, ids=ids(NOTEBOOK))
def test_notebook(row):
    _, action, *words = row
    with pytest.raises(ValueError) as error:
        action()
    assert all(word in str(error.value) for word in words), str(error.value)
