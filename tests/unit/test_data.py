"""Recordings: written, described, read side by side, and refused where they do not fit."""

import json

import jax
import numpy as np
import pytest

from jaxwm import data
from jaxwm.data import Episode
from jaxwm.data.recording import ABOUT
from jaxwm.types import Box, Discrete, MultiDiscrete, Spec


def spec(obs=None, action=Discrete(3)) -> Spec:
    return Spec("toy/Count", obs or jax.ShapeDtypeStruct((2,), np.float32), action, max_steps=5)


def episode(number: int, length: int, terminal: bool = True) -> Episode:
    """Observation: the episode's number and the time; reward: the time; action: number % 3."""
    time = np.arange(length, dtype=np.float32)
    obs = np.stack([np.full(length, number, np.float32), time], 1)
    return Episode(obs, time, np.full(length, number % 3, np.int32), terminal)


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "recording"
    assert data.append(out, spec(), [episode(0, 4), episode(1, 3, False)], "toy/Count") == 7
    assert data.append(out, spec(), [episode(2, 5)], "toy/Count") == 12
    return out


def test_what_was_written_is_read(folder):
    source = data.open_data(folder)
    assert (source.rows, source.num_envs, source.env, source.spec) == (12, 1, "toy/Count", spec())
    rows = jax.tree.map(lambda x: x[:, 0], source.read(0, 12))
    starts = np.flatnonzero(rows.is_first)
    assert sorted(rows.obs[starts, 0]) == [0, 1, 2] and (rows.obs[starts, 1] == 0).all()
    assert (rows.is_last == np.append(rows.is_first[1:], True)).all()
    ends = {int(n): bool(t) for n, t in zip(rows.obs[rows.is_last, 0], rows.is_terminal[rows.is_last], strict=True)}
    assert ends == {0: True, 1: False, 2: True}
    assert (rows.reward == rows.obs[:, 1]).all() and (rows.action == rows.obs[:, 0] % 3).all()
    assert rows.extras is None and rows.action.dtype == np.int32


def test_streams_are_cut_and_begin_again(folder):
    source = data.open_data(folder, streams=2)
    assert source.rows == 6
    rows = source.read(0, 18)
    assert rows.is_first[[0, 6, 12]].all() and rows.is_last[[5, 11, 17]].all()
    jax.tree.map(np.testing.assert_array_equal, source.read(0, 6), source.read(12, 6))
    assert not rows.is_terminal[5, 0] or rows.obs[5, 0, 1] in (3, 4)  # a cut is no end


def test_the_order_is_the_seeds(folder):
    first = [data.open_data(folder, seed=seed).read(0, 12).obs for seed in (0, 0, 1, 2)]
    assert np.array_equal(first[0], first[1])
    assert not all(np.array_equal(first[0], other) for other in first[2:])


def test_some_episodes_are_kept_apart(tmp_path):
    data.append(tmp_path / "r", spec(), [episode(i, 2) for i in range(40)])
    seen = [set(data.open_data(tmp_path / "r", held_out=h).read(0, 80).obs[..., 0].ravel()) for h in (False, True)]
    assert len(seen[0]) == 38 and len(seen[1]) == 2 and not seen[0] & seen[1]


SPACES = (None, Discrete(4), MultiDiscrete((2, 3)), Box(2))


@pytest.mark.parametrize("action", SPACES, ids=str)
def test_every_space_and_several_sensors(action, tmp_path):
    obs = {"image": jax.ShapeDtypeStruct((4, 4, 1), np.uint8), "flag": jax.ShapeDtypeStruct((2,), np.bool_)}
    shape = {Box: (3, 2), MultiDiscrete: (3, 2)}.get(type(action), (3,))
    actions = None if action is None else np.ones(shape, np.float32 if isinstance(action, Box) else np.int32)
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1)
    made = Episode({"image": images, "flag": np.ones((3, 2), bool)}, np.zeros(3, np.float32), actions, True)
    data.append(tmp_path / "r", spec(obs, action), [made])
    source = data.open_data(tmp_path / "r")
    assert source.spec == spec(obs, action)
    rows = source.read(0, 3)
    assert (rows.obs["image"][:, 0] == images).all() and (rows.action is None) == (action is None)


def test_another_recording_is_not_mixed_in(folder, tmp_path):
    with pytest.raises(ValueError, match="another action"):
        data.append(folder, spec(action=Discrete(4)), [episode(0, 2)], "toy/Count")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds other files"):
        data.append(tmp_path / "thesis", spec(), [episode(0, 2)])


def damage(folder, name, array):
    np.save(folder / "000" / f"{name}.npy", array)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "000" / "action.npy").unlink(), "action.npy is missing"),
        (lambda f: (f / "000" / "obs.npy").write_bytes(b"nothing"), "obs.npy is damaged"),
        (lambda f: damage(f, "obs", np.zeros((7, 2), np.float64)), r"float64\[2\] per record, expected float32\[2\]"),
        (lambda f: damage(f, "obs", np.zeros((7, 3), np.float32)), r"float32\[3\] per record"),
        (lambda f: damage(f, "obs", np.zeros((6, 2), np.float32)), "differ in length"),
        (lambda f: damage(f, "length", np.array([4, 2])), "differ in length"),
        (lambda f: damage(f, "terminal", np.array([True])), "do not describe the same episodes"),
        (lambda f: damage(f, "reward", np.full(7, np.nan, np.float32)), "not finite"),
        (lambda f: (f / ABOUT).write_text("{"), "is damaged"),
        (lambda f: (f / ABOUT).write_text(json.dumps({"format": 9})), "no recording of format 1"),
        (lambda f: (f / ABOUT).unlink(), "holds no recording"),
    ],
)
def test_damage_is_named(folder, harm, message):
    harm(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.open_data(folder)


def test_too_few_records_for_the_streams(folder):
    with pytest.raises(ValueError, match="12 records, fewer than 13 streams"):
        data.open_data(folder, streams=13)


def test_pickled_arrays_are_refused(folder):
    np.save(folder / "000" / "reward.npy", np.array([{}] * 7, object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"reward\.npy is damaged"):
        data.open_data(folder)


def test_numbers_that_are_not_finite_are_taken_as_0_and_told_once(folder):
    obs = np.load(folder / "000" / "obs.npy")
    obs[[1, 5], 1] = np.nan, np.inf
    damage(folder, "obs", obs)
    source = data.open_data(folder)
    with pytest.warns(UserWarning, match="not finite, in 2 of the 12 records read by now: each is taken as 0") as told:
        rows = source.read(0, 12)
        again = source.read(12, 12)
    assert len(told) == 1 and np.isfinite(rows.obs).all() and np.array_equal(rows.obs, again.obs)
    assert (rows.obs[:, 0, 1] == 0).sum() == 5  # three first records, and these two


def test_actions_of_recordings_are_inside_the_space(folder, tmp_path):
    damage(folder, "action", np.full(7, 3, np.int32))
    with pytest.raises(ValueError, match="is outside of 0 to 2"):
        data.open_data(folder).read(0, 12)
    made = Episode(np.zeros((2, 2), np.float32), np.zeros(2, np.float32), np.array([[7], [np.nan]], np.float32), True)
    data.append(tmp_path / "box", spec(action=Box(1)), [made])
    with pytest.warns(UserWarning, match="not finite"), pytest.warns(UserWarning, match="are clipped"):
        assert data.open_data(tmp_path / "box").read(0, 2).action.ravel().tolist() == [1, 0]


def test_a_recording_keeps_that_it_is_one_hot(tmp_path):
    states = Spec("toy/States", jax.ShapeDtypeStruct((3,), np.bool_), Discrete(3), one_hot=True)
    made = Episode(np.eye(3, dtype=bool), np.zeros(3, np.float32), np.zeros(3, np.int32), True)
    data.append(tmp_path / "r", states, [made])
    assert data.open_data(tmp_path / "r").spec == states
    damage(tmp_path / "r", "obs", np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], bool))
    with pytest.raises(ValueError, match="expected one-hot"):
        data.open_data(tmp_path / "r").read(0, 3)


def test_a_mask_that_allows_nothing_allows_everything(tmp_path):
    obs = {"x": jax.ShapeDtypeStruct((1,), np.float32), "legal": jax.ShapeDtypeStruct((3,), np.bool_)}
    masks = np.array([[1, 0, 1], [0, 0, 0]], bool)
    made = Episode({"x": np.zeros((2, 1), np.float32), "legal": masks}, *np.zeros((1, 2), np.float32),
                   np.zeros(2, np.int32), True)  # fmt: skip
    data.append(tmp_path / "r", spec(obs), [made])
    assert data.open_data(tmp_path / "r").read(0, 2).obs["legal"][:, 0].tolist() == [[True, False, True], [True] * 3]
