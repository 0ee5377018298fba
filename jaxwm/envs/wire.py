"""Environments and agents over a socket. This file needs Python 3.10 and NumPy, nothing else: copy it to the
machine that a game runs on.

    python wire.py CartPole-v1                  serve an environment of Gymnasium, which must be installed there
    python wire.py my_game.py:make --port 5555  serve what make() returns: an object with Gymnasium's interface

    jaxwm train dreamer-v3 --env remote/127.0.0.1:5555       learn it, from another process or machine

    agent = wire.Agent("127.0.0.1:5555")        ask an agent that `jaxwm serve RUN` serves
    action = agent.act(obs, reward)

A message is `JXW1`, four bytes with the length of a header (big endian), the header, and raw bytes. The header is a
JSON object. Its `kind` says what the message is, its `arrays` list what the bytes are, in order: for each array a
`path` into the observation, a `dtype` and a `shape` (C order, little endian). A server greets each client with `hello`
and a nonce; the client answers with a proof that it knows the token. Then it asks, and every question has one answer.
docs/sharing.md describes all kinds. Nothing is unpickled, and sizes are limited."""

from __future__ import annotations

import argparse
import hashlib
import hmac
import importlib
import importlib.util
import ipaddress
import json
import math
import os
import secrets
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

MAGIC, PROTOCOL = b"JXW1", 1
MOST_HEADER, MOST_BYTES, MOST_ARRAYS, MOST_AXES = 1 << 20, 1 << 26, 256, 16
STRANGER = 1 << 12  # bytes that a client may send before it has shown its proof
DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
PORT, PLACES, TOKEN = 5555, 64, "JAXWM_TOKEN"
PATIENCE = 10.0  # seconds that a server waits for a proof, and for a client that does not take its answer

Arrays = Iterable[tuple[tuple, Any]]
"""Pairs of a path and an array."""


# --- Messages -----------------------------------------------------------------------------------------------------


def encode(message: Mapping[str, Any], arrays: Arrays = ()) -> bytes:
    """A message as bytes. ValueError for an array of a type that has no name in `DTYPES`."""
    listed, parts = [], []
    for path, value in arrays:
        x = np.asarray(value)
        if x.dtype.name not in DTYPES:
            raise ValueError(f"{list(path)} holds {x.dtype}, which cannot be sent: use numbers or bool")
        listed.append({"path": list(path), "dtype": x.dtype.name, "shape": list(x.shape)})
        parts.append(np.ascontiguousarray(x, x.dtype.newbyteorder("<")).tobytes())
    header = json.dumps({**message, "arrays": listed}).encode()
    return b"".join([MAGIC, len(header).to_bytes(4, "big"), header, *parts])


def decode(buffer: bytearray, most: int = MOST_BYTES) -> tuple[dict[str, Any], list[tuple[tuple, np.ndarray]]] | None:
    """Take the first message out of `buffer`; None where it is not complete. ValueError where it cannot be one."""
    if bytes(buffer[:4]) != MAGIC[: len(buffer)]:
        raise ValueError("this is not the protocol of jaxwm")
    size = int.from_bytes(buffer[4:8], "big")
    if len(buffer) >= 8 and size > min(MOST_HEADER, most):
        raise ValueError(f"a header of {size:,} bytes is too long")
    if len(buffer) < 8 + size:
        return None
    try:
        message: Any = json.loads(buffer[8 : 8 + size])
        listed = [_entry(entry) for entry in message.pop("arrays", [])[: MOST_ARRAYS + 1]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the header is damaged ({type(error).__name__}: {str(error)[:80]})") from None
    sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in listed]
    if len(listed) > MOST_ARRAYS or sum(sizes) > most:
        raise ValueError(f"{len(listed)} arrays of {sum(sizes):,} bytes are too much")
    at = 8 + size
    if len(buffer) < at + sum(sizes):
        return None
    arrays = []
    for (path, dtype, shape), count in zip(listed, sizes, strict=True):
        flat = np.frombuffer(bytes(buffer[at : at + count]), np.uint8 if dtype == np.bool_ else dtype)
        arrays.append((path, (flat != 0 if dtype == np.bool_ else flat).reshape(shape)))
        at += count
    del buffer[:at]
    return message, arrays


def _entry(entry: Any) -> tuple[tuple, np.dtype, tuple[int, ...]]:
    """Path, type and shape of an array that a header lists."""
    path, name, shape = tuple(entry["path"]), entry["dtype"], tuple(entry["shape"])
    if name not in DTYPES:
        raise ValueError(f"{name!r} is no type of an array")
    if len(shape) > MOST_AXES or not all(type(n) is int and 0 <= n <= MOST_BYTES for n in shape):
        raise ValueError("a shape is a list of sizes")
    if len(path) > MOST_AXES or not all(type(key) in (int, str) for key in path):
        raise ValueError("a path is a list of names and places")
    return path, np.dtype(name).newbyteorder("<"), shape


def leaves(value: Any, path: tuple = ()) -> list[tuple[tuple, Any]]:
    """The arrays of nested dicts and tuples, with their paths; a single one has the path ()."""
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    if isinstance(value, tuple):
        return [leaf for place, inner in enumerate(value) for leaf in leaves(inner, (*path, place))]
    return [(path, value)]


def nest(arrays: Arrays) -> Any:
    """What `leaves` took apart. ValueError where paths do not fit together."""
    arrays = list(arrays)
    if [path for path, _ in arrays] == [()]:
        return arrays[0][1]
    inner: dict[Any, list] = {}
    for path, value in arrays:
        if not path:
            raise ValueError("one array has no path, and there are others")
        inner.setdefault(path[0], []).append((path[1:], value))
    found = {key: nest(parts) for key, parts in inner.items()}
    row = all(type(key) is int for key in found) and sorted(found) == list(range(len(found)))
    return tuple(found[place] for place in range(len(found))) if row and found else found


# --- Asking -------------------------------------------------------------------------------------------------------


class Failure(RuntimeError):
    """What the other side says went wrong there."""


class Client:
    """A connection to a server. ConnectionError, in one line, wherever it cannot be used."""

    def __init__(self, address: str, serves: str, token: str | None = None, timeout: float = 60.0):
        self.address, self.timeout, self._buffer = address, timeout, bytearray()
        host, port = parse(address)
        try:
            self._socket = socket.create_connection((host, port), timeout)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConnectionError(f"nothing answers at {address} ({reason}): start the server there first") from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._greet(serves, os.environ.get(TOKEN, "") if token is None else token)
        except BaseException:
            self.close()
            raise

    def _greet(self, serves: str, token: str) -> None:
        hello, _ = self._receive()
        if hello.get("protocol") != PROTOCOL:
            raise ConnectionError(f"{self.address} speaks protocol {hello.get('protocol')}, this file {PROTOCOL}")
        if hello.get("serves") != serves:
            raise ConnectionError(f"{self.address} serves an {hello.get('serves')}, not an {serves}")
        if hello.get("token") and not token:
            raise ConnectionError(f"{self.address} asks for a token: set {TOKEN} to the one of the server")
        self.ask({"kind": "hello", "proof": _proof(token if hello.get("token") else "", str(hello.get("nonce")))})

    def ask(self, message: Mapping[str, Any], arrays: Arrays = ()) -> tuple[dict[str, Any], list]:
        """The answer to a message. Failure where the other side failed, ConnectionError where it is gone."""
        data = encode(message, arrays)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionError(f"{self.address} is gone ({error.strerror or error})") from None
        return self._receive()

    def _receive(self) -> tuple[dict[str, Any], list]:
        try:
            while (found := decode(self._buffer)) is None:
                if not (data := self._socket.recv(1 << 18)):
                    raise ConnectionError(f"{self.address} closed the connection")
                self._buffer += data
        except ValueError as error:
            raise ConnectionError(f"{self.address}: {error}") from None
        except TimeoutError:
            raise ConnectionError(f"{self.address} has not answered for {self.timeout:g} s") from None
        except OSError as error:
            text = str(error)
            raise ConnectionError(text if self.address in text else f"{self.address} is gone ({text})") from None
        if found[0].get("kind") == "error":
            raise Failure(f"{self.address}: {str(found[0].get('text'))[:300]}")
        return found

    def close(self) -> None:
        """Leave; a second call does nothing."""
        self._socket.close()


class Environment(Client):
    """An environment that is served elsewhere, with Gymnasium's interface: `observation_space` and `action_space` have
    the names and attributes of its spaces, `spec` has its `id` and `max_episode_steps`."""

    def __init__(self, address: str, token: str | None = None, timeout: float = 60.0):
        super().__init__(address, "environment", token, timeout)
        try:
            about, _ = self.ask({"kind": "make"})
            self.observation_space, self.action_space = space(about["observation"]), space(about["action"])
            limit = about.get("max_steps")
            self.spec = SimpleNamespace(id=str(about["name"]), max_episode_steps=limit if limit is None else int(limit))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            self.close()
            raise ConnectionError(f"{address} does not say what its environment is ({error!r})") from None
        except BaseException:
            self.close()
            raise

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict]:
        """The first observation of an episode, and {}."""
        _, arrays = self.ask({"kind": "reset", "seed": seed})
        return nest(arrays), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Observation, reward, terminated, truncated and {}."""
        answer, arrays = self.ask({"kind": "step"}, leaves(action))
        return nest(arrays), answer.get("reward", 0.0), answer.get("terminated"), answer.get("truncated"), {}  # type: ignore[return-value]


class Agent(Client):
    """An agent that `jaxwm serve RUN` serves. `about` says who it is and what it wants to see: `obs`, the shape and
    dtype of each sensor, and `action`. Every connection has a memory of its own."""

    def __init__(self, address: str, token: str | None = None, timeout: float = 60.0):
        super().__init__(address, "agent", token, timeout)
        self.about, self._first = self.ask({"kind": "join"})[0], True

    def act(self, obs: Any, reward: float = 0.0) -> np.ndarray:
        """The action for an observation, an array or a dict of them; `reward` is the one that came with it. Indices
        are int32, numbers float32 in [-1, 1]."""
        answer = self.ask({"kind": "act", "reward": float(reward), "first": self._first}, leaves(obs))
        self._first = False
        return nest(answer[1])

    def reset(self) -> None:
        """An episode begins with the next observation."""
        self._first = True


def parse(address: str) -> tuple[str, int]:
    """HOST:PORT or [HOST]:PORT as host and port; ValueError for anything else."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ValueError(f"an address is HOST:PORT, such as 127.0.0.1:{PORT}, not {address!r}")
    return host.strip("[]"), int(port)


def _proof(token: str, nonce: str) -> str:
    return hmac.new(token.encode(), nonce.encode(), hashlib.sha256).hexdigest()


# --- Spaces as JSON -----------------------------------------------------------------------------------------------


def describe(space: Any) -> dict[str, Any]:
    """A space of Gymnasium as JSON. A bound that is infinite is null; equal bounds are one number."""
    kind = type(space).__name__
    if kind == "Dict":
        return {"kind": kind, "spaces": [[key, describe(inner)] for key, inner in space.spaces.items()]}
    if kind == "Tuple":
        return {"kind": kind, "spaces": [describe(inner) for inner in space.spaces]}
    said: dict[str, Any] = {"kind": kind}
    for name in ("n", "nvec", "start", "shape"):
        if getattr(space, name, None) is not None:
            said[name] = np.asarray(getattr(space, name)).tolist()
    if getattr(space, "dtype", None) is not None:
        said["dtype"] = np.dtype(space.dtype).name
    return said | {name: _bound(getattr(space, name)) for name in ("low", "high") if kind == "Box"}


def _bound(values: Any) -> Any:
    x = np.asarray(values, np.float64)
    x = x.flat[0] if x.size and (x == x.flat[0]).all() else x
    plain = lambda v: [plain(w) for w in v] if isinstance(v, list) else v if math.isfinite(v) else None  # noqa: E731
    return plain(x.tolist())


def space(said: Mapping[str, Any]) -> Any:
    """An object with the class name and the attributes of the space that `describe` described."""
    kind = str(said["kind"])
    found: Any = type(kind, (), {})()
    if kind in ("Dict", "Tuple"):
        inner = said["spaces"]
        found.spaces = {k: space(v) for k, v in inner} if kind == "Dict" else tuple(map(space, inner))
        return found
    for name in ("n", "start", "nvec"):
        if name in said:
            setattr(found, name, np.array(said[name]) if isinstance(said[name], list) else said[name])
    if "dtype" in said:
        found.dtype = np.dtype(said["dtype"])
    found.shape = tuple(int(n) for n in said.get("shape", ()))
    for name, open_end in (("low", -math.inf), ("high", math.inf)) if kind == "Box" else ():
        number = np.vectorize(lambda v, end=open_end: end if v is None else v, otypes=[np.float64])
        setattr(found, name, np.broadcast_to(number(np.array(said[name], object)), found.shape))
    return found


# --- Serving ------------------------------------------------------------------------------------------------------


class Guest:
    """One client of a server: its socket, what it has sent so far, and who answers it once it is known."""

    def __init__(self, connection: socket.socket, address: Any):
        self.connection, self.address, self.since = connection, address, time.monotonic()
        self.buffer, self.nonce = bytearray(), secrets.token_hex(16)
        self.session: Any = None

    def send(self, message: Mapping[str, Any], arrays: Arrays = ()) -> None:
        """Send a message; OSError where the client does not take it."""
        self.connection.sendall(encode(message, arrays))


class Server:
    """Answers clients one after the other, in the thread that calls `run`, as games and graphics often need.

    `join()` makes what answers one client: `answer(message, arrays) -> (message, arrays)` and `close()`. An exception
    of `answer` is told to that client and ends nothing. Without a `token` it listens on this machine only: ValueError
    for another host."""

    def __init__(
        self, serves: str, join: Callable[[], Any], host: str = "127.0.0.1", port: int = PORT, token: str = "",
        places: int = PLACES,
    ):  # fmt: skip
        if not (token or _loopback(host)):
            raise ValueError(f"{host} can be reached from other machines: set {TOKEN} to a secret that clients know")
        self.serves, self.join, self.token, self.places = serves, join, token, places
        self.guests: dict[socket.socket, Guest] = {}
        try:
            if not 0 <= port < 1 << 16:
                raise OSError("no such port")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self.listener = socket.create_server((host, port), family=family)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"cannot listen on {host}:{port} ({reason}): choose another with --host, --port") from None
        place, self.port = self.listener.getsockname()[:2]
        place = socket.gethostname() if ipaddress.ip_address(place).is_unspecified else place
        self.address = f"[{place}]:{self.port}" if ":" in place else f"{place}:{self.port}"
        self.stopped = False

    def run(self) -> None:
        """Answer until `stopped` is set, or an interrupt; then everything is closed."""
        try:
            while not self.stopped:
                self.turn(0.5)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def turn(self, seconds: float) -> None:
        """Wait so long for messages, and answer those that came."""
        with selectors.DefaultSelector() as selector:
            for waiting in (self.listener, *self.guests):
                selector.register(waiting, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(seconds)]
        for connection in ready:  # who leaves makes room for who comes
            if connection is not self.listener:
                self._read(self.guests[connection])  # type: ignore[index]
        if self.listener in ready:
            self._accept()
        for guest in list(self.guests.values()):
            if guest.session is None and time.monotonic() - guest.since > PATIENCE:
                self._drop(guest)

    def close(self) -> None:
        """Let all clients go."""
        for guest in list(self.guests.values()):
            self._drop(guest)
        self.listener.close()

    def _accept(self) -> None:
        try:
            guest = Guest(*self.listener.accept())
        except OSError:
            return
        guest.connection.settimeout(PATIENCE)
        guest.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        guest.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.guests[guest.connection] = guest
        try:
            if len(self.guests) > self.places:
                self._refuse(guest, f"all {self.places} places are taken: ask for fewer environments, or serve more")
            else:
                hello = dict(kind="hello", protocol=PROTOCOL, serves=self.serves, nonce=guest.nonce)
                guest.send({**hello, "token": bool(self.token)})
        except OSError:
            self._drop(guest)

    def _read(self, guest: Guest) -> None:
        """Take what a client has sent, and answer every whole message. One that breaks the rules is sent away."""
        try:
            data = guest.connection.recv(1 << 18)
            guest.buffer += data
            if not data:
                self._drop(guest)
            while data and (found := decode(guest.buffer, MOST_BYTES if guest.session else STRANGER)):
                if guest.session is None:
                    self._admit(guest, found[0])
                else:
                    self._answer(guest, *found)
                if guest.connection not in self.guests:
                    return
        except ValueError as error:
            self._refuse(guest, str(error))
        except OSError:
            self._drop(guest)

    def _admit(self, guest: Guest, message: dict[str, Any]) -> None:
        wanted, given = _proof(self.token, guest.nonce), message.get("proof")
        if message.get("kind") != "hello" or not hmac.compare_digest(wanted.encode(), str(given).encode()):
            return self._refuse(guest, f"wrong token: set {TOKEN} to the one of the server")
        guest.session = self.join()
        guest.send({"kind": "welcome"})

    def _answer(self, guest: Guest, message: dict[str, Any], arrays: list) -> None:
        try:
            data = encode(*guest.session.answer(message, arrays))
        except Exception as error:  # whatever a game raises is news for its client only
            data = encode({"kind": "error", "text": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        guest.connection.sendall(data)

    def _refuse(self, guest: Guest, text: str) -> None:
        try:
            guest.send({"kind": "error", "text": text})
        except OSError:
            pass
        self._drop(guest)

    def _drop(self, guest: Guest) -> None:
        self.guests.pop(guest.connection, None)
        guest.connection.close()
        if guest.session is not None:
            try:
                guest.session.close()
            except Exception as error:
                print(f"warning: a session did not close ({type(error).__name__}: {error})", file=sys.stderr)


def _loopback(host: str) -> bool:
    """Whether only this machine can reach an address; names other than localhost may mean anything."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Game:
    """One environment for one client, out of `make()`."""

    def __init__(self, make: Callable[[], Any]):
        self.make, self.env = make, None

    def answer(self, message: dict[str, Any], arrays: list) -> tuple[dict[str, Any], Arrays]:
        """Make, reset or step the environment."""
        kind, env = message.get("kind"), self.env
        if kind == "make":
            self.close()
            self.env = env = self.make()
            known = getattr(env, "spec", None)
            name = getattr(known, "id", None) or type(env).__name__
            said = dict(kind="spaces", name=name, max_steps=getattr(known, "max_episode_steps", None))
            return {**said, "observation": describe(env.observation_space), "action": describe(env.action_space)}, ()
        if env is None:
            raise ValueError("ask for 'make' first")
        if kind == "reset":
            seed = message.get("seed")
            obs = env.reset(seed=int(seed))[0] if seed is not None else env.reset()[0]
            return {"kind": "obs"}, leaves(obs)
        if kind == "step":
            action = nest(arrays)
            one = type(env.action_space).__name__ == "Discrete"
            obs, reward, terminated, truncated, _ = env.step(int(action) if one else action)
            said = dict(kind="step", reward=float(reward), terminated=bool(terminated), truncated=bool(truncated))
            return said, leaves(obs)
        raise ValueError(f"an environment is asked to make, reset or step, not to {kind!r}")

    def close(self) -> None:
        """Close the environment, if there is one."""
        env, self.env = self.env, None
        getattr(env, "close", lambda: None)()


def secret(host: str) -> tuple[str, bool]:
    """The token of a server: what JAXWM_TOKEN says, or a new one where others can reach it; whether it is new."""
    token = os.environ.get(TOKEN, "")
    new = not (token or _loopback(host))
    return (secrets.token_urlsafe(16) if new else token), new


def maker(what: str) -> Callable[[], Any]:
    """FILE.py:FUNCTION or MODULE:FUNCTION as that function, any other name as one of Gymnasium's. ValueError where
    there is none."""
    place, colon, name = what.rpartition(":")
    try:
        if not colon or ":" in place:
            import gymnasium

            gymnasium.spec(what)
            return lambda: gymnasium.make(what)
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
            spec.loader.exec_module(module)  # type: ignore[union-attr]
        else:
            module = importlib.import_module(place)
        return getattr(module, name)
    except Exception as error:
        raise ValueError(f"there is no environment {what!r} ({type(error).__name__}: {error})") from error


def main(arguments: list[str] | None = None) -> int:
    """Serve an environment; the exit status."""
    parser = argparse.ArgumentParser(description="Serve an environment with Gymnasium's interface to jaxwm.")
    parser.add_argument("what", help="name of a Gymnasium environment, or FILE.py:FUNCTION or MODULE:FUNCTION")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port (default: {PORT}; 0 for any that is free)")
    parser.add_argument("--places", type=int, default=PLACES, help=f"most environments at once (default: {PLACES})")
    options = parser.parse_args(arguments)
    token, new = secret(options.host)
    try:
        make = maker(options.what)
        server = Server("environment", lambda: Game(make), options.host, options.port, token, options.places)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.what} at {server.address}; learn it with: jaxwm train dreamer-v3 --env remote/{server.address}")
    if new:
        print(f"set {TOKEN}={token} for who may use it")
    sys.stdout.flush()
    server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
