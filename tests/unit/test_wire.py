"""Messages over real sockets come back as they were, broken ones are refused; a remote environment is a local one."""

import ast
import json
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from arrays import assert_same
from elsewhere import GAME, Elsewhere
from worlds import actions, check_step, check_stream, host_roll

from jaxwm import envs
from jaxwm.envs import border, gym_spaces, wire
from jaxwm.training.host import EnvironmentDied, Pool

KEYS = jax.random.split(jax.random.key(0), 2)

# --- Messages -----------------------------------------------------------------------------------------------------

NESTS = [
    np.float32(0.1),
    np.arange(6, dtype=np.uint8).reshape(1, 2, 3)[..., ::-1],
    {"a": np.array([True, False]), "b": {"c": (np.int64(7), np.zeros((0, 3), np.float16))}},
    (np.array([1.5, np.nan, np.inf]), {"x": np.array(3, ">i4")}),
]


@pytest.mark.parametrize("value", NESTS)
def test_messages_come_back(value):
    """Also in pieces, and several at once."""
    data = wire.encode({"kind": "step", "reward": 0.1}, wire.leaves(value))
    buffer = bytearray()
    for byte in data[:-1]:
        buffer.append(byte)
        assert wire.decode(buffer) is None
    buffer += data[-1:] + data
    for _ in range(2):
        message, arrays = wire.decode(buffer)
        assert message == {"kind": "step", "reward": 0.1}
        back = wire.nest(arrays)
        assert jax.tree.structure(back) == jax.tree.structure(value)
        jax.tree.map(np.testing.assert_array_equal, back, value)
        kinds = [(x.shape, np.asarray(x).dtype.name) for x in jax.tree.leaves(value)]
        assert [(x.shape, x.dtype.name) for x in jax.tree.leaves(back)] == kinds
    assert not buffer


def frame(header, content: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return wire.MAGIC + (len(text) if size is None else size).to_bytes(4, "big") + text + content


def listed(**entry):
    return frame({"kind": "x", "arrays": [{"path": [], "dtype": "uint8", "shape": [2], **entry}]}, b"\x01\x02")


BROKEN = [
    (b"GET / HTTP/1.0\r\n\r\n", "not the protocol"),
    (b"J?", "not the protocol"),
    (frame(b"", size=wire.MOST_HEADER + 1), "a header of 1,048,577 bytes is too long"),
    (frame(b"not json"), "the header is damaged"),
    (frame(b"[" * 100_000), "the header is damaged"),
    (frame([1]), "the header is damaged"),
    (frame({"kind": "x", "arrays": 5}), "the header is damaged"),
    (frame({"kind": "x", "arrays": [5]}), "the header is damaged"),
    (listed(dtype="object"), "'object' is no type"),
    (listed(dtype="|O"), "no type of an array"),
    (listed(shape=[-1]), "a shape is a list of sizes"),
    (listed(shape=[True]), "a shape is a list of sizes"),
    (listed(shape=[1.5]), "a shape is a list of sizes"),
    (listed(shape=[1] * 40), "a shape is a list of sizes"),
    (listed(shape=[1 << 26, 1 << 26]), "are too much"),
    (listed(path=[[1]]), "a path is a list"),
    (frame({"arrays": [{"path": [], "dtype": "bool", "shape": []}] * 300}), "257 arrays of"),
]


@pytest.mark.parametrize(("data", "words"), BROKEN, ids=[words for _, words in BROKEN])
def test_broken_messages_are_refused(data, words):
    with pytest.raises(ValueError, match=words):
        wire.decode(bytearray(data))


def test_bytes_of_flags_are_flags():
    _, arrays = wire.decode(bytearray(listed(dtype="bool")))
    assert arrays[0][1].tolist() == [True, True] and arrays[0][1].view(np.uint8).tolist() == [1, 1]


def test_what_is_no_number_is_not_sent():
    with pytest.raises(ValueError, match=r"holds .*U1, which cannot be sent"):
        wire.encode({}, wire.leaves({"a": "x"}))
    with pytest.raises(ValueError, match="no path"):
        wire.nest([((), 1), (("a",), 2)])


# --- Spaces -------------------------------------------------------------------------------------------------------

BOX, DISCRETE = gymnasium.spaces.Box, gymnasium.spaces.Discrete
SPACES = [
    BOX(0, 255, (20, 20, 3), np.uint8),
    BOX(np.array([-1.0, -np.inf, 0], np.float32), np.array([2.0, np.inf, 0.5], np.float32)),
    DISCRETE(4, start=-1),
    gymnasium.spaces.MultiDiscrete([2, 3]),
    gymnasium.spaces.MultiBinary(3),
    gymnasium.spaces.Dict({"a": DISCRETE(3), "b": gymnasium.spaces.Tuple((BOX(-1, 1, (2,)), DISCRETE(2)))}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_described_space_is_read_as_the_space_itself(space):
    there = wire.space(json.loads(json.dumps(wire.describe(space), allow_nan=False)))
    (ours, read), (same, same_read) = gym_spaces.observation_space(space), gym_spaces.observation_space(there)
    assert ours == same
    space.seed(0)
    rows = [space.sample() for _ in range(4)]
    jax.tree.map(np.testing.assert_array_equal, read.rows(rows), same_read.rows(rows))


@pytest.mark.parametrize("space", [BOX(-2, 3, (2, 2)), DISCRETE(3, start=2), gymnasium.spaces.MultiBinary(3)], ids=str)
def test_actions_of_a_described_space_are_native_ones(space):
    (ours, write), (same, same_write) = (
        gym_spaces.action_space(space),
        gym_spaces.action_space(wire.space(wire.describe(space))),
    )
    assert ours == same
    action = actions(ours, (5,), np.random.default_rng(0))
    np.testing.assert_array_equal(write(action), same_write(action))
    assert write(action).dtype == same_write(action).dtype


# --- A server -----------------------------------------------------------------------------------------------------


def game():
    scope: dict = {}
    exec(GAME.replace("assert", "True or"), scope)
    return scope["Game"]()


@contextmanager
def serving(token="", places=4):
    """A server in a thread of this process; its address."""
    server = wire.Server("environment", lambda: wire.Game(game), port=0, token=token, places=places)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.address
    finally:
        server.stopped = True
        thread.join()


def test_a_token_is_proved(monkeypatch):
    with serving(token="secret") as address:
        monkeypatch.delenv(wire.TOKEN, raising=False)
        with pytest.raises(ConnectionError, match=f"{address} asks for a token: set JAXWM_TOKEN"):
            wire.Environment(address)
        with pytest.raises(wire.Failure, match="wrong token"):
            wire.Environment(address, token="guess")
        monkeypatch.setenv(wire.TOKEN, "secret")
        wire.Environment(address).close()
        with socket.create_connection(wire.parse(address), 5) as stranger:  # asks without a proof
            stranger.sendall(wire.encode({"kind": "make"}))
            seen = bytearray()
            while data := stranger.recv(4096):
                seen += data
        with serving() as open_to_all:
            wire.Environment(open_to_all).close()  # a token that nobody asks for is not in the way
        assert wire.decode(seen)[0]["kind"] == "hello" and "wrong token" in wire.decode(seen)[0]["text"]


def test_broken_clients_disturb_nobody(monkeypatch):
    monkeypatch.setattr(wire, "PATIENCE", 0.2)
    with serving() as address:
        env = wire.Environment(address)
        env.reset(seed=0)
        for data, _ in BROKEN[:6]:
            with socket.create_connection(wire.parse(address), 5) as client:
                client.sendall(data)
                while client.recv(4096):  # a word of refusal, then the end
                    pass
        large = {"kind": "hello", "arrays": [{"path": [], "dtype": "uint8", "shape": [1 << 20]}]}
        with socket.create_connection(wire.parse(address), 5) as stranger:
            stranger.sendall(frame(large))
            while stranger.recv(4096):
                pass
        silent = socket.create_connection(wire.parse(address), 5)
        gone = socket.create_connection(wire.parse(address), 5)
        gone.sendall(wire.encode({"kind": "hello"})[:9])
        gone.close()
        assert env.step(1)[1] == 1.1
        silent.settimeout(5)
        while silent.recv(4096):  # who says nothing is sent away
            pass
        silent.close()
        env.close()


def test_a_failing_game_is_news_for_its_client_only():
    with serving() as address:
        one, two = wire.Environment(address), wire.Environment(address)
        one.reset(seed=0), two.reset(seed=0)
        with pytest.raises(wire.Failure, match="KeyError: 'a bug of the game'"):
            one.step(2)
        assert two.step(0)[0]["pair"][0] == 1
        with pytest.raises(wire.Failure, match="make, reset or step, not to 'fly'"):
            two.ask({"kind": "fly"})
        with pytest.raises(wire.Failure, match="ValueError: one array has no path"):
            two.ask({"kind": "step"}, [((), 1), (("a",), 1)])
        assert one.reset()[0]["pair"][0] == 0  # and the game goes on where it can
        one.close(), two.close()


def test_places_are_limited_and_free_again():
    with serving(places=1) as address:
        env = wire.Environment(address)
        with pytest.raises(wire.Failure, match="all 1 places are taken"):
            wire.Environment(address)
        for _ in range(5):
            env.close()
            env = wire.Environment(address)
        env.close()


def test_who_may_listen_where():
    with pytest.raises(ValueError, match=r"0\.0\.0\.0 can be reached from other machines: set JAXWM_TOKEN"):
        wire.Server("agent", lambda: None, host="0.0.0.0", port=0)
    with serving() as address:
        with pytest.raises(OSError, match=r"cannot listen on .*choose another with --host, --port"):
            wire.Server("agent", lambda: None, port=wire.parse(address)[1])


@pytest.mark.parametrize("address", ["", "localhost", "127.0.0.1:", ":5555", "host:port", "host:0", "host:70000"])
def test_addresses(address):
    with pytest.raises(ValueError, match="an address is HOST:PORT"):
        envs.make(f"remote/{address}")


def test_nobody_answers():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=f"nothing answers at 127.0.0.1:{port} .*start the server there first"):
        envs.make(f"remote/127.0.0.1:{port}", patience=30)
    assert time.monotonic() - began < 10, "nobody waits for a wrong address"


def test_others_that_answer():
    with socket.create_server(("127.0.0.1", 0)) as web:
        address = f"127.0.0.1:{web.getsockname()[1]}"

        def reply(data: bytes):
            connection, _ = web.accept()
            connection.sendall(data)
            connection.recv(4096)
            connection.close()

        hello = dict(kind="hello", protocol=1, serves="environment", nonce="", token=False)
        cases = [
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not the protocol of jaxwm"),
            (wire.encode({**hello, "protocol": 9}), "speaks protocol 9"),
            (wire.encode({**hello, "serves": "agent"}), "serves an agent, not an environment"),
            (wire.encode(hello) + wire.encode({}) + wire.encode({}), "does not say what its environment is"),
            (wire.encode(hello), "closed the connection|is gone"),
        ]
        for data, words in cases:
            thread = threading.Thread(target=reply, args=(data,))
            thread.start()
            with pytest.raises(ConnectionError, match=words):
                wire.Environment(address, timeout=5)
            thread.join()
        with pytest.raises(ConnectionError, match=r"has not answered for 0\.1 s"):
            wire.Environment(address, timeout=0.1)


# --- A remote environment -----------------------------------------------------------------------------------------


def test_a_remote_environment_is_the_local_one_bit_for_bit(tmp_path):
    """A process that has NumPy and one file; six environments on six connections."""
    with Elsewhere(tmp_path, "Game") as there:
        remote = envs.make(f"remote/{there.address}", num_envs=3)
        local = envs.from_gymnasium(lambda seed: game(), 3)
        assert remote.spec == local.spec
        assert {name: x.shape for name, x in remote.spec.obs.items()} == {
            "eye": (16, 16, 3),
            "pair_0": (6,),
            "pair_1": (2,),
        }
        plan = actions(remote.spec.action, (17, 2, 3), np.random.default_rng(0)) % 2
        theirs, ours = (host_roll(env, KEYS, plan) for env in (remote, local))
    check_stream(theirs)
    assert theirs.is_terminal.any() and (theirs.is_last & ~theirs.is_terminal).any()
    check_step(jax.tree.map(lambda x: x[0], theirs), remote.spec, (2, 3))
    assert_same(theirs, ours)


def test_wrong_shapes_are_told_with_the_sensor(tmp_path):
    with Elsewhere(tmp_path, "Liar") as there:
        env = envs.make(f"remote/{there.address}")
        with pytest.raises(
            border.Misfit, match=r"Count-v0: the sensor 'eye' has shape \(8, 8, 3\), expected \(16, 16, 3\)"
        ):
            env.reset(KEYS)


def test_a_server_that_comes_back_is_met_again(tmp_path):
    """Killed and started anew on its port: the pool waits for it, and starts new episodes."""
    first = Elsewhere(tmp_path, "Game")
    env = envs.make(f"remote/{first.address}", num_envs=2, patience=20)
    pool = Pool(env, KEYS)
    pool.action = np.zeros((2, 2), np.int32)
    pool.advance()
    first.kill()
    later: list[Elsewhere] = []
    starter = threading.Timer(1.0, lambda: later.append(Elsewhere(tmp_path, "Game", first.port)))
    starter.start()
    pool.action = np.zeros((2, 2), np.int32)
    with pytest.warns(UserWarning) as told:
        step = pool.advance()
    assert [str(w.message).partition(" (")[0] for w in told] == ["Count-v0 died", f"nothing answers at {first.address}"]
    assert pool.fresh and pool.restarts == 1 and step.is_first.all()
    pool.close()
    starter.join()
    later[0].kill()


def test_a_server_that_stays_away_is_one_error(tmp_path):
    there = Elsewhere(tmp_path, "Game")
    pool = Pool(envs.make(f"remote/{there.address}", patience=0), KEYS)
    there.kill()
    pool.action = np.zeros((2, 1), np.int32)
    with pytest.warns(UserWarning, match="restarted"):
        with pytest.raises(
            EnvironmentDied, match=f"Count-v0 died .*nothing answers at {there.address}.*after 3 restarts"
        ):
            pool.advance()
    pool.close()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nowhere.py:make"], "there is no environment 'nowhere.py:make'"),
        (["json:make"], "there is no environment 'json:make'"),
        (["Nothing-v0"], "there is no environment 'Nothing-v0'"),
        (["json:loads", "--port", "70000"], "no such port"),
    ],
)
def test_what_cannot_be_served_is_one_line(words, error, capsys):
    assert wire.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and error in said and said.count("\n") == 1


def test_a_server_for_others_makes_a_token_and_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.delenv(wire.TOKEN, raising=False)
    with Elsewhere(tmp_path, "Game", 0, "", "--host", "0.0.0.0") as there:
        line = there.process.stdout.readline()
        address = f"127.0.0.1:{there.port}"
        with pytest.raises(ConnectionError, match="asks for a token"):
            envs.make(f"remote/{address}")
        monkeypatch.setenv(wire.TOKEN, line.split("=")[1].split()[0])
        assert envs.make(f"remote/{address}").spec.name == "Count-v0"


def test_the_file_needs_numpy_only():
    """By its imports; gymnasium is for those who serve one of its environments."""
    names = set()
    for node in ast.walk(ast.parse(Path(wire.__file__).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    assert "numpy" in names and names <= {"numpy", "gymnasium", *sys.stdlib_module_names}
