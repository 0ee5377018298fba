"""Tasks opened and played in child processes, so that one that ends its process does not end the test.

python tests/helpers/opening.py STEPS NAME ...      # prints one JSON line for each: name, problem or null

A name may be followed by whole numbers as options: "dmc/CheetahRun pixels=16"."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 120.0
"""Seconds after which a task that says nothing has failed."""


def play(name: str, steps: int, **options: Any) -> None:
    """Open two of `name`, take `steps` random steps, and hold the stream to the contract."""
    import jax
    import numpy as np
    from worlds import actions, check_step, check_stream, host_roll

    from jaxwm import envs
    from jaxwm.nets.sensors import kinds

    env = envs.make(name, num_envs=2, **options)
    assert env.spec.name == name
    kinds(env.spec.obs)  # encoders can see all of it
    action = actions(env.spec.action, (steps, 1, 2), np.random.default_rng(0))
    taken = host_roll(env, jax.random.split(jax.random.key(0), 1), action)
    check_step(jax.tree.map(lambda x: x[0], taken), env.spec, (1, 2))
    check_stream(taken)
    assert np.isfinite(taken.reward).all()


def problems(names: list[str], steps: int) -> dict[str, str]:
    """The tasks of `names` that cannot be played, with the reason in a line; a new child takes over where one ends."""
    found: dict[str, str] = {}
    while names:
        done, reason = _child(names, steps)
        found |= {name: problem for name, problem in done.items() if problem}
        names = names[len(done) :]
        if names and reason:
            found[names[0]] = reason
            names = names[1:]
    return found


def _child(names: list[str], steps: int) -> tuple[dict[str, str | None], str]:
    """What a child says of the first of `names`, and why it ended before the last."""
    command = [sys.executable, __file__, str(steps), *names]
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    done: dict[str, str | None] = {}
    reason = ""
    try:
        while len(done) < len(names):
            line = _line(child)
            if line is None:
                reason = f"says nothing for {PATIENCE:.0f} s"
                break
            if not line:
                reason = f"ends the process: {_last(child)}"
                break
            if line.startswith("{"):
                done |= json.loads(line)
    finally:
        os.killpg(child.pid, signal.SIGKILL)  # with what it started
        child.communicate()
    return done, reason


def _line(child: subprocess.Popen) -> str | None:
    """The next line, "" at the end, None where it does not come."""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        return child.stdout.readline() if selector.select(PATIENCE) else None


def _last(child: subprocess.Popen) -> str:
    time.sleep(0.2)
    lines = [line.strip() for line in child.stderr.read().splitlines() if line.strip()]
    return lines[-1][:200] if lines else "without a word"


def main(steps: str, *names: str) -> None:
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    for name in names:
        try:
            task, *options = name.split()
            play(task, int(steps), **{key: int(value) for key, value in (option.split("=") for option in options)})
            problem = None
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        print(json.dumps({name: problem}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
