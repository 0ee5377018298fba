"""Checkpoints that are damaged, of another config, the best, or that find no room: nothing is lost, all is said."""

import resource
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from toys import counting_env, marked, toy_agent

from jaxwm.run.checkpoint import DIGEST, Checkpoints
from jaxwm.training.life import Cursor
from jaxwm.training.trainer import Trainer

STEPS = (8, 16, 24)


def mark(state) -> float:
    return float(np.asarray(jax.tree.leaves(state.params)[0]).ravel()[0])


@pytest.fixture(scope="module")
def life():
    return Trainer(toy_agent(), counting_env(4), members=2, capacity=40).init(0)


@pytest.fixture(scope="module")
def saved(life, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder, keep=3) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, marked(life, step), Cursor(1, step), {"offsets": {}})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run" / "checkpoints")


def files(folder, step=STEPS[-1]):
    """Files of a checkpoint, by a name that is the same in every run."""
    paths = [path for path in sorted((folder / str(step)).rglob("*")) if path.is_file()]
    return [path for path in paths if path.name != DIGEST]


def test_learning_without_new_steps_is_saved(life, tmp_path):
    """What was saved is not saved twice; what was learned since is, although the environment stood still."""
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(8, marked(life, 1), Cursor(1, 1), {})
        checkpoints.save(8, marked(life, 2), Cursor(1, 1), {})
        checkpoints.wait()
        assert checkpoints.steps() == [8]
        checkpoints.save(8, marked(life, 3), Cursor(2, 0), {})
        checkpoints.wait()
        restored = checkpoints.restore(life)
        assert (mark(restored.life.agent), restored.cursor) == (3, Cursor(2, 0))
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        cursor = checkpoints.restore(life).cursor
        checkpoints.save(8, marked(life, 4), cursor, {})
        checkpoints.save(8, marked(life, 5), Cursor(2, 7), {})
        checkpoints.wait()
        assert mark(checkpoints.restore(life).life.agent) == 5


def test_every_file_has_a_checksum(saved, life):
    assert len(files(saved)) > 15
    with Checkpoints(saved, writing=False) as checkpoints:
        restored = checkpoints.restore(life)
    assert (mark(restored.life.agent), restored.cursor, restored.about, restored.step) == (
        24,
        (1, 24),
        {"offsets": {}},
        24,
    )


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.unlink()], ids=["flip", "truncate", "delete"])
def test_a_damaged_checkpoint_is_passed_over(folder, life, damage):
    """Each file in turn, looking only: the checkpoint before it is taken, and that is said."""
    for number in range(len(files(folder))):
        path = files(folder)[number]
        if path.stat().st_size == 0:
            continue
        content = path.read_bytes()
        damage(path)
        with pytest.warns(UserWarning, match=r"/24 is damaged \(.*going back to the one at step 16"):
            with Checkpoints(folder, writing=False) as checkpoints:
                checkpoints.check({"agent": life.agent})  # no complaint about shapes that are only damaged
                state, step = checkpoints.restore_agent(life.agent)
        assert (mark(state), step) == (16, 16), path
        path.write_bytes(content)


def test_a_resumed_run_moves_a_damaged_checkpoint_away(folder, life):
    flip(max(files(folder), key=lambda path: path.stat().st_size))
    with Checkpoints(folder) as checkpoints:
        with pytest.warns(UserWarning, match="It was moved to"):
            assert checkpoints.restore(life).step == 16
        assert checkpoints.steps() == [8, 16]
        assert (folder.parent / "damaged" / "24").is_dir()
        checkpoints.save(24, marked(life, 99), Cursor(), {})
        assert mark(checkpoints.restore(life).life.agent) == 99


def test_without_checksums_a_checkpoint_still_loads_or_is_passed_over(folder, life):
    """The program was killed after the files were complete and before their checksums were."""
    (folder / "24" / DIGEST).unlink()
    with Checkpoints(folder, writing=False) as checkpoints:
        assert checkpoints.restore_agent(life.agent)[1] == 24
    (folder / "24" / "agent" / "_METADATA").write_text("{")
    with pytest.warns(UserWarning, match="24 is damaged"), Checkpoints(folder, writing=False) as checkpoints:
        assert checkpoints.restore_agent(life.agent)[1] == 16


def test_if_all_are_damaged_that_is_the_error(folder, life):
    for step in STEPS:
        flip(folder / str(step) / "agent" / "_METADATA")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match=r"can be read: 24, 16, 8 damaged"):
        with Checkpoints(folder, writing=False) as checkpoints:
            checkpoints.restore_agent(life.agent)


def test_a_checkpoint_of_another_config_is_no_damage(folder):
    other = Trainer(toy_agent(), counting_env(4), members=3, capacity=40).init(0)
    with Checkpoints(folder) as checkpoints, pytest.raises(ValueError, match=r"does not fit its config\.json"):
        checkpoints.restore(other)
    assert (folder / "24").is_dir()


def test_missing_and_unknown_checkpoints_are_named(tmp_path, saved, life):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoints.restore(life)
    with Checkpoints(saved, writing=False) as checkpoints, pytest.raises(ValueError, match="best and 8, 16, 24"):
        checkpoints.restore_agent(life.agent, "17")


def test_the_newest_and_the_best_are_kept(tmp_path, life):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, score in ((1, -5.0), (2, 7.0), (3, 6.0), (4, 5.0), (5, float("-inf"))):
            checkpoints.save(step, marked(life, step), Cursor(), {}, score)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.restore_agent(life.agent, "best")[1] == 2
        assert checkpoints.restore_agent(life.agent, "4")[1] == 4
        checkpoints.save(5, marked(life, 6), Cursor(), {})  # the same step again: nothing to do
        assert mark(checkpoints.restore_agent(life.agent)[0]) == 5


FULL = """
import resource, signal, sys, warnings
from pathlib import Path
import numpy as np
from toys import counting_env, marked, toy_agent
from jaxwm.run.checkpoint import Checkpoints
from jaxwm.training.life import Cursor
from jaxwm.training.trainer import Trainer

life = Trainer(toy_agent(), counting_env(4), members=2, capacity=400_000).init(0)
noise = np.random.default_rng(0).random(life.ring.data.reward.shape, np.float32)  # does not compress
life = life._replace(rings={"real": life.ring._replace(data=life.ring.data._replace(reward=noise))})
with warnings.catch_warnings(record=True) as seen, Checkpoints(Path(sys.argv[1])) as checkpoints:
    warnings.simplefilter("always")
    checkpoints.save(1, marked(life, 1), Cursor(), {})
    checkpoints.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    for step in (2, 3):
        checkpoints.save(step, marked(life, step), Cursor(), {})
        checkpoints.wait()
    assert checkpoints.steps() == [1], checkpoints.steps()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    checkpoints.save(4, marked(life, 4), Cursor(), {})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 4], checkpoints.steps()
    assert checkpoints.failed == 2
told = [str(w.message) for w in seen if "could not be written" in str(w.message)]
assert len(told) == 1 and "training goes on, the last good one is at step 1" in told[0], told
left = sorted(path.name for path in Path(sys.argv[1]).iterdir())
assert left == ["1", "4"], left
print("fine:", told[0])
"""


def test_writing_that_fails_costs_a_checkpoint_and_not_the_run(tmp_path):
    """Files may not grow: every save fails in the middle, and works again when there is room."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "checkpoints")], cwd="tests/helpers", capture_output=True, text=True
    )
    assert run.returncode == 0 and "fine:" in run.stdout, run.stderr[-3000:]
