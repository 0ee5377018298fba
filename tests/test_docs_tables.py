"""The tables of README.md and docs/ are those of results/*.json."""

import json
import re
from decimal import Decimal

import pytest

from docs import tables
from jaxwm import agents

FILES = sorted((tables.ROOT / "results").glob("*.json"))
EVERY = tables.rows()
PRINTED = {match[2]: match[3] for page in tables.pages() for match in tables.BLOCK.finditer(page.read_text())}


def test_pages_are_up_to_date(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_schema(path):
    row = json.loads(path.read_text())
    assert list(row) == list(tables.FIELDS) and row["name"] == path.stem
    assert row["table"] in tables.TABLES and row["source"]
    assert row["system"] is None or row["system"] in agents.AGENTS
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
        assert not tables.transcribed(row) or f"{tables.DAGGER} {row['source']}" in shown


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
