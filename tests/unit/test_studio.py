"""Dreams next to the truth: alignment, baselines, ends of episodes, and the files that are written."""

import functools
import json
from itertools import islice

import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from toys import counting_env, on_host, toy_agent

from jaxwm import agents, cli, envs
from jaxwm.envs import from_functions, registry
from jaxwm.run import directory, load
from jaxwm.run.checkpoint import Checkpoints
from jaxwm.run.plan import Plan
from jaxwm.studio import dream, episodes, figures, names, paper, pictures, video, watch
from jaxwm.studio.study import errors, imagine, mean_and_band, verdict
from jaxwm.training.host import EnvironmentDied
from jaxwm.training.life import Cursor
from jaxwm.types import Agent, Box, Discrete, Dream, MultiDiscrete, Spec

LENGTH = 12
VERMILLION = (213, 94, 0)
KEY = jax.random.key(0)


def render(place):
    """The observation of a place `[...]`: numbers, planes and an image."""
    column = jnp.arange(7) == (place[..., None] % 7)
    grid = jnp.broadcast_to(column[..., None, :, None], (*place.shape, 4, 7, 2))
    image = jnp.broadcast_to(place[..., None, None, None].astype(jnp.uint8) * 3, (*place.shape, 16, 16, 3))
    return {"grid": grid, "image": image, "x": place[..., None].astype(jnp.float32)}


def walk(num_envs, length=LENGTH):
    """A deterministic line: the action (0, 1 or 2) is added to the place; the reward is half the new place."""
    shape = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype)  # noqa: E731
    spec = Spec("toy/Walk", jax.tree.map(shape, render(jnp.int32(0))), Discrete(3), length)

    def reset(key):
        place = jax.random.randint(key, (), 0, 20)
        return (place, 0), render(place)

    def step(key, state, action):
        place, time = state[0] + action, state[1] + 1
        return (place, time), render(place), 0.5 * place, time >= length, False

    return from_functions(spec, reset, step, num_envs)


def walker(late=0, blind=False, see=True) -> Agent:
    """Acts at random and dreams perfectly; `late` takes actions from another step, `blind` ignores them."""

    def act(state, carry, step, key, mode):
        action = jax.random.randint(key, step.reward.shape, 0, 3)
        return carry, jnp.ones_like(action) if mode == "greedy" else action, {}

    def imagine(state, context, actions, key, horizon):
        taken = jnp.roll(jnp.ones_like(actions) if blind else actions, late, 1)
        place = context.obs["x"][:, -1].astype(jnp.int32) + jnp.cumsum(taken, 1)
        return Dream(render(place) if see else None, 0.5 * place, jnp.ones(place.shape), actions, place)

    return Agent(lambda key, hyper: {}, lambda state, n: (), act, {}, imagine, (), {})


def recorded(agent=None, env=None, rows=60):
    plays = episodes.play(agent or walker(), env or walk(8), {}, KEY)
    out = episodes.record(islice(plays, rows))
    plays.close()
    return out


@functools.cache
def records():
    """60 rows of eight walks; what the agent dreams does not matter here."""
    return recorded()


def study(agent, context=3, horizon=6, count=32, played=None):
    window, valid = episodes.windows(played or records(), context, horizon, count, np.random.default_rng(0))
    return imagine(agent, {}, window, valid, KEY)


def mean_errors(agent, **options):
    found = errors(walk(1).spec, study(agent, **options))
    return {name: {k: mean_and_band(e)[0] for k, e in curves.items()} for name, (_, curves) in found.items()}


# --- Alignment and baselines --------------------------------------------------------------------------------------


def test_a_perfect_model_has_no_error_at_any_horizon():
    for name, curves in mean_errors(walker()).items():
        assert np.all(curves["dream"] == 0), name
        assert np.all(curves["shuffled"][1:] > 0) and np.all(curves["copy"][1:] > 0), name


@pytest.mark.parametrize("late", [1, -1])
def test_a_model_that_is_one_action_off_is_found_out(late):
    for name, curves in mean_errors(walker(late)).items():
        assert np.all(curves["dream"][:-1] > 0), name


def test_a_model_without_actions_is_as_good_under_any():
    for curves in mean_errors(walker(blind=True)).values():
        np.testing.assert_array_equal(curves["dream"], curves["shuffled"])
        assert curves["dream"].max() > 0


def test_copying_keeps_the_last_observation_of_the_context():
    found = study(walker())
    _, curves = errors(walk(1).spec, found)["reward"]
    reward = found.window.reward
    np.testing.assert_allclose(curves["copy"], np.abs(reward[:, 3:] - reward[:, 2:3]))
    np.testing.assert_allclose(curves["shuffled"], np.abs(found.shuffled.reward - reward[:, 3:]))


def test_errors_have_the_units_of_their_sensors():
    found = study(walker(blind=True))
    measured = errors(walk(1).spec, found)
    apart = np.abs(found.dream.obs["x"] - found.window.obs["x"][:, 3:])[..., 0]
    np.testing.assert_allclose(measured["x"][1]["dream"], apart / found.window.obs["x"].std(), rtol=1e-5)
    np.testing.assert_allclose(measured["image"][1]["dream"], 3 * apart / 255, rtol=1e-5)
    np.testing.assert_allclose(measured["grid"][1]["dream"], np.where(apart % 7 > 0, 2 / 7, 0), rtol=1e-5)


# --- Episodes and windows -----------------------------------------------------------------------------------------


def test_pure_and_host_environments_give_the_same_records():
    jax.tree.map(np.testing.assert_array_equal, recorded(env=counting_env(4)), recorded(env=on_host(counting_env(4))))


def test_play_closes_a_host_environment():
    closed = []
    plays = episodes.play(walker(), on_host(counting_env(2))._replace(close=closed.append), {}, KEY)
    next(plays)
    plays.close()
    assert len(closed) == 1


def test_windows_stay_inside_episodes_where_they_can():
    window, valid = episodes.windows(records(), 3, 6, 40, np.random.default_rng(0))
    assert window.reward.shape == (40, 9) and valid.all()
    assert not window.is_first[:, 1:].any()
    starts = window.obs["x"][:, 0, 0] - 2 * window.reward[:, 0]  # 0 unless the window starts with an episode
    assert (starts == 0).any() and len(np.unique(window.obs["x"][:, 0])) > 5


def test_steps_after_an_end_do_not_count():
    window, valid = episodes.windows(records(), 3, 6, 10_000, np.random.default_rng(0))
    over = np.cumsum(window.is_first[:, 3:], 1) > 0
    np.testing.assert_array_equal(valid, ~over)
    assert over.any() and not window.is_last[:, 2].any()
    counted = window.is_last[:, 3:][valid]
    assert counted.any()  # the last record of an episode is dreamed like any other
    for curves in mean_errors(walker(), count=10_000).values():
        assert np.nanmax(curves["dream"]) == 0
    first = errors(walk(1).spec, study(walker(), count=10_000))["x"][1]["dream"]
    assert np.isnan(first[~valid[: len(first)]]).all()


def test_short_episodes_shorten_the_dream():
    assert episodes.fit(records(), 3, 6) == (3, 6)
    assert episodes.fit(records(), 8, 45) == (3, 10)  # 13 records an episode
    assert episodes.fit(recorded(env=walk(4, length=1)), 8, 45) == (2, 1)


def test_one_step_episodes_are_dreamed_from_a_context_that_begins_before_them():
    found = study(walker(), 2, 1, played=recorded(env=walk(4, length=1)))
    assert found.valid.all() and found.window.is_first[:, 1].all()


def test_too_short_a_recording_is_an_error():
    with pytest.raises(ValueError, match="--context or --horizon smaller"):
        episodes.windows(recorded(rows=8), 4, 6, 3, np.random.default_rng(0))


def test_first_episodes_end_where_they_end():
    played = episodes.episodes(recorded(env=counting_env(3), rows=4))
    assert [len(p.reward) for p in played] == [4, 4, 4]
    assert [p.is_last[-1] for p in played] == [False, False, True]


def dying(num_envs, at=(8,)):
    """A host walk whose simulator dies at these calls of `step`, over all its lives."""
    env, calls = on_host(walk(num_envs)), [0]

    def step(handle, action):
        calls[0] += 1
        if calls[0] in at:
            raise RuntimeError("segmentation fault")
        return env.step(handle, action)

    return env._replace(step=step)


def test_a_simulator_that_dies_is_built_again():
    with pytest.warns(UserWarning, match="toy/Walk died .*segmentation fault.*restarted"):
        rows = recorded(env=dying(2), rows=30)
    assert np.flatnonzero(rows.is_first[:, 0]).tolist() == [0, 8, 21] and not rows.is_last[7].any()
    played = episodes.episodes(rows)  # what died is left out, and a whole episode is shown
    assert [len(p.reward) for p in played] == [LENGTH + 1] * 2 and all(p.is_last[-1] for p in played)
    assert [p.is_first[0] for p in played] == [True, True]
    window, valid = episodes.windows(rows, 3, 6, 40, np.random.default_rng(0))
    assert not (window.is_first[:, 3:] & valid).any()


def test_a_simulator_may_die_while_it_is_built_again():
    env, builds = dying(2), [0]

    def reset(keys):
        builds[0] += 1
        if builds[0] == 2:
            raise OSError("no more processes")
        return env.reset(keys)

    with pytest.warns(UserWarning, match="restarted") as caught:
        rows = recorded(env=env._replace(reset=reset), rows=30)
    assert "no more processes): restarted, 2 times" in str(caught[-1].message)
    assert builds == [3] and np.flatnonzero(rows.is_first[:, 0]).tolist() == [0, 8, 21]


def test_a_simulator_that_dies_again_and_again_is_an_error():
    with pytest.warns(UserWarning, match="restarted"), pytest.raises(EnvironmentDied, match="after 3 restarts"):
        recorded(env=dying(1, at=range(5, 100)), rows=30)


# --- Pictures -----------------------------------------------------------------------------------------------------


def test_planes_have_colours_and_stacks_show_the_newest_frame():
    planes = np.zeros((2, 2, 2), bool)
    planes[0, 0, 0] = planes[1, 1] = True
    seen = pictures.see(planes)
    assert tuple(seen[0, 0]) == (230, 159, 0) and tuple(seen[1, 1]) == (86, 180, 233)
    assert tuple(seen[0, 1]) == pictures.FLOOR
    stack = np.arange(12, dtype=np.uint8).reshape(1, 1, 12)
    assert pictures.see(stack).tolist() == [[[9, 10, 11]]]
    assert pictures.see(stack[..., :4]).tolist() == [[[3, 3, 3]]]


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1", "MountainCar-v0", "Acrobot-v1"])
def test_known_tasks_are_drawn(task):
    spec = envs.make(f"gymnax/{task}").spec
    painter = pictures.painter(spec, 64)
    obs = [np.full(spec.obs.shape, x, np.float32) for x in (0.0, 0.4)]
    one, two = map(painter.paint, obs)
    wrong = (painter.compare(*obs) == VERMILLION).all(-1)
    assert wrong.any() and not (wrong & (one == two).all(-1)).any()
    assert one.shape == (64, 64, 3) and one.dtype == np.uint8 and (one != two).any()


def test_numbers_are_everything_that_is_no_picture():
    labels, values = pictures.numbers(jax.tree.map(lambda x: x[:5], records().obs), walk(1).spec)
    assert labels == ["x"] and values.shape == (5, 8, 1)
    flags = {"b": jax.ShapeDtypeStruct((2,), bool), "legal": jax.ShapeDtypeStruct((3,), bool)}
    obs = {name: np.ones((5, *shape.shape), bool) for name, shape in flags.items()}
    labels, values = pictures.numbers(obs, Spec("toy/Flags", flags, Discrete(3)))
    assert labels == ["b[0]", "b[1]"] and values.shape == (5, 2)


def test_errors_of_planes_are_wrong_cells():
    spec = Spec("minatar/Breakout", jax.ShapeDtypeStruct((10, 10, 4), bool), Discrete(3))
    painter = pictures.painter(spec, 100)
    truth, guess = np.zeros((2, 10, 10, 4), bool)
    guess[2, 3, 1] = guess[2, 3, 2] = truth[5, 5, 0] = True
    error = painter.compare(truth, guess)
    assert error.shape == (100, 100, 3)
    wrong = (error.reshape(10, 10, 10, 10, 3)[:, 0, :, 0] == VERMILLION).all(-1)
    assert np.argwhere(wrong).tolist() == [[2, 3], [5, 5]]
    assert [word for _, word in painter.colours] == ["paddle", "ball", "trail", "brick"]
    assert [word for _, word in painter.errors] == ["wrong cell"]
    assert tuple(painter.colours[1][0][5, 5]) == (86, 180, 233), "the ball's colour in the picture"


def test_tokens_of_a_frame_are_a_row_below_its_error():
    """Equal tokens have equal colours, others have others; without tokens there is no such row."""
    tokens = np.array([[3, 3, 70], [255, 70, 3]])
    shown = pictures.token_map(tokens, (40, 60, 3))
    assert shown.shape == (40, 60, 3)
    cells = shown[10::20, 10::20].reshape(6, 3)
    same = (cells[:, None] == cells).all(-1)
    np.testing.assert_array_equal(same, tokens.ravel()[:, None] == tokens.ravel())
    plain = study(walker(), count=2)
    drawn = plain._replace(dream=plain.dream._replace(latent={"tokens": np.zeros((2, 6, 2, 3), int)}))
    painter = pictures.painter(walk(1).spec, 64)
    heights = {len(dream.sheet([dream.column(painter, each, 0, 4, "")])) for each in (plain, drawn)}
    assert plain.dream.latent == {} and len(heights) == 2


def test_images_and_planes_together_explain_both_errors():
    painter = pictures.painter(walk(1).spec, 64)
    assert [word for _, word in painter.colours] == ["plane 0", "plane 1"]
    assert [word for _, word in painter.errors] == ["wrong cell", "pixel error, 0 to 255"]


def spec_of(name, action):
    return Spec(name, jax.ShapeDtypeStruct((4,), np.float32), action)


@pytest.mark.parametrize(
    ("name", "action", "value", "words"),
    [
        ("gymnax/CartPole-v1", Discrete(2), 1, "push right"),
        ("continuous/CartPole", Box(1), [0.5], "force +0.50"),
        ("box2d/LunarLander-v3", Discrete(4), 2, "main engine"),
        ("box2d/LunarLander", Discrete(4), 0, "nothing"),
        ("minatar/Breakout", Discrete(3), 2, "right"),
        ("minatar/Breakout", Discrete(6), 5, "fire"),
        ("minatar/Seaquest", Discrete(6), 2, "up"),
        ("atari/Breakout", Discrete(4), 3, "left"),
        ("atari/Pong", Discrete(6), 5, "left fire"),
        ("atari/Pong", Discrete(18), 5, "down"),
        ("atari/Seaquest", Discrete(18), 17, "down left fire"),
        ("atari/Pong", Discrete(7), 5, "action 5"),
        ("toy/Walk", Discrete(3), 2, "action 2"),
        ("toy/Walk", MultiDiscrete((2, 3)), [1, 0], "action 1 0"),
        ("dmc/CheetahRun", Box(6), [-1e-9, 1, 0, 0, 0, 0], "+0.00, +1.00, +0.00, +0.00, ..."),
    ],
)
def test_actions_have_names(name, action, value, words):
    assert names.action(spec_of(name, action), np.asarray(value)) == words


def test_names_fit_the_tasks_they_are_for():
    """As many planes, actions and numbers as the environment has."""
    for game in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"):
        spec = envs.make(f"minatar/{game}").spec
        assert names.planes(spec.name, spec.obs.shape[-1])[0] != "plane 0" and names.actions(spec, spec.action.n)
    for task in ("CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"):
        spec = envs.make(f"gymnax/{task}").spec
        size = getattr(spec.action, "n", None) or spec.action.size
        assert names.actions(spec, size) and "obs" not in names.numbers(spec.name, "obs", spec.obs.shape[0])[0]
    assert names.numbers("toy/Walk", "obs", 2) == ["obs[0]", "obs[1]"]
    games = [game for games in names._table()["atari"].values() for game in games]
    assert len(games) == len(set(games)) and set(games) < set(envs.names()["atari"])


def test_negative_zero_is_zero():
    assert (names.plain(-0.001), names.plain(-0.01), names.plain(0.004, "+")) == ("0.00", "-0.01", "+0.00")


def test_flags_jump_on_their_strips():
    """Between two records a flag has no value in the middle: the line is horizontal, then vertical."""
    values = np.array([[0, 0.0], [1, 0.5], [1, 1.0]], np.float32)
    strip = paper.strips(["flag", "slope"], values, 2, 2 * paper.MOST_STRIP)
    blue = (strip == (0, 114, 178)).all(-1)
    flag, slope = blue[: paper.MOST_STRIP], blue[paper.MOST_STRIP :]
    assert flag.any(1).sum() >= 53 and slope.any(1).sum() >= 53, "both reach from bottom to top"
    assert flag.sum(1).max() > 100 and slope.sum(1).max() < 20


def test_text_is_as_wide_as_it_says_and_legends_wrap():
    text = "a line of words"
    assert paper.lines([text]).shape[1] == paper.width_of(text) > paper.width_of("a line")
    one, two = (paper.legend([(paper.patch("#FF0000"), text)] * 3, width) for width in (1000, 150))
    assert two.shape[1] <= 150 < one.shape[1] and len(two) > 2 * len(one)
    assert (paper.note((60, 200), "no error") != 244).any() and paper.note((60, 200), "").std() < 1


def test_gifs_keep_white_and_get_smaller(tmp_path):
    rng = np.random.default_rng(0)
    frames = [np.full((40, 60, 3), 255, np.uint8) for _ in range(80)]
    for frame in frames:
        frame[:20] = rng.integers(0, 250, (20, 60, 3))
    assert video.write(tmp_path / "a.gif", frames, 10) == 1
    size = (tmp_path / "a.gif").stat().st_size
    assert video.write(tmp_path / "b.gif", frames, 10, size // 2 + 5000) == 2
    film = imageio.imread(tmp_path / "b.gif")
    assert len(film) == 40 and (film[:, 20:] == 255).all()


def curves(dream, copy, other=None):
    each = {"dream": dream, "shuffled": other or [1.0] * len(dream), "copy": copy}
    return {"reward": ("mean error", {name: np.array([values], float) for name, values in each.items()})}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (curves([0.2, 0.3], [0.5, 0.5]), "is never worse than keeping the last value (2 steps)"),
        (curves([0.6, 0.7], [0.5, 0.5]), "from step 1 on the dream is worse than keeping the last value"),
        (curves([0.1, 0.7], [0.5, 0.5]), "the dream is worse than keeping the last value from step 2 on"),
        (curves([0.1, 0.7, 0.1], [0.5] * 3), "at 1 of 3 steps, first at 2"),
        (curves([0.1, 0.2], [0.0, 0.0]), "reward: never changes in these sequences"),
        (curves([0.2, 0.3], [0.5, 0.5], [0.2, 0.3]), "the actions of another sequence do as well"),
    ],
)
def test_what_an_error_means_is_said(found, said):
    sentences = verdict(found)
    assert any(said in sentence for sentence in sentences) and all(s.startswith("reward: ") for s in sentences)


def test_an_error_plot_says_what_never_changes(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    figures.horizon_plot(tmp_path / "a.png", "title", curves([0.1, 0.2], [0.0, 0.0]))
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["reward never changes here"]


def test_mp4_needs_ffmpeg(monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'jaxwm\[video\]', or take --format gif"):
        video.check_format("mp4")
    video.check_format("gif")


def test_mp4_keeps_size_and_frames(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    frames = [np.full((33, 47, 3), 20 * i, np.uint8) for i in range(6)]
    video.write(tmp_path / "a.mp4", frames, 4)
    with imageio.imopen(tmp_path / "a.mp4", "r", plugin="FFMPEG") as film:
        assert np.stack(list(film.iter())).shape == (12, 34, 48, 3)


# --- The commands -------------------------------------------------------------------------------------------------


def hand_over(agent, monkeypatch, env=walk) -> None:
    """Let `load` find this agent in this environment."""
    monkeypatch.setitem(registry._registered, "toy/Walk", env)
    plan = Plan("dreamer-v3", "toy/Walk", agents.settings("dreamer-v3", "nano"), 100)
    monkeypatch.setattr(episodes, "load", lambda folder, checkpoint: load.Loaded(plan, agent, {}, 100))


def player(folder) -> episodes.Player:
    return episodes.open_player(folder, 0, 1)


@pytest.mark.parametrize("kind", ["pure", "host"])
def test_dream_writes_pictures_and_numbers(tmp_path, monkeypatch, kind):
    hand_over(walker(), monkeypatch, walk if kind == "pure" else lambda num_envs: on_host(walk(num_envs)))
    settings = dream.Settings(context=3, horizon=6, episodes=2, sequences=32)
    dream.dream(player(tmp_path), tmp_path / "dreams", settings, Console(quiet=True))
    names = {file.name for file in (tmp_path / "dreams").iterdir()}
    assert names == {"dream.gif", "dream.png", "error.png", "reward.png", "vector.png", "dreams.json"}
    film = imageio.imread(tmp_path / "dreams" / "dream.gif")
    assert len(film) == 9 and film.shape[1] > 3 * 128 and film.shape[2] > 2 * 2 * 128
    margins = film[..., :3][:, [*range(paper.MARGIN), *range(-paper.MARGIN, 0)]], film[:, :, -paper.MARGIN :, :3]
    assert all((margin == 255).all() for margin in margins), "nothing is cut off at the edges"
    for name in names - {"dream.gif", "dreams.json"}:
        picture = imageio.imread(tmp_path / "dreams" / name)
        assert picture.ndim == 3 and min(picture.shape[:2]) > 200 and picture.std() > 1
    numbers = json.loads((tmp_path / "dreams" / "dreams.json").read_text())
    assert numbers["context"] == 3 and numbers["horizon"] == 6 and numbers["sequences"] == [32] * 6
    assert 0.4 < numbers["changed_actions"] < 0.9
    assert numbers["errors"].keys() == {"grid", "image", "x", "reward"}
    assert numbers["errors"]["x"]["dream"] == [0.0] * 6 and min(numbers["errors"]["x"]["copy"]) > 0


def test_a_model_without_decoder_shows_rewards(tmp_path, monkeypatch):
    hand_over(walker(see=False), monkeypatch)
    dream.dream(player(tmp_path), tmp_path, dream.Settings(3, 6, 2, 32), Console(quiet=True))
    assert {file.name for file in tmp_path.iterdir()} == {"error.png", "reward.png", "dreams.json"}
    assert json.loads((tmp_path / "dreams.json").read_text())["errors"].keys() == {"reward"}


def test_an_agent_without_model_cannot_dream(tmp_path, monkeypatch):
    hand_over(toy_agent(), monkeypatch)
    with pytest.raises(ValueError, match="dreamer-v3 has no model that dreams"):
        dream.dream(player(tmp_path), tmp_path, dream.Settings(), Console(quiet=True))


@pytest.mark.parametrize("kind", ["pure", "host"])
def test_watch_films_whole_episodes(tmp_path, monkeypatch, kind, capsys):
    hand_over(walker(), monkeypatch, walk if kind == "pure" else lambda num_envs: on_host(walk(num_envs)))
    returns = watch.watch(player(tmp_path), tmp_path / "watch.gif", watch.Settings(episodes=2), Console())
    assert len(imageio.imread(tmp_path / "watch.gif")) == 2 * (LENGTH + 1)
    total = sum(range(1, LENGTH + 1)) / 2  # greedily one step further each time
    assert [(value - total) % (LENGTH / 2) for value in returns] == [0, 0]
    out = capsys.readouterr().out
    assert f"episode 2: return {returns[1]:.2f} in 12 steps" in out and "watch.gif" in out.replace("\n", "")


def test_watch_cuts_long_episodes(tmp_path, monkeypatch, capsys):
    hand_over(walker(), monkeypatch)
    watch.watch(player(tmp_path), video.named(tmp_path / "a" / "b.gif", "mp4"), watch.Settings(1, 5), Console())
    assert len(imageio.imread(tmp_path / "a" / "b.gif")) == 6
    assert "without an end (--max-steps 5)" in capsys.readouterr().out


def test_watch_leaves_frames_out_of_long_episodes(tmp_path, monkeypatch, capsys):
    hand_over(walker(), monkeypatch)
    monkeypatch.setattr(watch, "MOST_FRAMES", 10)
    watch.watch(player(tmp_path), tmp_path / "watch.gif", watch.Settings(episodes=2), Console())
    assert len(imageio.imread(tmp_path / "watch.gif")) == 2 * (1 + LENGTH // 3)
    assert "one frame for every 3 steps" in capsys.readouterr().out


def test_watch_goes_on_when_the_simulator_dies(tmp_path, monkeypatch, capsys):
    hand_over(walker(), monkeypatch, dying)
    with pytest.warns(UserWarning, match="toy/Walk died"):
        watch.watch(player(tmp_path), tmp_path / "watch.gif", watch.Settings(episodes=1), Console())
    assert "in 12 steps" in capsys.readouterr().out


# --- A real run, untrained ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A run directory of two untrained Dreamers on Catch."""
    tiny = dict(deter=16, hidden=8, units=8, stoch=4, classes=4, bins=11, batch_size=4, batch_length=6, prefill=64)
    plan = Plan("dreamer-v3", "gymnax/Catch-bsuite", agents.settings("dreamer-v3", "nano", **tiny), 400, 2)
    folder = directory.create(tmp_path_factory.mktemp("runs") / "catch")
    directory.write_config(folder, plan.to_json())
    life = load.build(plan)[2].init(0)
    with Checkpoints(folder / directory.CHECKPOINTS) as checkpoints:
        checkpoints.save(0, life, Cursor(), {"offsets": {}, "seconds": 0.0})
    return folder


def test_dream_of_a_run(fresh, capsys):
    assert cli.main(["dream", str(fresh), "--episodes", "2", "--member", "1", "--sequences", "16"]) == 0
    out = capsys.readouterr().out
    assert "--context 2 --horizon 8 fit" in out and "dreams.json" in out
    assert len(imageio.imread(fresh / "dreams" / "dream.gif")) == 10
    assert not (fresh / "dreams" / "vector.png").exists()
    assert json.loads((fresh / "dreams" / "dreams.json").read_text())["member"] == 1


@pytest.mark.slow
def test_watch_a_run(fresh, capsys):
    assert cli.main(["watch", str(fresh), "--episodes", "1"]) == 0
    assert "in 9 steps" in capsys.readouterr().out
    assert len(imageio.imread(fresh / "watch.gif")) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dream", "nothing"], "nothing is no run directory"),
        (["watch", "nothing"], "nothing is no run directory"),
        (["dream", "RUN", "--member", "2"], "there is no member 2: the run has members 0 to 1"),
        (["watch", "RUN", "--member", "-1"], "there is no member -1: the run has members 0 to 1"),
        (["dream", "RUN", "--context", "1"], "--context must be at least 2"),
        (["dream", "RUN", "--horizon", "0"], "--horizon must be at least 1"),
        (["dream", "RUN", "--format", "avi"], "--format is gif or mp4, not 'avi'"),
        (["dream", "RUN", "--format", "mp4"], "pip install 'jaxwm[video]'"),
        (["watch", "RUN", "--out", "film.mp4"], "pip install 'jaxwm[video]'"),
        (["watch", "RUN", "--out", "film.avi"], "--format is gif or mp4, not 'avi'"),
        (["watch", "RUN", "--mode", "best"], "--mode is greedy or explore"),
        (["watch", "RUN", "--max-steps", "0"], "--max-steps must be at least 1"),
    ],
)
def test_bad_input_is_one_line(arguments, message, fresh, capsys, monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    assert cli.main([str(fresh) if word == "RUN" else word for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["dream", "watch"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "--member" in out and ("error.png" in out or "strips" in out)
