"""The studio behind its pages: sessions, branches, dreams that are `Agent.imagine`'s, shelves, mazes and the guard."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, build
from toys import on_host
from visiting import opened, until

from jaxwm import agents, envs
from jaxwm.data import Episode
from jaxwm.studio.episodes import Player
from jaxwm.training.life import ACT, stream
from jaxwm.web import quality
from jaxwm.web.desk import CONTEXT, Desk
from jaxwm.web.maze import Maze
from jaxwm.web.rooms import MOST_SESSIONS, Studio
from jaxwm.web.runs import Shelf
from jaxwm.web.server import roots_of
from jaxwm.web.session import Session

DEMO = Path(roots_of(())[-1])
KEY = jax.random.key(0)


def player_of(name: str, env: Any = None, host: bool = False, **options: Any) -> Player:
    """An untrained member of a tiny system."""
    tiny = build(name, **options)
    make = env or (lambda num: tiny.env._replace() if num == tiny.env.num_envs else _again(name, num))
    made = (lambda num: on_host(make(num))) if host else make
    agent = agents.build(name, make(1).spec, tiny.config)
    state = jax.jit(lambda key: agent.init(key, agent.hyper))(KEY)

    class Alone(Player):
        def envs(self, num_envs):
            return made(num_envs)

    plan: Any = SimpleNamespace(agent=name, env=tiny.env.spec.name, members=1)
    return Alone(plan, agent, state, KEY, 0, 0, 1)


def _again(name: str, num: int) -> Any:
    from tiny import world

    return world(name, num)


def imagined(session: Session, name: str, t: int) -> Any:
    """What `Agent.imagine` dreams up to tick t of a branch, called directly. Some systems draw other random numbers for
    another horizon, so it is the one of the desk; what comes after t is cut off."""
    branch, desk = session.branches[name], session.desk
    anchor = branch.ticks[t].anchor
    taken = [tick.action for tick in branch.ticks[anchor + 1 : t + 1]]
    horizon = next(h for h in desk.horizons if h >= len(taken))
    actions = np.stack([*taken, *[taken[-1]] * (horizon - len(taken))], 1)
    key = jax.random.fold_in(stream(branch.key, ACT, anchor), 1)
    base = branch.base._replace(action=np.concatenate([branch.base.action[:, :-1], actions[:, :1]], 1))
    run = jax.jit(lambda state, base, actions: desk.agent.imagine(state, base, actions, key, actions.shape[1]))
    return jax.tree.map(
        lambda x: x[:, : len(taken)], jax.device_get(run(session.state, base, actions)._replace(latent=()))
    )


@pytest.fixture(scope="module")
def desk() -> Desk:
    """A trained table: Dyna-Q has met every pair of a small lake."""
    made = Desk(player_of("dyna-q", lambda num: envs.make("tabular/FrozenLake8x8", num, slippery=False)))
    made.warm()
    q = made.player.state.memory.model
    moved = jnp.asarray(
        [
            [max(s - 1, s // 8 * 8), min(s + 8, 56 + s % 8), min(s + 1, s // 8 * 8 + 7), max(s - 8, s % 8)]
            for s in range(64)
        ]
    )
    memory = made.player.state.memory._replace(model=q._replace(state=moved))
    made.player = made.player._replace(state=made.player.state._replace(memory=memory))
    return made


@pytest.fixture
def session(desk) -> Session:
    found = Session(desk, 0)
    found.begin()
    return found


def test_keys_move_reality_and_dream_alike(session):
    for action in (1, 1, 2, 2, 0):
        _, tick = session.step("A", len(session.branches["A"].ticks) - 1, action)
    last = session.branches["A"].ticks[-1]
    assert last.step.obs.argmax() == last.dream.obs.argmax() == 17  # two down, two right, one left
    assert tick["error"] == 0 and tick["by"] == "you" and tick["action"] == "left" and tick["image"] == tick["dimage"]
    assert tick["anchor"] == 0 and tick["cont"] == 1


def test_the_dream_is_that_of_imagine(session):
    for action in (1, 2, 1, 2):
        session.step("A", len(session.branches["A"].ticks) - 1, action)
    dream = imagined(session, "A", 4)
    for t, tick in enumerate(session.branches["A"].ticks[1:]):
        assert np.array_equal(dream.obs[0, t], tick.dream.obs) and dream.reward[0, t] == tick.dream.reward


def test_going_on_from_the_past_begins_a_branch_and_loses_nothing(session):
    for action in (1, 1, 1):
        session.step("A", len(session.branches["A"].ticks) - 1, action)
    before = session.told(session.branches["A"])
    branch, tick = session.step("A", 1, 2)
    assert (branch.name, branch.parent, tick["t"]) == ("B", ("A", 1), 2)
    session.step("B", 2, 2)
    assert session.told(session.branches["A"]) == before
    assert [t.step.obs.argmax() for t in session.branches["B"].ticks] == [0, 8, 9, 10]
    assert session.branches["B"].ticks[-1].dream.obs.argmax() == 10
    session.step("A", 3, 1)
    assert session.branches["A"].ticks[-1].step.obs.argmax() == 32


def test_take_over_from_the_policy_and_hand_back(session):
    session.set(mode="greedy")
    session.begin(ahead=2)
    for action in (None, 1, None):
        session.step("A", len(session.branches["A"].ticks) - 1, action)
    assert [tick.by for tick in session.branches["A"].ticks] == ["policy"] * 4 + ["you", "policy"]
    assert session.branches["A"].ticks[-1].anchor == 2
    branch, ticks = session.dream_here("A", 5)
    assert branch.name == "A" and ticks[0]["anchor"] == 5 and "dreward" not in ticks[0]


def test_both_begin_the_next_episode_together(session):
    for action in (2, 2, 2, 1, 1):  # into the hole at row 2, column 3
        session.step("A", len(session.branches["A"].ticks) - 1, action)
    ended = session.branches["A"].ticks[-1]
    assert ended.step.is_terminal[0] and ended.dream is not None
    _, tick = session.step("A", 5, 0)
    assert tick["first"] and tick["anchor"] == 6 and "dreward" not in tick


def test_a_long_dream_goes_on_from_its_own_frames(session):
    name = "A"
    for t in range(session.desk.horizons[-1] + 3):
        session.step(name, t, (3, 1)[t % 2])
    branch = session.branches[name]
    assert branch.more == session.desk.horizons[-1] and branch.ticks[-1].anchor == 0
    assert branch.ticks[-1].dream.obs.argmax() == branch.ticks[-1].step.obs.argmax()
    assert branch.base.reward.shape == (1, CONTEXT)


def test_a_recorded_moment(session):
    places = [0, 8, 16, 17, 18]
    obs = np.eye(64, dtype=bool)[places].reshape(-1, 8, 8, 1)
    session.recall(Episode(obs, np.zeros(5, np.float32), np.array([1, 1, 2, 2, 0], np.int32), False), 1)
    assert [tick.by for tick in session.branches["A"].ticks] == ["recording"] * 2
    _, tick = session.step("A", 1, 1)
    assert tick["image"] == tick["dimage"]
    _, tick = session.step("A", 2, 1)  # the recording went right
    assert "image" not in tick and session.branches["A"].ticks[-1].dream.obs.argmax() == 24
    with pytest.raises(ValueError, match="nothing real here"):
        session.dream_here("A", 3)
    session.step("A", 3, None)  # the policy sees the dream


def test_wrong_questions_change_nothing(session):
    before = session.told(session.branches["A"])
    for bad in (7, -1, 1.5, "left", [1], None if False else {"a": 1}, float("nan")):
        with pytest.raises(ValueError):
            session.step("A", 0, bad)
    for where in (("B", 0), ("A", 9), ("A", -1), ("A", "0"), ("A", None)):
        with pytest.raises(ValueError):
            session.step(*where, 0)
    for options in ({"mode": "best"}, {"sight": "x"}, {"temperature": 2.0}):
        with pytest.raises(ValueError):
            session.set(**options)
    with pytest.raises(ValueError):
        session.begin(10**9)
    with pytest.raises(ValueError, match="no such branch"):
        session.gif(["C"])
    assert session.told(session.branches["A"]) == before


def test_an_animation(session):
    for t in range(4):
        session.step("A", t, 1)
    session.step("A", 1, 2)
    assert session.gif(["A", "B"])[:6] == b"GIF89a"


def test_a_host_environment_goes_back_by_playing_again():
    made = Desk(player_of("dyna-q", lambda num: envs.make("tabular/DynaMaze", num), host=True))
    made.warm()
    assert not made.rewinds
    found = Session(made, 0)
    found.begin()
    for t, action in enumerate((0, 0, 3)):
        found.step("A", t, action)
    branch, _ = found.step("A", 1, 1)  # up, and down again
    assert branch.name == "B" and [t.step.obs.argmax() for t in branch.ticks] == [18, 9, 18]
    assert found.branches["A"].ticks[-1].step.obs.argmax() == 1
    found.close(), found.close()


def test_dreams_of_vectors_by_sliders():
    """A continuous action, numbers in place of flags, a planner that is asked for futures."""
    made = Desk(player_of("pets"))
    made.warm()
    assert made.about()["action"] == {"kind": "Box", "names": ["force"]} and made.smooth
    found = Session(made, 0)
    found.begin(1)
    for t in (1, 2):
        found.step("A", t, [0.5])
    dream = imagined(found, "A", 3)
    np.testing.assert_allclose(dream.obs[0, -1], found.branches["A"].ticks[-1].dream.obs, rtol=2e-4, atol=1e-4)
    assert found.show(found.branches["A"], 3)["dnumbers"]


def test_sixteen_dreams_and_errors(desk):
    played = quality.play(desk.player)
    found = quality.errors(desk.player, played)
    assert set(found["quantities"]) == {"observation", "reward"}
    assert all(x == 0 for x in found["quantities"]["observation"]["curves"]["dream"]["mean"] if x is not None)
    apart = quality.spread(desk.player, played, 0)
    assert len(apart["sheets"]) == apart["horizon"] and not any(apart["apart"]["observation"])
    json.dumps([found, apart], allow_nan=False)
    with pytest.raises(ValueError, match="moment"):
        quality.spread(desk.player, played, 10**6)


def test_a_maze_is_learned_sooner_with_dreams():
    plain, dreaming = Maze(0), Maze(0)
    for maze, planning in ((plain, 0), (dreaming, 50)):
        for _ in range(5):
            told = maze.advance(200, planning, 0.1)
    assert len(dreaming.lengths) > 2 * len(plain.lengths) and np.mean(dreaming.lengths[-10:]) < 25
    way = dreaming.plan()
    assert way[0] == 18 and way[-1] == 8 and len(way) <= 20
    assert len(told["drawn"]) == 50 and told["dreamed"] == 50_000
    assert all(told["known"][pair // 4][pair % 4] for pair in told["drawn"])
    for bad in ({"turns": 0}, {"planning": 51}, {"epsilon": 2}, {"given": 4}):
        with pytest.raises(ValueError):
            plain.advance(**{"turns": 1, "planning": 1, "epsilon": 0.1, **bad})


# --- Shelves ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    """A folder with weights, a run that has only begun, a damaged one, and pictures."""
    shutil.copy(DEMO / "catch.safetensors", tmp_path)
    begun = tmp_path / "begun"
    (begun / "checkpoints").mkdir(parents=True)
    config = dict(agent="dyna-q", env="tabular/DynaMaze", settings={}, steps=100, members=2, seed=0)
    (begun / "config.json").write_text(json.dumps(config))
    (begun / "metrics.jsonl").write_text('{"env_steps": 50, "updates": 3, "loss": [1.0, null]}\n{"env_st')
    (begun / "scores.jsonl").write_text('{"member": 0, "env_steps": 40, "return": 1.0, "length": 7}\n')
    (begun / "dreams").mkdir()
    (begun / "dreams" / "dream.png").write_bytes(b"x")
    (begun / "watch.png").symlink_to("/etc/passwd")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "secret.txt").write_text("secret")
    return Shelf([tmp_path])


def test_runs_as_they_are(shelf):
    rows = {row["label"]: row for row in shelf.summary(0.0)}
    assert set(rows) == {"begun", "broken", "catch.safetensors"}
    assert rows["catch.safetensors"]["state"] == "weights" and rows["catch.safetensors"]["members"] == 2
    assert rows["broken"]["state"] == "damaged" and "damaged" in rows["broken"]["fault"]
    assert (rows["begun"]["done"], rows["begun"]["total"], rows["begun"]["playable"]) == (50, 100, False)
    assert rows["begun"]["state"] == "running" and rows["begun"]["return"] == 1.0
    (curve,) = shelf.curves(["begun", "broken", "nothing"], "loss")
    assert curve["values"] == [[1.0, None]]
    json.dumps([shelf.summary(0.0), shelf.metrics(["begun"]), shelf.differences(["begun", "broken"])], allow_nan=False)


def test_paths_are_never_joined_to_names(shelf):
    assert shelf.pictures("begun") == ["dreams/dream.png"]  # and not the link that leads outside
    for name in ("watch.png", "../secret.txt", "/etc/passwd", "dreams/../../secret.txt", ""):
        with pytest.raises(FileNotFoundError):
            shelf.picture("begun", name)
    for label in ("../x", "/etc", "", ".", "begun/", "begun/../begun"):
        with pytest.raises(FileNotFoundError):
            shelf.path(label)


# --- Over HTTP ----------------------------------------------------------------------------------------------------


def test_bad_questions_get_words(shelf):
    with opened(Studio(shelf)) as house:
        for path, status, word in (
            ("api/picture?run=begun&name=../secret.txt", 404, "no picture"),
            ("api/picture?run=..&name=secret.txt", 404, "no run"),
            ("api/quality?run=nothing", 404, "no run"),
            ("api/quality?run=begun", 404, "checkpoint"),
            ("api/quality?run=broken", 400, "damaged"),
            ("api/quality?run=catch.safetensors&member=7", 400, "member"),
            ("api/gif?session=x&branch=A", 404, "no such session"),
            ("%2e%2e/secret.txt", 404, ""),
            ("studio.css/../../secret.txt", 404, ""),
        ):
            found, body, _ = house.get(path)
            assert (found, word in body.decode()) == (status, True), (path, found, body)
            assert b"Traceback" not in body and b"secret\n" not in body


def test_a_hundred_at_once(shelf):
    with opened(Studio(shelf)) as house:
        found: list[int] = []
        ask = lambda: found.append(house.get("api/runs")[0])  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [200] * 100


def test_who_may_ask(shelf):
    with opened(Studio(shelf)) as house:
        status, _, headers = house.get("")
        assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
        assert house.get("api/runs", Host="evil.example")[0] == 421
        assert house.get("api/runs", Origin="http://evil.example")[0] == 403
        assert house.get("api/runs", Origin=house.address.strip("/"))[0] == 200
    with opened(Studio(shelf), "right") as house:
        for path in ("", "api/runs", "studio.js", "api/runs?token=wrong", "api/runs?token="):
            status, body, _ = house.get(path)
            assert status == 403 and b"token" in body
        status, _, headers = house.get("?token=right")
        assert (status, headers["location"]) == (303, "/") and "HttpOnly; SameSite=Strict" in headers["set-cookie"]
        cookie = headers["set-cookie"].split(";")[0]
        assert house.get("api/runs", Cookie=cookie)[0] == 200
        assert house.get("api/runs", Cookie="jaxwm-studio=wrong")[0] == 403


# --- Over a socket ------------------------------------------------------------------------------------------------


def join(house: Any, run: str, path: str = "play", **options: Any) -> Any:
    from websockets.sync.client import connect

    return connect(f"ws://127.0.0.1:{house.port}/ws/{path}?run={run}", open_timeout=60, **options)


def ready(socket: Any) -> dict[str, Any]:
    """The first message that is no progress."""
    while (message := json.loads(socket.recv(120)))["kind"] == "progress":
        pass
    return message


@pytest.fixture(scope="module")
def seats(desk) -> Studio:
    """A studio whose only run is the trained table."""
    shelf: Any = SimpleNamespace(path=lambda label: {"lake": Path("lake")}[label] if label == "lake" else _none(label))
    studio = Studio(shelf)
    studio._desks["lake", 0] = desk
    return studio


def _none(label: str) -> Any:
    raise FileNotFoundError(f"there is no run {label!r} here")


def test_nonsense_on_a_socket_costs_an_answer(seats):
    with opened(seats) as house, join(house, "lake") as socket:
        assert ready(socket)["about"]["env"] == "tabular/FrozenLake8x8"
        for nonsense in (
            "",
            "{",
            "[]",
            "1",
            '{"do": "rm"}',
            '{"do": "step"}',
            b"\x00\xff",
            "x" * 15_000,
            '{"do": "recall", "episode": "../x"}',
        ):
            socket.send(nonsense)
            assert json.loads(socket.recv(30))["kind"] == "error", nonsense
        socket.send('{"do": "begin", "id": 7}')
        told = json.loads(socket.recv(30))
        assert told["kind"] == "begin" and told["id"] == 7


def test_a_broken_socket_frees_its_session(seats):
    with opened(seats) as house:
        with join(house, "lake") as socket:
            ready(socket)
            assert len(seats.sessions) == 1
            socket.send('{"do": "begin", "ahead": 200}')
            socket.socket.shutdown(2)  # in the middle of an answer
            until(lambda: not seats.sessions)
        with join(house, "nothing") as other:
            message = ready(other)
            assert message["kind"] == "error" and message["fatal"] and "no run" in message["text"]
        assert not seats.sessions


def test_there_is_an_end_to_visitors(seats):
    with opened(seats) as house, contextlib.ExitStack() as stack:
        guests = [stack.enter_context(join(house, "lake")) for _ in range(MOST_SESSIONS)]
        assert all(ready(guest)["kind"] == "ready" for guest in guests)
        with join(house, "lake") as late:
            message = ready(late)
            assert message["full"] and "visitors" in message["text"]


def test_a_socket_needs_the_token_too(seats):
    from websockets.exceptions import InvalidStatus

    with opened(seats, "right") as house:
        with pytest.raises(InvalidStatus), join(house, "lake"):
            pass
        with pytest.raises(InvalidStatus), join(house, "lake&token=right", origin="http://evil.example"):
            pass
        with join(house, "lake&token=right") as socket:
            assert ready(socket)["kind"] == "ready"


# --- Every system -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TINY if name not in ("shooting", "pets", "dyna-q")])
def test_every_system_is_played(name):
    """Keys, the policy, a branch, a dream that is that of `imagine`, and a plan, with random weights."""
    from jaxwm.web import plans

    made = Desk(player_of(name))
    made.warm()
    found = Session(made, 0)
    found.begin(2)
    idle = np.asarray(
        made.agent.act(
            made.player.state, made.agent.reset(made.player.state, 1), jax.device_get(made.start(KEY)[1]), KEY, "greedy"
        )[1]
    )[0].tolist()
    for t in (2, 3, 4):
        _, tick = found.step("A", t, idle if t == 3 and not made.board else None)
    json.dumps(tick, allow_nan=False)
    if not made.board:
        assert found.step("A", 3, idle)[0].name == "B"
    assert made.dreams == (made.agent.imagine is not None)
    if made.dreams and found.branches["A"].ticks[-1].anchor == 2:
        dream, tick = imagined(found, "A", 5), found.branches["A"].ticks[-1].dream
        for a, b in zip(
            jax.tree.leaves((dream.obs, dream.reward)), jax.tree.leaves((tick.obs, tick.reward)), strict=True
        ):
            assert np.mean(np.abs(a[0, -1].astype(float) - np.asarray(b, float)) > 1e-3) < 0.01
    if plans.kind_of(made):
        json.dumps(plans.look(found, "A", 2), allow_nan=False)
