"""Every task of envpool's suites, opened and played for a few steps in child processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from opening import problems

from jaxwm import envs
from jaxwm.envs import opengl
from jaxwm.envs.tasks import VERSIONED

PAGE = Path(__file__).parent.parent.parent / "docs" / "environments.md"


def told(suite: str) -> set[str]:
    """Tasks of a suite that docs/environments.md lists among those that cannot be played."""
    part = PAGE.read_text(encoding="utf-8").partition("## Tasks that cannot be played")[2].partition("\n## ")[0]
    return set(re.findall(rf"`({suite}/[^`]+)`", part))


@pytest.mark.parametrize("suite", ["atari", "dmc", *sorted(VERSIONED)])
@pytest.mark.slow
def test_every_task_can_be_played_or_is_said_not_to(suite: str):
    found = problems([f"{suite}/{task}" for task in envs.names()[suite]], steps=20)
    assert set(found) == told(suite), found


@pytest.mark.skipif(opengl.missing() != "", reason="pixels of MuJoCo need OpenGL")
@pytest.mark.slow
def test_every_task_of_dmc_can_be_drawn():
    assert problems([f"dmc/{task} pixels=48" for task in envs.names()["dmc"]], steps=2) == {}


def test_tasks_that_are_said_not_to_work_exist():
    for suite in VERSIONED:
        assert told(suite) <= {f"{suite}/{task}" for task in envs.names()[suite]}


@pytest.mark.slow
def test_a_problem_costs_one_task_only():
    found = problems(["toy/Nowhere", "toy/Taxi"], steps=3)
    assert set(found) == {"toy/Nowhere"} and "unknown environment" in found["toy/Nowhere"]
