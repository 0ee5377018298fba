"""The README's table: every printed command, run again, reaches its goal with each of its seeds."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jaxwm import agents

README = (Path(__file__).parent.parent / "README.md").read_text()
ROW = re.compile(r"^\| ([\w/-]+) \| ([^|]+) \| [^\n]*`jaxwm (train [^`]+)` \|$", re.MULTILINE)
"""environment | goal | ... | `jaxwm train ...` |"""

ROWS = ROW.findall(README)


def test_the_table_is_read():
    assert [name for name, _, _ in ROWS] == [
        "gymnax/Catch-bsuite",
        "gymnax/CartPole-v1",
        "gymnax/Pendulum-v1",
        "minatar/Breakout",
        "probe/Recall",
        "gymnax/Catch-bsuite",
        "minatar/Breakout",
        "gymnax/Pendulum-v1",
        "gymnax/Pendulum-v1",
        "dmc/CartpoleSwingup",
        "continuous/CartPole",
        "gymnax/Pendulum-v1",
        "continuous/Ledge",
        "vizdoom/TakeCover",
        "gymnax/Catch-bsuite",
        "gymnax/CartPole-v1",
        "gymnax/Pendulum-v1",
        "gymnax/Catch-bsuite",
        "minatar/Breakout",
        "pgx/TicTacToe",
        "pgx/ConnectFour",
    ]
    for name, _, command in ROWS:
        agent = command.split()[1]
        assert name in command or ("--env" not in command and name == agents.find(agent).env)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "goal", "command"), ROWS, ids=[row[0] for row in ROWS])
def test_command_reaches_its_goal(name, goal, command, tmp_path):
    call = [sys.executable, "-m", "jaxwm.cli", *shlex.split(command), "--run", str(tmp_path / "run")]
    subprocess.run(call, check=True, timeout=3600)
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    times = re.fullmatch(r"(\d+)x random", goal.strip())
    needed = float(times[1]) * max(result["random"]) if times else float(goal)
    given = re.search(r"--episodes (\d+)", command)
    assert result["episodes"] == (int(given[1]) if given else 100) and len(result["trained"]) == 3
    assert min(result["trained"]) >= needed > max(result["random"])
