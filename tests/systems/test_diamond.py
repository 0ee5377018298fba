"""DIAMOND against independent loops: windows and their losses, dreams that live on, replay by recency, order, sizes."""

from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cells import planes
from tiny import settings

from jaxwm import agents, replay, schedule
from jaxwm.agents import diamond
from jaxwm.control.frame_policy import reinforce_loss
from jaxwm.learning import optim
from jaxwm.models.diffusion import noise_levels
from jaxwm.models.pixel_world import pushed, same_episode, signed, stacked
from jaxwm.types import Collect, Discrete, Record, Repeat, Spec, Step, Train

PLANES = jax.ShapeDtypeStruct((4, 6, 2), np.bool_)
IMAGE = jax.ShapeDtypeStruct((64, 64, 3), np.uint8)
ACTIONS = 3
records = partial(planes, PLANES.shape, ACTIONS)


@cache
def made(**options) -> SimpleNamespace:
    """A tiny agent whose networks are not zero where they begin, and its state."""
    spec = Spec("my/Planes", PLANES, Discrete(ACTIONS), 20)
    config = settings("diamond", **options)
    agent = diamond.make(spec, config)
    shapes, rng = jax.eval_shape(lambda: agent.init(jax.random.key(0), agent.hyper)), np.random.default_rng(0)
    random = lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32)  # noqa: E731
    state = shapes._replace(params=jax.tree.map(random, shapes.params), hyper=optim.numbers(agent.hyper), opt=None)
    state = state._replace(memory=None, step=np.int32(0))
    return SimpleNamespace(agent=agent, nets=diamond.Networks(spec, config), config=config, state=state)


# --- Windows ------------------------------------------------------------------------------------------------------


def test_frames_of_another_episode_are_unknown():
    first = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 1, 1, 0]], bool)
    expected = [[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1]]
    np.testing.assert_array_equal(same_episode(first), np.array(expected, bool))
    record = records(2, 3, [(0, 1)])
    stack = stacked(record.obs, record.action, record.is_first, 5)
    np.testing.assert_array_equal(stack.known, [[False, False, False, True, True], [False, False, True, True, True]])
    np.testing.assert_array_equal(stack.frame[:, 2:], record.obs)
    np.testing.assert_array_equal(stack.action[:, 2:], record.action[:, :2])
    after = pushed(stack, record.obs[:, 0], record.action[:, 2])
    np.testing.assert_array_equal(after.frame[:, 1:4], record.obs)
    np.testing.assert_array_equal(after.action[:, 1:], record.action)
    assert np.asarray(after.known)[:, -1].all() and not np.asarray(after.known)[0, 1]


def test_the_denoiser_learns_two_frames_of_which_the_second_sees_its_guess():
    """The loss by a loop over targets, from the same noise; where an episode begins nothing is learned."""
    one, key = made(past=4), jax.random.key(3)
    world, params = one.nets.world, one.state.params["denoiser"]
    k, record = one.config.past, records(4, one.config.past + 2, [(0, 1), (1, 4), (2, 5), (3, 0)])

    @jax.jit
    def both(params):
        frame = signed(record.obs)
        sigma, noise, offset = diamond.noises(one.nets, key, frame.shape, diamond.ALONE)
        losses, guesses = [], []
        for i in range(2):
            past = frame[:, i : i + k]
            if i:
                mine = jnp.where(record.is_first[:, k, None, None, None], frame[:, k], guesses[0])
                past = jnp.concatenate([past[:, :-1], mine[:, None]], 1)
            known = same_episode(record.is_first[:, i : i + k])
            noisy = world.edm.noisy(frame[:, k + i], sigma[i], noise[i], offset[i])
            out = world.paint(params, noisy, sigma[i], past, record.action[:, i : i + k], known)
            guesses.append(world.edm.clean(noisy, out, sigma[i]))
            losses.append(jnp.square(out - world.edm.target(frame[:, k + i], noisy, sigma[i])).mean((1, 2, 3)))
        return jnp.stack(losses), diamond.denoiser_loss(one.nets, params, record, key)

    each, (total, _) = jax.device_get(both(params))
    valid = ~record.is_first[:, k:].T
    expected = np.mean([each[i][valid[i]].mean() for i in range(2)])
    assert total == pytest.approx(expected, rel=1e-4)


def test_what_a_painted_frame_depends_on():
    """Known frames and their actions; nothing of another episode."""
    one = made(past=4)
    record, noise = records(1, 4, [(0, 2)]), np.random.default_rng(1).normal(size=(1, *PLANES.shape))
    paint = jax.jit(
        lambda obs, action: one.nets.world.paint(
            one.state.params["denoiser"], noise, np.ones(1), signed(obs), action, same_episode(record.is_first)
        )
    )
    before = np.asarray(paint(record.obs, record.action))

    def moved(t: int, what: str) -> bool:
        obs, action = record.obs.copy(), record.action.copy()
        if what == "frame":
            obs[:, t] ^= True
        else:
            action[:, t] = (action[:, t] + 1) % ACTIONS
        return bool((np.asarray(paint(obs, action)) != before).any())

    assert [moved(t, "frame") for t in range(4)] == [False, False, True, True]
    assert [moved(t, "action") for t in range(4)] == [False, False, True, True]


def test_rewards_and_ends_are_read_off_pairs_of_frames():
    """The losses by loops from the same hidden states, which forget what was before an episode."""
    one, first = made(), [(0, 2), (1, 0)]
    record = records(2, 5, first)
    record.is_terminal[0, 1] = True
    world, params = one.nets.world, one.state.params["outcome"]

    @jax.jit
    def both(params):
        memory, hidden = world.remembered(params, record.obs, record.action, record.is_first)
        alone, _ = world.remembered(params, record.obs[:, 2:], record.action[:, 2:], record.is_first[:, 2:])
        step = memory
        step = world.advance(params, step, record.obs[:, -1], record.action[:, -1], record.obs[:, 0])
        longer = np.concatenate([record.obs, record.obs[:, :1]], 1)
        flags = np.pad(record.is_first, ((0, 0), (0, 1)))
        more, _ = world.remembered(params, longer, np.pad(record.action, ((0, 0), (0, 1))), flags)
        reward, end = world.judged(params, hidden)
        loss = diamond.outcome_loss(one.nets, params, record)
        return memory, alone, step, more, jax.nn.log_softmax(reward.logits), end, loss

    memory, alone, step, more, reward, end, (total, (_, metrics)) = jax.device_get(both(params))
    np.testing.assert_allclose(memory.hidden[0], alone.hidden[0], atol=1e-5)
    np.testing.assert_allclose(step.hidden, more.hidden, atol=1e-5)
    losses = {"reward": [], "end": []}
    for b in range(2):
        for t in range(4):
            if not record.is_first[b, t + 1]:
                losses["reward"].append(-reward[b, t, int(np.sign(record.reward[b, t + 1])) + 1])
                losses["end"].append(np.logaddexp(0, -end[b, t] if record.is_terminal[b, t + 1] else end[b, t]))
    for name, each in losses.items():
        assert metrics[f"loss/{name}"] == pytest.approx(np.mean(each), rel=1e-4), name
    assert total == pytest.approx(sum(map(np.mean, losses.values())), rel=1e-4)


# --- Dreams -------------------------------------------------------------------------------------------------------


def test_dreams_live_on_until_they_end_and_then_begin_anew():
    """Rows of two updates in a row: ages, ends, restarts, and the memory that the policy has at each of them."""
    one, batch = made(horizon=4, dream_steps=6), 4
    dreams, params = one.nets.dreams, one.state.params
    record = records(batch, 4, [(1, 2)], seed=5)
    record.is_last[3, -1] = record.is_terminal[3, -1] = True  # over: nothing begins there
    record = jax.tree.map(jnp.asarray, record)

    @jax.jit
    def run(params, now, key):
        return dreams.experience(params, now, record, 6, key)

    last, seen = jax.device_get(run(params, dreams.empty(batch), jax.random.key(1)))
    assert seen.obs.shape == (7, batch, *PLANES.shape) and seen.obs.dtype == bool
    assert seen.first[0].all() and (seen.weight == 1 - seen.last).all()
    np.testing.assert_array_equal(seen.obs[0], record.obs[:, -1])
    assert seen.last[0].tolist() == [False, False, False, True] and not seen.cont[0, 3]
    for b in range(batch):
        age, begun = 0, 0
        for t in range(1, 7):
            if seen.last[t - 1, b]:
                age, begun = 0, begun + 1
                assert seen.first[t, b] and seen.reward[t, b] == 0
                np.testing.assert_array_equal(seen.obs[t, b], record.obs[(b + begun) % batch, -1])
            else:
                age += 1
                assert not seen.first[t, b] and seen.reward[t, b] in (-1, 0, 1)
                assert seen.last[t, b] == (age == 4 or not seen.cont[t, b])
        assert last.age[b] == age
    assert (seen.first.sum(0) > 1).all(), "six steps are more than a dream"
    next_, more = jax.device_get(run(params, last, jax.random.key(2)))
    going = ~last.over
    np.testing.assert_array_equal(more.obs[0][going], last.stack.frame[:, -1][going])
    np.testing.assert_array_equal(more.memory.hidden[going], last.memory.hidden[going])
    np.testing.assert_array_equal(more.first[0], last.over | (last.age == 0))
    np.testing.assert_array_equal(more.obs[0][~going], record.obs[:, -1][~going])
    assert (next_.age <= 4).all()

    @jax.jit
    def behaved(params, seen):
        """Values as learning finds them, and as the dream's own memories give them, row by row."""
        value = one.nets.policy.behave(params["policy"], seen.obs, seen.memory, seen.first, seen.restart)[1]
        each = [one.nets.policy.behave(params["policy"], x[None], m, f[None], None)[1][0]
                for x, m, f in zip(seen.obs, memories(seen), jnp.zeros_like(seen.first), strict=True)]  # fmt: skip
        return value, jnp.stack(each)

    memories = lambda seen: [jax.tree.map(lambda x, t=t: x[t], seen.restart) for t in range(7)]  # noqa: E731
    value, expected = behaved(params, seen)
    np.testing.assert_allclose(value, expected, atol=1e-4)


def test_a_cut_dream_is_worth_its_last_value_and_an_ended_one_nothing():
    """Returns by a loop: horizon and end both stop the return, only the first bootstraps."""
    one = made(horizon=4, dream_steps=6)
    hyper, record = {"discount": 0.9, "lam": 0.8, "entropy": 0.0}, jax.tree.map(jnp.asarray, records(4, 4, seed=6))

    @jax.jit
    def both(params):
        _, seen = one.nets.dreams.experience(params, one.nets.dreams.empty(4), record, 6, jax.random.key(4))
        _, value = one.nets.policy.behave(params["policy"], seen.obs, seen.memory, seen.first, seen.restart)
        return seen, value, reinforce_loss(one.nets.policy, params["policy"], hyper, seen)

    seen, value, (_, (_, metrics)) = jax.device_get(both(one.state.params))
    critic = []
    for b in range(4):
        returns = value[-1, b]
        for t in reversed(range(6)):
            trace = 0.0 if seen.last[t + 1, b] else 0.8
            worth = 0.9 * seen.cont[t + 1, b]
            returns = seen.reward[t + 1, b] + worth * ((1 - trace) * value[t + 1, b] + trace * returns)
            critic.append((1 - seen.last[t, b]) * (returns - value[t, b]) ** 2)
    assert metrics["loss/critic"] == pytest.approx(np.mean(critic), rel=1e-4)
    assert (seen.last & (seen.cont == 1)).any(), "some dream was cut by its horizon"


def test_a_dream_for_looking_follows_given_actions():
    one, record = made(), records(2, 2)
    actions = np.random.default_rng(0).integers(0, ACTIONS, (2, 5)).astype(np.int32)
    run = jax.jit(one.agent.imagine, static_argnums=4)
    dream = jax.device_get(run(one.state, record, actions, jax.random.key(0), 5))
    np.testing.assert_array_equal(dream.action, actions)
    assert dream.obs.shape == (2, 5, *PLANES.shape) and dream.obs.dtype == bool
    other = actions.copy()
    other[:, 3:] = (other[:, 3:] + 1) % ACTIONS
    again = jax.device_get(run(one.state, record, other, jax.random.key(0), 5))
    np.testing.assert_array_equal(dream.obs[:, :3], again.obs[:, :3])
    assert (dream.reward[:, 3:] != again.reward[:, 3:]).any()


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["gru", "ssm"])
def test_a_memory_reaches_frames_before_the_stack(memory):
    """What the denoiser is told of an earlier frame, unless an episode began since; step by step it is the same."""
    one = made(memory=memory, memory_units=6, recall=3)
    world, params, record = one.nets.world, one.state.params["denoiser"], records(2, 6, [(1, 2)])
    shape = one.agent.train_steps
    assert shape["denoiser"].length == 3 + 2 + 2 and shape["policy"].length == 4

    @jax.jit
    def run(obs):
        states = world.recalled(params, obs, record.action, record.is_first)
        before = world.before_last(params, obs, record.action, record.is_first)
        stack = stacked(obs, record.action, record.is_first, 2, before)
        after = world.follow(params, stack, record.action[:, -1], jnp.zeros((2, *PLANES.shape)))
        noisy, past, actions = jnp.ones((2, *PLANES.shape)), signed(stack.frame), record.action[:, -2:]
        paint = partial(world.paint, params, noisy, jnp.ones(2), past, actions, stack.known)
        return states, before, after.memory, paint(after.memory), paint(after.memory + 1)

    states, before, memory_after, painted, other = jax.device_get(run(record.obs))
    np.testing.assert_allclose(before, states[:, 4], atol=1e-5)
    np.testing.assert_allclose(memory_after, states[:, 5], atol=1e-5)
    assert (painted != other).any((1, 2, 3)).all()
    changed = record.obs.copy()
    changed[:, 0] ^= True
    apart = (jax.device_get(run(changed))[1] != before).any(-1)
    assert apart.tolist() == [True, False]
    loss = jax.jit(lambda p, r: diamond.denoiser_loss(one.nets, p, r, jax.random.key(0))[0])
    assert np.isfinite(loss(params, records(2, 7, [(0, 1)])))


@pytest.mark.parametrize("sampler, passes", [("euler", 3), ("heun", 5)])
def test_passes_of_a_frame(sampler, passes):
    one = made(passes=3, sampler=sampler)
    stack = stacked(np.zeros((1, 2, *PLANES.shape), bool), np.zeros((1, 2), np.int32), np.zeros((1, 2), bool), 2)
    shape = jax.ShapeDtypeStruct((1, *PLANES.shape), jnp.float32)
    paint = lambda noise: one.nets.world.next_frame(one.state.params["denoiser"], stack, np.zeros(1, np.int32), noise)  # noqa: E731
    text = str(jax.make_jaxpr(paint)(shape))
    assert len(noise_levels(3)) == 4
    scans = [int(line.split("length=")[1].split()[0].rstrip("]")) for line in text.splitlines() if "length=" in line]
    assert scans == ([3] if sampler == "euler" else [2])
    assert passes == (scans[0] if sampler == "euler" else 2 * scans[0] + 1)


# --- Replay -------------------------------------------------------------------------------------------------------


def test_windows_come_from_recent_episodes():
    """Eight episodes of two environments, of very different lengths: each as often as its quarter says."""
    lengths = [(2, 3, 40, 5), (10, 10, 20, 10)]
    flags = np.zeros((50, 2), bool)
    for env, each in enumerate(lengths):
        flags[np.cumsum((0, *each[:-1])), env] = True
    one = Record(np.zeros((2, 1), np.float32), np.zeros(2, np.float32), *(flags[0],) * 3, np.zeros(2, np.int32), {})
    ring = replay.init(one, 100, 2)
    begun = np.argwhere(flags)  # in the order in which they began
    for row in range(50):
        ring = replay.add(ring, one._replace(is_first=flags[row]))
    draw = jax.jit(lambda key: replay.recent(ring, key, 8000, 4, last=True))
    batch = jax.device_get(draw(jax.random.key(0)))
    last = batch.index.row + 3
    counts = np.zeros(8)
    for number, (row, env) in enumerate(begun):
        later = [r for r, e in begun if e == env and r > row]
        inside = (batch.index.env == env) & (last >= row) & (last < min([*later, 50]))
        counts[number] = inside.sum()
    shares = np.array([0.05] * 6 + [0.35] * 2)
    early = begun[:, 0] < 3  # windows that would begin before the replay end later
    np.testing.assert_allclose((counts / 8000)[~early], shares[~early], atol=0.02)
    anywhere = jax.device_get(jax.jit(lambda key: replay.recent(ring, key, 8000, 4))(jax.random.key(1)))
    assert anywhere.index.row.min() >= 0 and anywhere.index.row.max() <= 46


def test_few_episodes_are_drawn_by_their_records_and_a_full_ring_keeps_its_order():
    flags = np.zeros((30, 1), bool)
    flags[[0, 25], 0] = True
    one = Record(np.zeros((1, 1), np.float32), np.zeros(1, np.float32), *(flags[0],) * 3, np.zeros(1, np.int32), {})
    ring = replay.init(one, 12, 1)
    for row in range(30):
        ring = replay.add(ring, one._replace(is_first=flags[row], reward=np.full(1, row, np.float32)))
    batch = jax.device_get(jax.jit(lambda key: replay.recent(ring, key, 4000, 1))(jax.random.key(0)))
    counts = np.bincount(batch.index.row, minlength=30)
    assert not counts[:18].any() and (np.abs(counts[18:] / 4000 - 1 / 12) < 0.02).all()
    np.testing.assert_array_equal(batch.record.reward[:, 0], batch.index.row)


# --- Order and sizes ----------------------------------------------------------------------------------------------


def test_the_published_order_and_sizes():
    config = diamond.PRESETS["published"]
    assert config == diamond.Config()
    collect, *first, rounds, rest = diamond.schedule(config)
    assert collect == Collect(5000) and isinstance(rounds, Repeat) and isinstance(rest, Repeat)
    assert first == [Train("denoiser", 10_000), Train("outcome", 10_000), Train("policy", 5000)]
    assert (rounds.times, rest.times) == (950, 50) and rounds.body[0] == Collect(100)
    assert 5000 + 950 * 100 == 100_000
    assert rest.body == rounds.body[1:] == tuple(Train(name, 400) for name in diamond.PARTS)
    agent = diamond.make(Spec("my/Game", IMAGE, Discrete(18)), config)
    lengths = {name: (step.batch_size, step.length) for name, step in agent.train_steps.items()}
    assert lengths == {"denoiser": (32, 6), "outcome": (32, 19), "policy": (32, 4)}
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), agent.hyper))
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    assert count(state.params) == pytest.approx(13e6, rel=0.05)  # the paper counts 13 million
    assert state.memory.stack.frame.shape == (32, 4, 64, 64, 3)


def test_recordings_need_no_first_round():
    words = schedule.offline(diamond.schedule(settings("diamond")), 1000, 1000)
    assert [word.name for word in schedule.words(words) if isinstance(word, Train)] == list(diamond.PARTS)


def test_what_does_not_fit_is_one_clear_line():
    with pytest.raises(ValueError, match=r"take dreamer-v3"):
        agents.make("diamond", Spec("my/Vector", jax.ShapeDtypeStruct((4,), np.float32), Discrete(2)))
    with pytest.raises(ValueError, match="the policy halves images four times"):
        agents.make("diamond", Spec("my/Icon", jax.ShapeDtypeStruct((8, 8, 3), np.uint8), Discrete(2)))
    with pytest.raises(ValueError, match="cond must be a multiple of 2 x past, 8, not 30"):
        agents.settings("diamond", "micro", cond=30)


def test_policy_in_reality_sees_the_frame_itself():
    one = made()
    step = Step(np.ones((2, *PLANES.shape), bool), np.zeros(2, np.float32), *[np.array([True, False])] * 3)
    carry, action, extras = one.agent.act(one.state, one.agent.reset(one.state, 2), step, jax.random.key(0), "greedy")
    other = step._replace(obs=~step.obs)
    assert extras == {} and action.shape == (2,)
    assert (one.agent.act(one.state, carry, other, jax.random.key(0), "greedy")[0].hidden != carry.hidden).any()


def test_adam_with_weight_decay_and_warm_up_is_that_of_optax():
    """On a tree of kernels and others, over some steps; only kernels decay."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(30, 20)), "bias": rng.normal(size=7), "inner": {"kernel": rng.normal(size=3)}}
    params = jax.tree.map(jnp.float32, params)
    kernels = {"kernel": True, "bias": False, "inner": {"kernel": True}}
    ours = optim.adamw(1.0, 1e-8, 0.3, 4)
    rate = lambda done: 0.1 * min(1.0, (done + 1) / 4)  # noqa: E731
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(0.3, kernels))
    state, expected, other = ours.init(params), params, theirs.init(params)
    for step in range(6):
        grads = jax.tree.map(lambda x, step=step: jnp.sin(x + step), expected)
        direction, state = ours.update(grads, state, params)
        params = jax.tree.map(lambda p, d: p - 0.1 * d, params, direction)
        direction, other = theirs.update(grads, other, expected)
        expected = jax.tree.map(lambda p, d, step=step: p - rate(step) * d, expected, direction)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, expected)
