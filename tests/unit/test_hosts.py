"""Two processes in one run, on this machine: the same scores as one process, stopped by either and resumed."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from waiting import checkpoints, wait_for

from jaxwm.__main__ import main
from jaxwm.run import directory, json_files, machine
from jaxwm.training import processes

SIZES = (
    "--deter 16 --hidden 16 --units 16 --stoch 2 --classes 4 --blocks 2 --batch-size 4 --batch-length 8 --imag-length 3"
)
PLAN = f"--preset nano {SIZES} --envs 2 --train-ratio 4 --prefill 64 --members 2 --episodes 4 --checkpoint-minutes 0.01"


def start(*arguments: str) -> subprocess.Popen:
    call = [sys.executable, "-m", "jaxwm", *arguments]
    environment = os.environ | {"JAXWM_CHUNK_SECONDS": "0.2"}
    return subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start_two(*arguments: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = ("--coordinator", f"127.0.0.1:{port}", "--processes", "2")
    return [start(*arguments, *meet, "--process", str(i)) for i in range(2)]


def finish(processes: list[subprocess.Popen], status: int) -> list[str]:
    texts = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), "\n\n".join(texts)
    return texts


def train(env: str, steps: int, folder: Path) -> list[str]:
    return ["train", "dreamer-v3", "--env", env, "--steps", str(steps), *PLAN.split(), "--run", str(folder)]


@pytest.mark.slow
def test_two_processes_are_one_run_that_either_may_stop(tmp_path):
    steps, one, two = 900, tmp_path / "one", tmp_path / "two"
    pair = start_two(*train("gymnax/Catch-bsuite", steps, two))
    try:
        wait_for(lambda: checkpoints(tmp_path))
        pair[1].send_signal(signal.SIGTERM)  # not the one that writes
        first, second = finish(pair, 1)
    finally:
        for process in pair:
            process.kill()
    assert "stopped and saved" in first and "steps" not in second
    assert len(json_files.read_jsonl(two / directory.SCORES)) < 170
    first, _ = finish(start_two("resume", str(two)), 0)
    assert "resumed at" in first and "trained (greedy)" in first

    finish([start(*train("gymnax/Catch-bsuite", steps, one))], 0)
    scores = json_files.read_jsonl(one / directory.SCORES)
    assert {row["member"] for row in scores} == {0, 1} and scores == json_files.read_jsonl(two / directory.SCORES)


def test_an_error_of_the_first_process_ends_all(tmp_path):
    """A directory that is taken is seen by the first process alone; the others do not wait for it."""
    (tmp_path / "thesis.tex").touch()
    first, second = finish(start_two(*train("gymnax/Catch-bsuite", 100, tmp_path)), 2)
    assert "is not empty" in first and "the first process of this run could not start" in second


def test_an_array_of_this_process_alone_is_its_own_part(monkeypatch):
    """Where several processes evaluate, each plays for all members."""
    monkeypatch.setattr(processes, "several", lambda: True)
    actions = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(processes.local_part(actions), actions)


@pytest.mark.slow
def test_host_environments_run_beside_their_members(tmp_path):
    """Every process steps the environments of its own members."""
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start_two(*train("classic/CartPole-v1", 600, two)), 0)
    finish([start(*train("classic/CartPole-v1", 600, one))], 0)
    scores = json_files.read_jsonl(one / directory.SCORES)
    assert len(scores) > 20 and {row["member"] for row in scores} == {0, 1}
    assert scores == json_files.read_jsonl(two / directory.SCORES)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--processes 2", "need --coordinator HOST:PORT"),
        ("--coordinator 127.0.0.1:1", "--coordinator needs --processes and --process"),
        ("--coordinator 127.0.0.1:1 --processes 2 --process 2", "--process counts from 0 to 1, got 2"),
    ],
)
def test_incomplete_flags_are_one_line(flags, text, tmp_path, capsys):
    assert main([*train("gymnax/Catch-bsuite", 100, tmp_path / "run"), *flags.split()]) == 2
    assert text in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_cluster_variables_stand_for_flags(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(machine.COORDINATOR, "127.0.0.1:1")
    monkeypatch.setenv(machine.PROCESSES, "two")
    assert main(train("gymnax/Catch-bsuite", 100, tmp_path / "run")) == 2
    assert "JAX_NUM_PROCESSES must be a whole number, not 'two'" in capsys.readouterr().err
    monkeypatch.setenv(machine.PROCESSES, "2")
    assert main(train("gymnax/Catch-bsuite", 100, tmp_path / "run")) == 2
    assert "needs --processes and --process" in capsys.readouterr().err
