"""The command line without runs: listing and help. Real runs are in test_runs.py, wrong input in test_bad_input.py."""

import pytest

from jaxwm import cli

COMMANDS = ("resume", "eval", "dream", "watch", "play", "report", "export", "sweep")


def test_listing(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "dreamer-v3" in out and "Catch-bsuite" in out and "nano" in out


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["train", "dreamer-v3", "--help"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_teaches(arguments, capsys):
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr().out
    assert status == 0 and ("jaxwm" in out.split("\n")[0] or "usage" in out.split("\n")[0]) and len(out) > 80
