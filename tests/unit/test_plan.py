"""A plan is parsed from words, stored as JSON and printed as a command: all of them are the same plan."""

import importlib
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from jaxwm import Plan, agents
from jaxwm.run import directory, flags, sweep
from jaxwm.run.plan import parse

PLANS = [(name, preset) for name, entry in agents.AGENTS.items() for preset in entry.presets]


def words(plan: Plan) -> list[str]:
    """What a shell hands over of a printed command, after `jaxwm train`."""
    program, train, *rest = shlex.split(plan.command("jaxwm"))
    assert (program, train) == ("jaxwm", "train")
    return rest


def through_json(plan: Plan) -> Plan:
    return Plan.from_json(json.loads(json.dumps(plan.to_json())))


@pytest.mark.parametrize(("name", "preset"), PLANS)
def test_every_preset_there_and_back(name, preset):
    plan = Plan(name, agents.find(name).env, agents.settings(name, preset), 4000, 2, 5)
    assert parse(words(plan)).plan == plan == through_json(plan)


HARD = {
    "vary": {"lr": [1e-3, 3e-4]},
    "env_options": {"sticky": 0.25, "life_loss": "terminal", "text": "a b", "number": "0.25", "flag": True, "n": None},
    "score_options": {"opponent": "minimax", "side": "it's first"},
    "imports": ("my.envs",),
    "keep": 3,
    "shards": 2,
    "log": ("tensorboard", "csv"),
    "checkpoint_minutes": 0.25,
    "gauge": 0,
}


def test_the_flag_and_the_entry_from_before_there_were_other_sinks():
    plan = Plan("dreamer-v3", "atari/Pong", agents.settings("dreamer-v3"), 40)
    old = {name: value for name, value in plan.to_json().items() if name != "log"}
    for said, log in ((True, ("tensorboard",)), (False, ())):
        assert Plan.from_json({**old, "tensorboard": said}) == replace(plan, log=log)
    assert parse([*words(plan), "--tensorboard"]).plan == replace(plan, log=("tensorboard",))
    both = parse([*words(plan), "--log", "csv,trackio", "--tensorboard"]).plan
    assert both.log == ("csv", "trackio", "tensorboard")


@pytest.mark.parametrize("changed", [*HARD, "everything"])
def test_every_entry_there_and_back(changed):
    settings = agents.settings("dreamer-v3", "12m", online=False, lr=1e-3, dtype="bfloat16", imag_length=3)
    entries = HARD if changed == "everything" else {changed: HARD[changed]}
    plan = Plan("dreamer-v3", "atari/Pong", settings, 40, 2, 7, 5, **entries)
    assert parse(words(plan)).plan == plan == through_json(plan)


def test_recordings_and_weights_there_and_back(tmp_path):
    folder, run = str(tmp_path / "a folder"), str(tmp_path / "run (1)")
    settings = agents.settings("dreamer-v3")
    entries = dict(updates=30, data=folder, start=run, start_parts=("enc", "dyn"), freeze=("enc",))
    for env in ("gymnax/Catch-bsuite", None):
        plan = Plan("dreamer-v3", env, settings, **entries)
        assert parse(words(plan)).plan == plan == through_json(plan)


def test_the_nearest_preset_is_named():
    settings = agents.settings("dreamer-v3", "12m", online=False)
    found = words(Plan("dreamer-v3", "atari/Pong", settings, 40))
    assert found[:5] == ["dreamer-v3", "--preset", "12m", "--env", "atari/Pong"] and "--no-online" in found


def test_settings_by_their_old_names(tmp_path):
    for name, entry in agents.AGENTS.items():
        for old, new in entry.renamed.items():
            value = getattr(agents.settings(name), new)
            flag = f"--{old.replace('_', '-')}"
            given = [flag, *map(str, value)] if isinstance(value, tuple) else [flag, str(value)]
            if old not in Plan.__dataclass_fields__:  # --updates is the length of a run now
                assert getattr(parse([name, *given]).plan.settings, new) == value
            config = Plan(name, entry.env, agents.settings(name), 10).to_json()
            config["settings"][old] = config["settings"].pop(new)
            assert Plan.from_json(config).settings == agents.settings(name)


def test_what_a_plan_refuses():
    settings = agents.settings("dreamer-v3")
    for entries, message in (
        (dict(env=None, steps=5), "which environment"),
        (dict(env="a/B"), "how long"),
        (dict(env="a/B", data="x", steps=5), "takes --updates N"),
        (dict(env="a/B", data="x", steps=5, updates=5), "not --steps"),
        (dict(env="a/B", steps=5, start_parts=("enc",)), "say which with --from"),
        (dict(env="a/B", steps=5, freeze="enc"), "several names"),
    ):
        with pytest.raises(ValueError, match=message):
            Plan("dreamer-v3", settings=settings, **entries)


def test_components_may_be_named_with_commas():
    plan = parse(["dreamer-v3", "--from", "run", "--from-parts", "enc,dyn", "dec", "--freeze", "enc,dyn"]).plan
    assert plan.start_parts == ("enc", "dyn", "dec") and plan.freeze == ("enc", "dyn")


@pytest.mark.parametrize("value", [1, 0.5, True, None, "text", "0.5", "a b", "it's", "None", "[1", (1, 2), [1, "a"]])
def test_options_there_and_back(value):
    assert flags.option(f"name={flags.literal(value)}") == ("name", value)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        parse(["dreamer-v3", "--help"])
    out = capsys.readouterr().out
    assert "nano (default)" in out and "--from RUN" in out and "(default: None)" not in out


def test_old_files_are_read(tmp_path):
    """A config.json from before there were recordings: it has no entries for them."""
    config = Plan("dreamer-v3", "gymnax/Catch-bsuite", agents.settings("dreamer-v3"), 400).to_json()
    for name in ("updates", "data", "start", "start_parts", "freeze", "imports"):
        del config[name]
    directory.write_config(tmp_path, config)
    assert Plan.from_json(directory.read_config(tmp_path)).steps == 400


EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("[a-z]*.py"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_imports_and_its_plans_are_commands(file):
    if not hasattr(importlib.import_module(f"experiments.{file.stem}"), "runs"):
        return
    for plan in sweep.plans(file).values():
        assert parse(words(plan)).plan == plan
