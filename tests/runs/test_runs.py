"""Real runs by the command line, as a user meets them: plain files, kills at any moment, nothing unpickled."""

import ast
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from arrays import assert_same

import jaxwm as package
from jaxwm.run import directory, load, session
from jaxwm.run.checkpoint import Checkpoints
from jaxwm.run.json_files import read_jsonl
from jaxwm.run.plan import Plan

TINY = (
    "--deter 16 --hidden 8 --units 8 --stoch 4 --classes 4 --bins 11 --batch-size 4 --batch-length 6 --imag-length 3 "
    "--prefill 64 --train-ratio 6"
).split()


def jaxwm(*arguments, check=True, **options):
    command = [sys.executable, "-m", "jaxwm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=400, **options)


STEPS, LAKE = 400, "tabular/FrozenLake"


def start(steps: int, *system: str) -> list[str]:
    return ["train", *(system or ("dreamer-v3", *TINY)), "--members", "2", "--steps", str(steps), "--episodes", "10"]


def stream_of(folder: Path, name: str = "scores.jsonl") -> list[dict]:
    return read_jsonl(folder / name)


def made(folder: Path, *system: str) -> Path:
    """A run of two agents, made by the command line."""
    out = jaxwm(*start(STEPS, *system), "--run", folder)
    assert "parameters" in out.stdout and "replay" in out.stdout and "FLOP" in out.stdout
    assert ("of training went" in out.stdout) == ("--profile" in system)
    assert "compile time" in out.stdout and "trained (greedy)" in out.stdout and "random" in out.stdout
    assert f"jaxwm eval {folder}" in out.stdout
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The run of a system that compiles in seconds."""
    return made(tmp_path_factory.mktemp("runs") / "lake", "dyna-q", "--env", LAKE, "--profile")


@pytest.fixture(scope="module")
def dreamer(tmp_path_factory) -> Path:
    """A run of tiny Dreamers on Catch."""
    return made(tmp_path_factory.mktemp("runs") / "catch")


def test_a_run_is_plain_files(finished):
    config = directory.read_config(finished)
    assert config["agent"] == "dyna-q" and config["settings"]["planning"] > 0 and config["jax"]
    rows, scores = stream_of(finished, "metrics.jsonl"), stream_of(finished)
    assert rows[-1]["env_steps"] == 400 and len(rows[-1]["real/td_error"]) == 2
    assert {"member", "env_steps", "return", "length"} == scores[0].keys()
    assert {s["member"] for s in scores} == {0, 1} and all(2 <= s["length"] <= 100 for s in scores)
    assert all(s["return"] in (0, 1) for s in scores)
    result = json.loads((finished / "evaluation.json").read_text())
    assert result["env_steps"] == 400 and len(result["trained"]) == len(result["random"]) == 2
    assert (finished / "checkpoints" / "400").is_dir()


def test_a_profile_says_what_the_time_went_to(finished):
    """In a pure environment nearly all of it is one program; the rest is told apart, and all is there."""
    found = json.loads((finished / "profile.json").read_text())
    assert found["seconds"].keys() == found["shares"].keys() >= {"program", "idle"}
    assert abs(sum(found["seconds"].values()) - found["total"]) < 0.01 * len(found["seconds"])
    assert abs(sum(found["shares"].values()) - 1) < 0.001 * len(found["shares"])


def test_the_gauge_looks_as_often_as_its_share_allows():
    """The first look compiles and is free, the second is to find out what one costs; then one fits in now and then."""
    budget, cost = session.Budget(0.01), 0.02
    assert budget.allows(0.0) and budget.spend(lambda: {}) == {}  # nothing was measured: nothing is known
    for _ in range(2):
        assert budget.allows(0.0)
        assert budget.spend(lambda seconds: time.sleep(seconds) or {"gap": 1}, cost) == {"gap": 1}
    assert cost <= budget.spent < 2 * cost
    assert not budget.allows(3.9) and budget.allows(2 * budget.spent / 0.01 + 1e-6)


@pytest.mark.slow
def test_eval_scores_a_finished_run(dreamer):
    out = jaxwm("eval", dreamer, "--episodes", 20)
    assert "20 episodes after 400 environment steps" in " ".join(out.stdout.split())


def test_a_run_directory_is_never_overwritten(finished):
    before = sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*"))
    out = jaxwm("train", "dreamer-v3", "--steps", 400, "--run", finished, *TINY, check=False)
    assert out.returncode == 2 and "holds a run already" in out.stderr and "jaxwm resume" in out.stderr
    assert sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*")) == before


def test_load_gives_the_agent_back(finished):
    plan, agent, state, steps = load.load(finished)
    assert (plan.env, steps) == (LAKE, 400)
    assert (np.asarray(state.step) > 300).all()  # the first step of an episode teaches nothing
    scores = load.score(plan, agent, state, 10)
    assert scores.total.shape == (2, 10) and scores.complete.all()


# --- Stopped and killed -------------------------------------------------------------------------------------------

OFTEN = ["--checkpoint-minutes", "0.005"]  # every third of a second: many kills hit one that is being written


def whole(folder: Path):
    """The last checkpoint of a run: everything, restored."""
    plan = Plan.from_json(directory.read_config(folder))
    _, _, trainer = load.build(plan)
    with Checkpoints(folder / directory.CHECKPOINTS, writing=False) as checkpoints:
        return checkpoints.restore(trainer.init(0))


def stop_until_done(folder: Path, steps: int, signals: list[int], seed: int) -> list[int]:
    """Start the run, send it a signal at a random moment, resume it, and so on, then let it end; the exit statuses.

    Every process cuts the run into chunks of another length.
    """
    dice, statuses, command = random.Random(seed), [], [*start(steps), *OFTEN, "--run", str(folder)]
    base, each = [sys.executable, "-m", "jaxwm"], steps // (len(signals) + 1)
    for number, which in enumerate(signals):
        environment = os.environ | {"JAXWM_CHUNK_SECONDS": str(dice.choice([0.03, 0.1, 0.4]))}
        process = subprocess.Popen([*base, *command], env=environment, stdout=subprocess.PIPE, text=True)
        deadline = time.time() + 300
        while time.time() < deadline and process.poll() is None and progress(folder) < each * (number + 1):
            time.sleep(0.01)
        time.sleep(dice.random() * 0.3 if which == signal.SIGKILL else 0)
        process.send_signal(which)
        out, _ = process.communicate(timeout=300)
        statuses.append(process.returncode)
        if process.returncode == 1:
            assert "stopped and saved; go on with: " in out.replace("\n", " ")
        command = ["resume", str(folder)]
    subprocess.run([*base, *command], check=True, stdout=subprocess.DEVNULL, timeout=400)
    return statuses


def progress(folder: Path) -> int:
    """Environment steps that the run's metrics tell of."""
    try:
        return read_jsonl(folder / directory.METRICS)[-1]["env_steps"]
    except (FileNotFoundError, IndexError, ValueError):  # not there yet, empty, or cut at a line's middle
        return 0


def check_same_run(folder, undisturbed):
    ours, theirs = whole(folder), whole(undisturbed)
    assert ours.cursor == theirs.cursor
    assert_same(ours.life, theirs.life)  # parameters, optimiser, replay, environments, keys, counters
    assert read_jsonl(folder / directory.SCORES) == read_jsonl(undisturbed / directory.SCORES)
    a, b = (json.loads((path / directory.EVALUATION).read_text())["trained"] for path in (folder, undisturbed))
    assert a == b


@pytest.mark.slow
def test_stopped_and_killed_it_is_the_same_run(dreamer, tmp_path):
    """SIGTERM, then SIGKILL, and other chunk lengths: parameters, replay and scores bit for bit."""
    statuses = stop_until_done(tmp_path / "run", STEPS, [signal.SIGTERM, signal.SIGKILL], seed=0)
    assert statuses == [1, -signal.SIGKILL]
    check_same_run(tmp_path / "run", dreamer)


@pytest.mark.slow
def test_killed_twenty_times_it_is_the_same_run(tmp_path):
    jaxwm(*start(3000), "--run", tmp_path / "undisturbed")
    statuses = stop_until_done(tmp_path / "run", 3000, [signal.SIGKILL] * 22, seed=1)
    assert statuses.count(-signal.SIGKILL) >= 20
    check_same_run(tmp_path / "run", tmp_path / "undisturbed")


# --- Nothing unpickles --------------------------------------------------------------------------------------------

FORBIDDEN = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")


def test_no_file_of_the_package_unpickles():
    """By the source: no import of a pickling module, no `allow_pickle=True`."""
    files = list(Path(package.__file__).parent.rglob("*.py"))
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & set(FORBIDDEN), path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path


GUARD = """
import pickle, sys
import numpy as np

def refuse(*arguments, **options):
    raise AssertionError("something was unpickled")

{arm}
import jaxwm
from jaxwm import cli

{work}
print("loaded")
"""

ARM = """
pickle.load = pickle.loads = pickle._load = pickle._loads = pickle._Unpickler.load = refuse
pickle.Unpickler = pickle._Unpickler  # the C class cannot be changed, and libraries derive from it
sys.addaudithook(lambda event, arguments: refuse() if event == "pickle.find_class" else None)
real_load = np.load
np.load = lambda *a, allow_pickle=False, **k: refuse() if allow_pickle else real_load(*a, **k)
real_read = np.lib.format.read_array
np.lib.format.read_array = lambda *a, allow_pickle=False, **k: refuse() if allow_pickle else real_read(*a, **k)
for name in ("dill", "cloudpickle"):
    sys.modules[name] = None
"""


def guarded(work: str):
    program = GUARD.format(arm=ARM, work=work)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=400)


@pytest.mark.slow
def test_loading_evaluating_exporting_and_resuming_unpickle_nothing(dreamer, tmp_path):
    weights = tmp_path / "weights.safetensors"
    work = f"""
assert jaxwm.load({str(dreamer)!r}).steps == {STEPS}
assert cli.main(["export", {str(dreamer)!r}, "--out", {str(weights)!r}]) == 0
assert jaxwm.load({str(weights)!r}).steps == {STEPS}
assert cli.main(["eval", {str(dreamer)!r}, "--episodes", "10"]) == 0
assert cli.main(["resume", {str(dreamer)!r}]) == 0
"""
    out = guarded(work)
    assert out.returncode == 0 and out.stdout.strip().endswith("loaded"), out.stderr[-3000:]


def test_the_guard_itself_catches_unpickling():
    attempts = (
        "pickle.loads(b'N.')",
        "import io; pickle.Unpickler(io.BytesIO(b'N.')).load()",
        "import _pickle; _pickle.loads(b'cbuiltins\\nlen\\n.')",
        "import io; np.load(io.BytesIO(b'x'), allow_pickle=True)",
    )
    out = guarded(
        f"""
for work in {attempts!r}:
    try:
        exec(work)
    except AssertionError as error:
        print(error)
"""
    )
    assert out.stdout.split("\n") == ["something was unpickled"] * len(attempts) + ["loaded", ""], out.stderr[-3000:]


# --- Weights alone ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exported_weights_act_like_the_run(dreamer, tmp_path):
    file = tmp_path / "w.safetensors"
    out = jaxwm("export", dreamer, "--out", file)
    assert f"jaxwm eval {file}" in out.stdout.replace("\n", " ")
    a, b = package.load(dreamer), package.load(file)
    assert_same(a.state.params, b.state.params)
    assert (a.plan, a.steps) == (b.plan, b.steps)
    scores = [load.score(x.plan, x.agent, x.state, 10).total for x in (a, b)]
    np.testing.assert_array_equal(*scores)
    assert file.stat().st_size < 1.2 * sum(x.nbytes for x in jax.tree.leaves(a.state.params)) + 50_000


def test_damaged_and_foreign_weights_are_refused(finished, tmp_path):
    file = tmp_path / "w.safetensors"
    load.export_params(finished, file)
    content = file.read_bytes()
    for spoilt in (b"", content[:100], b"\x00" * 200, b"not weights at all" * 10):
        file.write_bytes(spoilt)
        with pytest.raises(ValueError, match="no safetensors file, or damaged"):
            package.load(file)
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3, np.float32)}, file)
    with pytest.raises(ValueError, match="not written by jaxwm export"):
        package.load(file)
    with pytest.raises(FileNotFoundError):
        package.load(tmp_path / "nowhere")
