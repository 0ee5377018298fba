"""The program `jaxwm`, also as `python -m jaxwm`.

What needs no JAX is answered here, in a tenth of the time that importing it would take: the help, the version, the
list. Everything else is `jaxwm.cli`."""

import json
import os
import sys
import tomllib
from importlib.resources import files

import jaxwm

USAGE = """jaxwm: world-model reinforcement learning in JAX

  jaxwm list [AGENT]             systems, presets and environments; how one system sees, predicts, acts, and its order
  jaxwm train AGENT [--help]     train a population, evaluate it, keep everything in a run directory
  jaxwm resume RUN [--help]      go on with a run that was stopped, or train a finished one longer
  jaxwm eval RUN [--help]        score a checkpoint next to a random policy
  jaxwm dream RUN [--help]       what its world model dreams next to what happens: video, plots, error by horizon
  jaxwm watch RUN [--help]       a video of its policy
  jaxwm play RUN [--help]        a board game against it, in the terminal
  jaxwm record [RUN] [--help]    write episodes of a policy, or of random play, for `jaxwm train AGENT --data DIR`
  jaxwm data WORD PATH [--help]  recordings of any format: WORD is info, convert or show
  jaxwm report RUN...            a page with figures and tables about runs, side by side, or about an experiment
  jaxwm export RUN [--help]      write a run's weights as one safetensors file
  jaxwm push RUN NAME [--help]   share its weights with a card: in a folder (./NAME), or on the Hugging Face hub
  jaxwm pull NAME [DIR]          fetch a model that was pushed; eval, watch, dream, serve and train --from take it
  jaxwm serve RUN [--help]       answer other programs over a socket: observations in, actions out
  jaxwm studio [RUN...]          all of this in a browser: play in dreams, compare runs, see a maze being learned
  jaxwm sweep FILE [--help]      run all of an experiment file that is not finished yet, on every device
  jaxwm --version

Start with: jaxwm train dreamer-v3"""

HELP = (["-h"], ["--help"])


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status (0 fine, 1 stopped by a signal, 2 bad input, 130 interrupted)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if answered(arguments):
            return 0
    except BrokenPipeError:  # `jaxwm list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    from jaxwm import cli

    return cli.main(arguments)


def answered(arguments: list[str]) -> bool:
    """Print what needs no JAX; whether that was all that was asked."""
    if not arguments or arguments in (*HELP, ["help"]):
        print(USAGE)
    elif arguments in (["--version"], ["version"]):
        print(f"jaxwm {jaxwm.__version__}")
    elif arguments == ["list"] or (arguments[0] == "list" and arguments[1:] in HELP):
        _list()
    elif arguments[0] == "train" and arguments[1:] in HELP:
        systems = _systems()
        width = max(map(len, systems))
        print("usage: jaxwm train AGENT [--help] [OPTIONS]\n\nAGENT is one of")
        print("\n".join(f"  {name:<{width}}  {row['summary']}" for name, row in systems.items()))
        print("\n`jaxwm train AGENT --help` explains every flag.")
    else:
        return False
    sys.stdout.flush()
    return True


def _systems() -> dict[str, dict]:
    """What `jaxwm.agents.table()` has, read from the same file."""
    return json.loads(files("jaxwm").joinpath("agents/table.json").read_text(encoding="utf-8"))


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table("agent", "presets", "what it is")
    for name, row in _systems().items():
        table.add_row(name, ", ".join(row["presets"]), row["summary"] + "; baseline" * row["baseline"])
    console.print(table)
    listed = tomllib.loads(files("jaxwm").joinpath("envs/tasks.toml").read_text(encoding="utf-8"))
    for suite, tasks in sorted(listed.items()):
        names = sorted(tasks.split())  # some are too long for a column
        console.print(f"\n[bold]{suite}[/]  {len(names)}  {', '.join(names)}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
