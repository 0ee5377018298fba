"""The page about all systems says what the code does; schedules in words."""

from functools import partial

import pytest

from docs.lineage import COMMAND, PAGE, page
from jaxwm import agents, envs
from jaxwm.__main__ import main
from jaxwm.report import lineage
from jaxwm.schedule import in_words, segments
from jaxwm.types import FOREVER, Collect, Load, Repeat, Train


def test_the_page_is_what_the_code_prints():
    assert PAGE.read_text() == page(), f"renew the page: {COMMAND}"


@pytest.mark.parametrize("name", agents.AGENTS)
def test_every_system_says_what_it_is(name):
    entry = agents.find(name)
    for text in (entry.sees, entry.predicts, entry.acts, entry.paper):
        assert text and len(text) < 100 and not text.endswith("."), f"{name}: half a line each, please: {text!r}"
    assert 1950 < entry.year < 2100 and entry.default in entry.presets
    assert segments(lineage.schedule(name), 1), "the example's environment suits the system"


def quarter(steps):
    """One for every four steps.

    More of this.
    """
    return steps // 4


def settled(metrics):
    return metrics["loss"] < 1


def unsaid(most, metrics):
    return metrics["loss"] < most


def test_schedules_in_words():
    inner = Repeat(20, (Collect(1), Train("policy", quarter), Train("model", 5000, settled)))
    last = (Load(30), Train("value"), Train("all", lambda steps: steps), Train("all", quarter, partial(unsaid, 3)))
    schedule = (Collect(2000, "random", fresh=True), Repeat(FOREVER, (inner, Collect(8, "greedy"))), *last)
    assert in_words(schedule) == [
        "collect 2,000 environment steps, at random, in new episodes",
        "repeat forever:",
        "    repeat 20 times:",
        "        collect 1 environment step",
        "        quarter(steps) x policy",
        "        at most 5,000 x model, until settled(metrics)",
        "    collect 8 environment steps, greedily",
        "load 30 rows of the recordings",
        "1 x value",
        "updates(steps) x all",
        "at most quarter(steps) x all, until unsaid(metrics)",
    ]


def test_the_order_follows_the_settings():
    spec = envs.make("tabular/DynaMaze").spec
    for planning, expected in ((0, ["1 x real"]), (5, ["1 x real", "1 x plan"])):
        found = in_words(agents.make("dyna-q", spec, planning=planning).schedule)
        assert found[2:-1] == [f"    {line}" for line in expected]


def test_the_command_line_describes_a_system(capsys):
    assert main(["list", "dyna-q"]) == 0
    out = capsys.readouterr().out
    assert "Sutton" in out and "repeat forever:" in out and "plus: planning=50, step_size=1.0, bonus=0.001" in out
    assert lineage.command("dyna-q") in out
    assert main(["list", "dyna"]) == 2 and "did you mean dyna-q" in capsys.readouterr().err
    assert main(["list", "dyna-q", "dreamer-v3"]) == 2 and "one agent or nothing" in capsys.readouterr().err
