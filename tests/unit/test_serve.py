"""A served policy: every client has a memory of its own, and what cannot be served is refused."""

import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.envs import wire
from jaxwm.studio import serve
from jaxwm.types import Agent, Box, Spec

SHAPES = {"eye": jax.ShapeDtypeStruct((4, 4, 1), np.uint8), "x": jax.ShapeDtypeStruct((2,), np.float32)}


def counter():
    """An agent that answers with the step of the episode, the reward and the sum of what it sees."""

    def act(state, carry, step, key, mode):
        carry = jnp.where(step.is_first, 0, carry) + 1
        seen = step.obs["x"].sum(-1) + step.obs["eye"].sum((1, 2, 3))
        return carry, jnp.stack([carry.astype(jnp.float32), step.reward, seen], -1), {}

    return Agent(None, lambda state, num: jnp.zeros(num, jnp.int32), act, {}, None, (), {})  # type: ignore[arg-type]


def player(agent, obs=SHAPES):
    spec, plan = Spec("t/Two", obs, Box(3)), SimpleNamespace(agent="counter", env="t/Two")
    envs = lambda num: SimpleNamespace(spec=spec)  # noqa: E731
    return SimpleNamespace(
        agent=agent, plan=plan, state=(), key=jax.random.key(0), member=2, env_steps=7, seed=1, envs=envs
    )


def test_every_client_has_a_memory_of_its_own():
    server = serve.prepare(player(counter()), "greedy", "127.0.0.1", 0, "")  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run)
    thread.start()
    one, two = wire.Agent(server.address), wire.Agent(server.address)
    obs = {"eye": np.ones((4, 4, 1), np.uint8), "x": np.array([0.25, 0.5])}
    assert one.about["action"] == {"kind": "Box", "size": 3}
    assert one.about["obs"] == {
        "eye": {"shape": [4, 4, 1], "dtype": "uint8"},
        "x": {"shape": [2], "dtype": "float32"},
    }
    assert [one.act(obs, reward).tolist() for reward in (0, 0.5)] == [[1, 0, 16.75], [2, 0.5, 16.75]]
    assert two.act(obs).tolist() == [1, 0, 16.75]
    for bad in (obs | {"x": np.zeros(3)}, {"x": np.zeros(2)}, obs | {"eye": np.full((4, 4, 1), 300)}, np.zeros(2)):
        with pytest.raises(wire.Failure, match=r"t/Two: the (sensor|observation)"):
            one.act(bad)
    assert one.act(obs | {"x": np.array([np.nan, 1])}, float("inf")).tolist() == [3, 0, 17]
    one.reset()
    assert [int(client.act(obs)[0]) for client in (one, two, one)] == [1, 2, 2]
    one.close(), two.close()
    server.stopped = True
    thread.join()


def test_what_cannot_be_served_is_refused():
    nobody = counter()._replace(act=None)
    with pytest.raises(ValueError, match="counter cannot be served: nothing acts in it"):
        serve.prepare(player(nobody), "greedy", "127.0.0.1", 0, "")  # type: ignore[arg-type]
    searching = player(counter(), SHAPES | {"sim": SimpleNamespace(board=0)})
    with pytest.raises(ValueError, match="it searches in the simulator of t/Two"):
        serve.prepare(searching, "greedy", "127.0.0.1", 0, "")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="can be reached from other machines"):
        serve.prepare(player(counter()), "greedy", "0.0.0.0", 0, "")  # type: ignore[arg-type]
