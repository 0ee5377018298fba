"""The tables of README.md and docs/ are those of results/*.json; commands with a goal reach it again (slow)."""

import json
import re
import shlex
import subprocess
import sys
from decimal import Decimal

import pytest

from docs import record, tables
from jaxwm import agents

FILES = sorted((tables.ROOT / "results").glob("*.json"))
EVERY = tables.rows()
GOALS = [row for row in EVERY if row["goal"] is not None and str(row["command"]).startswith("jaxwm train")]
GOALS = [row for row in GOALS if row["table"] != "offline"]  # which begin with a recording, or with another run
PRINTED = {match[2]: match[3] for page in tables.pages() for match in tables.BLOCK.finditer(page.read_text())}


def test_pages_are_up_to_date(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_schema(path):
    row = json.loads(path.read_text())
    assert list(row) == list(tables.FIELDS) and row["name"] == path.stem
    assert row["table"] in tables.TABLES and row["source"]
    assert row["system"] is None or row["system"] in agents.AGENTS
    assert tables.transcribed(row) or all(row[name] for name in ("command", "date", "device", "versions"))
    if row["scores"]:
        assert row["score"] == min(row["scores"]) and row["seeds"] == len(row["scores"])


def test_every_system_has_a_row_in_the_readme():
    assert set(tables.SYSTEMS) == set(agents.AGENTS)
    assert all(f"docs/systems/{name}.md" in PRINTED["systems"] for name in tables.SYSTEMS)


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_printed_and_says_what_was_transcribed(name):
    shown = PRINTED[name]
    for row in (row for row in EVERY if row["table"] == name):
        line = tables.draw(tables.TABLES[name].columns, [row]).splitlines()[2]
        assert tables.transcribed(row) == (tables.DAGGER in line)
        assert not tables.transcribed(row) or f"{tables.DAGGER} copied from {row['source']}" in shown


def test_numbers_keep_their_decimals():
    assert [tables.number(x) for x in (Decimal("1.00"), Decimal("0.98333"), -1250, None)] == [
        "1.00",
        "0.98",
        "-1250",
        "",
    ]


def test_a_changed_score_makes_the_page_stale():
    name, text = "dreamer-v3", f"<!-- table: dreamer-v3 -->\n\n{tables.block('dreamer-v3', EVERY)}\n\n<!-- /table -->"
    assert tables.renewed(text, EVERY) == text
    changed = [row | {"score": Decimal("0.5")} if row["table"] == name else row for row in EVERY]
    assert "**0.5**" in tables.renewed(text, changed)


@pytest.mark.parametrize("text", ["<!-- table: nonsense -->\n<!-- /table -->", "<!-- table: systems -->\n"])
def test_unknown_and_open_blocks_are_refused(text):
    with pytest.raises(ValueError, match=r"unknown table|closing"):
        tables.renewed(text, EVERY)


def test_pages_link_to_pages_that_exist():
    for page in tables.pages():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_a_run_renews_its_row(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    old = (tables.ROOT / "results" / "dreamer-v3-catch.json").read_text()
    (path := tmp_path / "results" / "dreamer-v3-catch.json").write_text(old)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record.subprocess, "check_output", lambda *_, **__: "0123abc\n")
    run = {"agent": "dreamer-v3", "env": "gymnax/Catch-bsuite", "jax": "0.10.2", "jaxwm": "0.1.0"}
    scores = {"trained": [1.0, 0.98], "random": [-0.7, -0.61], "env_steps": 6000, "updates": 2872, "seconds": 108.4}
    (tmp_path / "config.json").write_text(json.dumps(run))
    (tmp_path / "evaluation.json").write_text(json.dumps(scores | {"episodes": 100}))
    assert record.main([str(tmp_path), "dreamer-v3-catch"]) == 0
    new = json.loads(path.read_text(), parse_float=Decimal)
    assert list(new) == list(tables.FIELDS) and not tables.transcribed(new)
    assert tables.score(new) == "**0.98** (1.00 0.98)" and new["wall"] == "1.8 min"
    assert new["command"] == "jaxwm train dreamer-v3" and tables.number(new["random"]) == "-0.70"
    (tmp_path / "config.json").write_text(json.dumps(run | {"env": "minatar/Breakout"}))
    assert record.main([str(tmp_path), "dreamer-v3-catch"]) == 2 and "minatar/Breakout" in capsys.readouterr().out


def test_commands_name_the_system_and_environment():
    for row in GOALS:
        system = row["command"].split()[2]
        shown = row["environment"] in row["command"] or row["environment"] == agents.find(system).env
        assert system == row["system"] and shown, row["name"]


@pytest.mark.slow
@pytest.mark.parametrize("row", GOALS, ids=[row["name"] for row in GOALS])
def test_command_reaches_its_goal(row, tmp_path):
    call = [sys.executable, "-m", "jaxwm", *shlex.split(row["command"])[1:], "--run", str(tmp_path / "run")]
    subprocess.run(call, check=True, timeout=3600)
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    times = re.fullmatch(r"(\d+)x random", str(row["goal"]))
    needed = float(times[1]) * max(result["random"]) if times else float(row["goal"])
    assert result["episodes"] == row["episodes"] and len(result["trained"]) == row["seeds"]
    assert min(result["trained"]) >= needed > max(result["random"])
