"""Sweeps on Ray with real processes: killed drivers and workers, tasks that fail, two sweeps in one directory."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from waiting import checkpoints, wait_for

from jaxwm import Plan, agents
from jaxwm.__main__ import main
from jaxwm.run import cluster, directory, json_files, sweep
from jaxwm.run.directory import EVALUATION

pytest.importorskip("ray")

EXPERIMENT = '''
from jaxwm import agents
from jaxwm import Plan

SETTINGS = dict(deter=16, hidden=16, units=16, stoch=2, classes=4, blocks=2, envs=2, batch_size=4, batch_length=8,
                imag_length=3, train_ratio=4.0, prefill=64)

def runs(count: int = 3, steps: int = 2000, bad: tuple[str, ...] = ()):
    """Catch with several seeds.

    Args:
        count: Seeds, each a run of its own.
    """
    settings = agents.settings("dreamer-v3", "nano", **SETTINGS)
    plan = lambda seed, env: Plan("dreamer-v3", env, settings, steps, 1, seed, 5, gauge=0, checkpoint_minutes=0.005)
    return {f"seed{i}": plan(i, "gymnax/Catch-bsuite") for i in range(count)} | {b: plan(0, f"gymnax/{b}") for b in bad}
'''


@pytest.fixture
def experiment(tmp_path) -> Path:
    file = tmp_path / "catch.py"
    file.write_text(EXPERIMENT)
    return file


def start(file: Path, root: Path, *flags: str) -> subprocess.Popen:
    call = [sys.executable, "-m", "jaxwm", "sweep", str(file), "--root", str(root), "--no-report", *flags]
    environment = os.environ | {"JAXWM_CHUNK_SECONDS": "0.2"}
    return subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=600)
    return out


def workers(root: Path) -> list[int]:
    """Processes of tasks that are not finished, by what they wrote into their logs."""
    found = []
    for log in logs(root):
        started = re.findall(r"process (\d+)$", log.read_text(), re.MULTILINE)
        if started and not (root / log.stem / EVALUATION).exists():
            found.append(int(started[-1]))
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


def results(root: Path) -> dict[str, tuple[list, list]]:
    """Scores of all episodes and of the evaluation, by task."""
    found = {}
    for file in root.glob(f"*/{EVALUATION}"):
        evaluation = json.loads(file.read_text())
        found[file.parent.name] = (json_files.read_jsonl(file.parent / directory.SCORES), evaluation["trained"])
    return found


def starts(root: Path) -> int:
    """How often a task was begun or gone on with."""
    return sum(len(re.findall(r"process \d+$", log.read_text(), re.MULTILINE)) for log in logs(root))


def logs(root: Path) -> list[Path]:
    return list(root.glob(f"{sweep.LOGS}/*.txt"))


def killed_again_and_again(file: Path, root: Path, flags: list[str], drivers: int) -> list[str]:
    """A sweep whose workers are killed and, as often as `drivers` says, its driver; what each call said."""
    said = []
    for _ in range(drivers):
        driver, before = start(file, root, *flags), checkpoints(root)
        try:
            wait_for(lambda before=before: workers(root) and checkpoints(root) > before)
            victims, before = workers(root), starts(root)
            os.kill(victims[len(said) % len(victims)], signal.SIGKILL)
            wait_for(lambda before=before: starts(root) > before)  # another worker goes on with it, or with the next
        finally:
            driver.kill()
            said.append(driver.communicate()[0])
    last = start(file, root, *flags)
    said.append(finish(last))
    assert last.returncode == 0, said
    return said


def check_kills(experiment: Path, tmp_path: Path, flags: list[str], drivers: int) -> None:
    said = killed_again_and_again(experiment, tmp_path / "killed", flags, drivers)
    assert "attempt 2 of 3 goes on from its checkpoint" in " ".join(said[0].split()), said
    assert any("resumed at" in log.read_text() for log in logs(tmp_path / "killed"))
    calm = start(experiment, tmp_path / "calm", *flags, "--no-ray")
    assert "is not installed" not in (text := finish(calm)) and calm.returncode == 0, text
    expected, found = results(tmp_path / "calm"), results(tmp_path / "killed")
    assert len(expected) == int(flags[1]) and found == expected, said
    # A call after the last one finds nothing to do.
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed").glob(f"*/{EVALUATION}")}
    again = start(experiment, tmp_path / "killed", *flags)
    finish(again)
    assert again.returncode == 0 and stamps == {file: file.stat().st_mtime_ns for file in stamps}


@pytest.mark.slow
def test_a_killed_sweep_ends_as_if_nothing_had_happened(experiment, tmp_path):
    check_kills(experiment, tmp_path, ["--count", "2", "--steps", "1200"], drivers=1)


@pytest.mark.slow
def test_six_tasks_killed_several_times(experiment, tmp_path):
    check_kills(experiment, tmp_path, ["--count", "6", "--steps", "6000"], drivers=3)


@pytest.mark.parametrize("name", agents.AGENTS)
def test_a_run_of_the_same_plan_is_gone_on_with(name, tmp_path):
    """Whatever of a plan JSON has no word for; a run of another plan is refused, with what differs."""
    entry = agents.find(name)
    plan = Plan(
        name, entry.env, agents.settings(name), entry.steps, 2, start="runs/first", start_parts=("enc", "dyn"),
        freeze=("enc",), imports=("own.py",), env_options={"size": 4},
    )  # fmt: skip
    directory.write_config(directory.create(tmp_path / "task"), plan.to_json())
    sweep.check({"task": plan, "not begun": plan}, tmp_path)
    with pytest.raises(ValueError, match=r"was made by another plan .*seed: 0 there, 1 now"):
        sweep.check({"task": replace(plan, seed=1)}, tmp_path)


def test_what_fits_is_counted_machine_by_machine():
    small, large = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 4.0}
    assert cluster._side(1, 1, [small, small, large]) == 6 and cluster._side(3, 0, [small, large]) == 6
    assert cluster._side(1, 2, [small, small, large]) == 2
    with pytest.raises(ValueError, match="a task wants 1 cores and 2 GPUs, the machines have 4 cores and 1 GPUs, 4"):
        cluster._side(1, 2, [small, small])
    plan = SimpleNamespace(plan=SimpleNamespace(shards=4))
    assert cluster._gpus([plan], None, [large]) == 4 and cluster._gpus([plan], None, [{"CPU": 2.0}]) == 0  # type: ignore
    with pytest.raises(ValueError, match="has 4 shards, each on a GPU of its own: --gpus 4"):
        cluster._gpus([plan], 2, [large])  # type: ignore


@pytest.mark.slow
def test_failing_tasks_leave_the_others_alone_and_ctrl_c_saves(experiment, tmp_path):
    root, flags = tmp_path / "runs", ["--count", "1", "--steps", "20000", "--bad", "Nothing"]
    first = start(experiment, root, *flags)
    wait_for(lambda: checkpoints(root))
    first.send_signal(signal.SIGINT)
    out = finish(first)
    assert first.returncode == 1 and "the same command goes on from here" in out, out
    assert "stopped and saved" in (root / sweep.LOGS / "seed0.txt").read_text()
    assert not results(root)

    second = start(experiment, root, *flags)
    wait_for(lambda: workers(root))
    third = start(experiment, root, *flags)
    assert "is working on the sweep in" in finish(third) and third.returncode == 2
    out = finish(second)
    assert second.returncode == 1, "one task failed"
    assert "Nothing failed: ValueError: unknown environment 'gymnax/Nothing'" in " ".join(out.split()), out
    assert "attempt 2" not in out, "bad input fails the same way again"
    assert "resumed at" in (root / sweep.LOGS / "seed0.txt").read_text() and list(results(root)) == ["seed0"]


def test_bad_addresses_and_wishes_are_one_line(experiment, tmp_path, capsys):
    arguments = ["sweep", str(experiment), "--root", str(tmp_path / "runs")]
    assert main([*arguments, "--address", "127.0.0.1:1"]) == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err
    for flags, text in [
        (["--retries", "-1"], "--retries must be"),
        (["--cores", "0"], "--cores must be"),
        (["--gpus", "-2"], "--gpus must be"),
        (["--no-ray", "--address", "auto"], "a cluster (auto) needs Ray"),
    ]:
        assert main([*arguments, *flags]) == 2
        assert text in capsys.readouterr().err


def test_help_shows_the_flags_of_the_experiment(experiment, capsys):
    with pytest.raises(SystemExit):
        main(["sweep", str(experiment), "--help"])
    out = capsys.readouterr().out
    assert "--address" in out and "--count" in out and "Seeds, each a run of its own." in out


def test_tasks_in_one_process(experiment, tmp_path, monkeypatch, capsys):
    """A task that fails for no reason of its own is tried again; one that fails for good does not stop the others."""
    calls: list[str] = []

    def perform(plan, folder, console):
        calls.append(folder.name)
        if folder.name == "seed0" and calls.count("seed0") < 2:
            raise RuntimeError("a device was lost")
        if folder.name == "seed1":
            raise ValueError("no such thing")
        if folder.name == "seed2":  # as evaluations were before scores had names
            return dict(trained=[3.0, 1.0], random=[0.0, 0.0], env_steps=5, seconds=60.0)
        scores = {"return": {"trained": [1.0, 2.0], "random": [0.25, 0.0]}, "squared error": {"trained": [0.5]}}
        return dict(scores=scores, env_steps=5, seconds=60.0)

    monkeypatch.setattr(sweep, "perform", perform)
    out = sweep.sweep(sweep.plans(experiment), tmp_path / "runs", retries=1, console=Console(width=160))
    assert calls == ["seed0", "seed0", "seed1", "seed2"]
    assert list(out.results) == ["seed0", "seed2"] and out.failures == {"seed1": "ValueError: no such thing"}
    text = capsys.readouterr().out
    assert "seed1 failed: ValueError: no such thing" in text and "return 1.00 2.00 after 5 steps" in text

    def cells(name):
        rows = [line.split("│")[3:] for line in text.splitlines() if name in line and "│" in line]
        return [[cell.strip() for cell in row if cell.strip()] for row in rows]

    first = [["return", "1", "1.50", "1.00", "0.12", "1.00"], ["squared error", "1", "0.50", "0.50", "1.00"]]
    assert cells("seed0") == first
    assert cells("seed2") == [["return", "1", "2.00", "1.00", "0.00", "1.00"]]
