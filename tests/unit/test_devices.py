"""Several devices: the same results as one, members that never talk, a replay that is never gathered."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fast import assert_same_metrics

from jaxwm import agents, envs
from jaxwm.training.trainer import Trainer


def measured(*words: str) -> dict:
    """What `devices.py` measured, in a process of its own: JAX counts its devices when it starts."""
    tests = Path(__file__).parents[1]
    command = [sys.executable, str(tests / "helpers" / "devices.py"), *words]
    path = os.pathsep.join([str(tests.parent), str(tests / "unit"), os.environ.get("PYTHONPATH", "")])
    environ = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found():
    return measured("runs")


STEPS = [
    "pets", "planet", "dreamer-v1", "dreamer-v2", "barlow", "vision", "memory", "alphazero", "muzero", "efficientzero",
    "storm-model", "storm-behaviour", "tokenizer", "tokens", "frames", "block", "real", "painter", "outcome", "lasting",
    "sac", "ppo",
]  # fmt: skip


@pytest.mark.slow
def test_a_gradient_step_of_four_devices_is_that_of_one():
    """Whether each holds all of the batch or a quarter: the moments, the feedback, the metrics; `pmap` is a loop."""
    for name, found in measured("steps", *STEPS).items():
        for how, apart in found["apart"].items():
            assert not far(apart, 2e-5), (name, how)
        assert not far(found["pmap"], 2e-5), name
        expected, *others = found["metrics"]
        for metrics in others:
            assert_same_metrics(metrics, expected)
        assert found["between"] == 0 and found["moved"] > 1e-5, name


def far(apart: dict[str, float], limit: float) -> dict[str, float]:
    return {path: value for path, value in apart.items() if not value <= limit}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["held", "quarters", "compiler"])
def test_four_devices_make_one_update_of_their_parts(found, how):
    """Whether each holds all of the batch or its quarter, or the compiler places it: the update of one device."""
    assert found["devices"] == 4 and found["moved"] > 1e-4
    assert found["flips"] == [0, 0, 0], "rounding flipped a latent: what follows cannot be compared, choose other noise"
    apart = found["apart"][how]
    moments = {path: value for path, value in apart.items() if path.endswith(".first")}
    # Every entry of the first moment is divided by its own size, which magnifies the rounding of small gradients.
    assert len(apart) > 50 and not far(moments, 1e-4)
    assert not far({path: value for path, value in apart.items() if path not in moments}, 1e-6)


@pytest.mark.slow
def test_devices_end_with_the_same_state_and_metrics(found):
    assert found["between"] == 0, "the devices ended with different states"
    assert_same_metrics(*found["metrics"])


@pytest.mark.slow
def test_gradients_are_those_of_one_device(found):
    """Each tensor to 1e-5 of its largest entry (those that nearly cancel), the bulk of them to 1e-6."""
    gradients = found["gradients"]
    assert len(gradients) > 50 and not far(gradients, 1e-5)
    assert len(far(gradients, 1e-6)) < 0.2 * len(gradients), far(gradients, 1e-6)


@pytest.mark.slow
def test_pmap_is_a_loop_over_members(found):
    pmap = {path: value for path, value in found["pmap"].items() if not path.endswith(".first")}  # see above
    assert len(pmap) > 50 and not far(pmap, 1e-6)


@pytest.mark.slow
def test_members_on_four_devices_are_those_on_one_and_never_talk(found):
    assert found["updates"] > 0 and found["members of a device"] == [1, 1, 1, 1]
    assert found["population"] < 1e-6
    assert found["talk"] == []


@pytest.mark.slow
def test_shards_hold_their_part_of_the_replay_and_never_gather_it(found):
    assert found["held"] == [[1, 211, 1]] * 4
    assert found["shared updates"] > 0 and found["replay gathered"] == []
    assert found["sharded updates"] > 5 and found["finite"] and found["skipped"] == 0


def test_devices_share_updates_that_are_work_enough():
    """Floating-point operations decide, not parameters; who says what the choice was, as a resumed run does, has it."""
    found = measured("sharing")
    work = {"small": 2 * 100**3 / 1e9, "large": 2 * 1200**3 / 1e9}
    for case, (_, _, counted) in found.items():
        assert counted == pytest.approx(work[case.split(",")[0]]), case
    assert {case: (shared, copies) for case, (shared, copies, _) in found.items()} == {
        "small": (False, 1),
        "small, with many parameters": (False, 1),
        "large": (True, 4),
        "large, of two members": (True, 2),
        "large, of four members": (None, 1),  # each has a device of its own: there is nothing to decide
        "large, but said not to be": (False, 1),
        "small, but said to be large": (True, 4),
    }


@pytest.mark.parametrize(
    ("shards", "envs_", "batch", "text"),
    [(2, 4, 4, "2 shards do not divide 1 devices"), (3, 4, 3, "3 shards do not divide 4 environments")],
)
def test_shards_that_do_not_divide_are_refused(shards, envs_, batch, text):
    import jax

    env = envs.make("gymnax/Catch-bsuite", num_envs=envs_)
    agent = agents.make("dreamer-v3", env.spec, preset="nano", batch_size=batch, envs=envs_)
    devices = jax.devices() * (1 if shards == 2 else 3)
    with pytest.raises(ValueError, match=text):
        Trainer(agent, env, 1, 1000, shards=shards, devices=devices)
