"""The command line without runs: listing and help. Real runs are in test_runs.py, wrong input in test_bad_input.py."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jaxwm import agents, cli, envs
from jaxwm.__main__ import main
from jaxwm.run import checkpoint, directory, machine

COMMANDS = ("resume", "eval", "dream", "watch", "play", "report", "export", "push", "pull", "serve", "studio", "sweep")


def test_listing(capsys):
    """All systems with their presets, and all environments but those that somebody registered."""
    assert main(["list"]) == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(agents.AGENTS) <= set(words) and set(agents.find("dreamer-v3").presets) <= set(words)
    for suite, tasks in envs.names().items():
        assert suite in ("my", "t", "toy") or {suite, str(len(tasks)), *tasks} <= set(words), suite


def test_what_needs_no_jax_does_not_import_it():
    program = """
import sys
from jaxwm.__main__ import main
for words in ([], ["--help"], ["--version"], ["list"], ["list", "--help"], ["train", "--help"]):
    assert main(words) == 0
heavy = {"jax", "flax", "numpy", "tyro"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, timeout=100)


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["train", "dreamer-v3", "--help"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_teaches(arguments, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr().out
    assert status == 0
    if arguments[1:]:
        assert out.startswith(f"usage: jaxwm {' '.join(arguments[:-1])} [-h]") and "--" in out.split("[-h]")[1]
    else:
        assert all(f"jaxwm {command}" in out for command in COMMANDS)


def test_printed_commands_are_words_of_a_shell(tmp_path):
    """Paths with spaces, quotes and brackets."""
    folder = tmp_path / "it's my run (1)"
    printed = cli._next(cli._after_training(folder, "gymnax/Catch-bsuite")).splitlines()
    printed = [line for line in printed if "my run" in line]
    assert len(printed) == 4 and all(str(folder) in shlex.split(line) for line in printed)
    directory.create(folder)
    (folder / directory.CONFIG).write_text("{}")
    texts = [checkpoint._nothing(folder / "checkpoints"), directory._occupied(folder)]
    for text in texts:
        command = text.split("`")[1]
        assert shlex.split(command) == [*shlex.split(machine.program()), "resume", str(folder)]


def test_printed_commands_name_the_program(monkeypatch):
    monkeypatch.setattr(machine, "program", lambda: "'/my tools/jaxwm'")
    assert "  '/my tools/jaxwm' eval run " in cli._next(cli._after_training(Path("run"), "pgx/TicTacToe"))


def test_an_unknown_environment_shows_the_way_to_ones_own(capsys):
    assert cli.main(["train", "dreamer-v3", "--env", "my/Stay", "--preset", "nano", "--steps", "300"]) == 2
    assert "--import FILE.py" in capsys.readouterr().err
