"""The command line, as a user meets it: real processes, real files."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxwm import agents, cli
from jaxwm.training import run, rundir
from jaxwm.training.rundir import read_jsonl

TINY = (
    "--deter 16 --hidden 8 --units 8 --stoch 4 --classes 4 --bins 11 --batch-size 4 --batch-length 6 --imag-length 3 "
    "--prefill 64 --train-ratio 6"
).split()


def jaxwm(*arguments, check=True, **options):
    command = [sys.executable, "-m", "jaxwm.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=400, **options)


def stream_of(folder: Path, name: str = "scores.jsonl") -> list[dict]:
    return read_jsonl(folder / name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of two tiny agents on Catch, made by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "catch"
    out = jaxwm("train", "dreamer-v3", "--members", 2, "--steps", 400, "--run", folder, "--episodes", 10, *TINY)
    assert "parameters" in out.stdout and "replay" in out.stdout and "FLOP" in out.stdout
    assert "compile time" in out.stdout and "trained (greedy)" in out.stdout and "random" in out.stdout
    assert f"jaxwm eval {folder}" in out.stdout
    return folder


def test_a_run_is_plain_files(finished):
    config = rundir.read_config(finished)
    assert config["agent"] == "dreamer-v3" and config["settings"]["deter"] == 16 and config["jax"]
    rows, scores = stream_of(finished, "metrics.jsonl"), stream_of(finished)
    assert rows[-1]["env_steps"] == 400 and len(rows[-1]["loss"]) == 2
    assert {"member", "env_steps", "return", "length"} == scores[0].keys()
    assert {s["member"] for s in scores} == {0, 1} and all(s["length"] == 9 for s in scores)
    assert all(abs(s["return"]) == 1 for s in scores)
    result = json.loads((finished / "evaluation.json").read_text())
    assert result["env_steps"] == 400 and len(result["trained"]) == len(result["random"]) == 2
    assert (finished / "checkpoints" / "400").is_dir()


def test_eval_scores_a_finished_run(finished):
    out = jaxwm("eval", finished, "--episodes", 20)
    assert "20 episodes after 400 steps" in " ".join(out.stdout.split())


def test_a_run_directory_is_never_overwritten(finished):
    before = sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*"))
    out = jaxwm("train", "dreamer-v3", "--steps", 400, "--run", finished, *TINY, check=False)
    assert out.returncode == 2 and "holds a run already" in out.stderr and "jaxwm resume" in out.stderr
    assert sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*")) == before


def test_a_stopped_run_resumes_to_the_same_scores(finished, tmp_path):
    """SIGTERM in the middle, then `jaxwm resume`: the scores are those of the undisturbed run."""
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "jaxwm.cli", "train", "dreamer-v3", "--members", "2", "--steps", "400"]
    process = subprocess.Popen(
        [*command, "--run", str(folder), "--episodes", "10", *TINY], stdout=subprocess.PIPE, text=True
    )
    until = time.time() + 300
    while time.time() < until and not (folder / "metrics.jsonl").exists():
        time.sleep(0.1)
    while time.time() < until and not stream_of(folder, "metrics.jsonl"):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "go on with: jaxwm resume" in out.replace("\n", " ")
    assert stream_of(folder, "metrics.jsonl")[-1]["env_steps"] < 400
    jaxwm("resume", folder)
    assert stream_of(folder) == stream_of(finished)
    assert stream_of(folder, "metrics.jsonl")[-1]["env_steps"] == 400


def test_load_gives_the_agent_back(finished):
    plan, agent, state, steps = run.load(finished)
    assert (plan.env, steps) == ("gymnax/Catch-bsuite", 400)
    assert int(state.step[0]) == int(state.step[1]) > 0
    scores = run.score(plan, agent, state, 10)
    assert scores.total.shape == (2, 10) and scores.complete.all()


def test_listing(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "dreamer-v3" in out and "Catch-bsuite" in out and "nano" in out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "dreamer-v3", "--help"], ["eval", "--help"]])
def test_help_teaches(arguments, capsys):
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr().out
    assert status == 0 and ("jaxwm train" in out or "--env" in out or "--episodes" in out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'"),
        (["train"], "which agent?"),
        (["train", "dreamer-v4"], "did you mean dreamer-v3"),
        (["train", "dreamer-v3", "--preset", "13m"], "unknown preset '13m'"),
        (["train", "dreamer-v3", "--env", "gymnax/Catch"], "gymnax/Catch-bsuite"),
        (["train", "dreamer-v3", "--env", "atari/Pnog"], "atari/Pong"),
        (["train", "dreamer-v3", "--env-option", "sticky"], "NAME=VALUE"),
        (["train", "dreamer-v3", "--env", "atari/Pong", "--env-option", "stiky=0.25"], "sticky"),
        (["train", "dreamer-v3", "--members", "0"], "members must be a whole number of at least 1"),
        (["train", "dreamer-v3", "--steps", "0"], "steps must be a whole number of at least 1"),
        (["train", "dreamer-v3", "--capacity", "20"], "replay holds only 5"),
        (["eval", "/nonexistent"], "is no run directory"),
        (["resume", "/nonexistent"], "is no run directory"),
        (["sweep", "nothing.py"], "no experiment nothing.py"),
    ],
)
def test_bad_input_is_one_line_that_names_the_way_out(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--deter", "33"], "must be a multiple of blocks"),
        (["--stps", "100"], "--steps"),
        (["--lr", "fast"], "--lr"),
    ],
)
def test_the_parser_explains_wrong_settings(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "dreamer-v3", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and "Traceback" not in error


def test_settings_name_what_is_unknown():
    with pytest.raises(ValueError, match="did you mean entropy"):
        agents.settings("dreamer-v3", "nano", entrop=1.0)


def test_a_run_without_checkpoint_is_named(tmp_path):
    settings = agents.settings("dreamer-v3", "nano")
    plan = run.Plan("dreamer-v3", "gymnax/Catch-bsuite", settings, 400)
    rundir.create(tmp_path / "r")
    rundir.write_config(tmp_path / "r", plan.to_json())
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        run.load(tmp_path / "r")
    assert run.Plan.from_json(rundir.read_config(tmp_path / "r")) == plan
