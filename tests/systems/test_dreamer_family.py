"""PlaNet, Dreamer V1 and Dreamer V2: the pieces against formulas, the gradients against each other, probes, resume."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import agents, envs
from jaxwm.agents import dreamer_v1, dreamer_v2
from jaxwm.control.policy import disturb
from jaxwm.distributions import Normal, TanhNormal, one_hot
from jaxwm.learning import optim
from jaxwm.learning.step import descend
from jaxwm.models import rssm
from jaxwm.models.rssm import Categorical, ClassicRSSM, Gaussian, Latent
from jaxwm.nets.layers import apply
from jaxwm.training.life import Cursor
from jaxwm.training.trainer import Trainer
from jaxwm.types import Batch, Box, Discrete, Index, MultiDiscrete, Record, Spec, Step

MICRO = "micro"
FAMILY = {"planet": "published", "dreamer-v1": "published", "dreamer-v2": "atari"}
VECTOR, GRID = jax.ShapeDtypeStruct((3,), jnp.float32), jax.ShapeDtypeStruct((4, 4, 2), jnp.bool_)
IMAGE = jax.ShapeDtypeStruct((64, 64, 3), jnp.uint8)


def tiny(name: str, **options):
    base = dict(deter=8, hidden=8, stoch=3, units=8, depth=1, envs=2, batch_size=2, batch_length=4, prefill=20)
    base |= dict(collect=4, phase_updates=1, capacity=200)
    if name == "planet":
        base |= dict(plan_horizon=3, candidates=8, elites=2, iterations=2)
    else:
        base |= dict(imag_length=3)
    if name == "dreamer-v2":
        base |= dict(classes=4, slow_every=3)
    return agents.settings(name, MICRO, **(base | options))


def close(ours, theirs, atol=1e-5):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-5, atol=atol)


# --- Distributions ------------------------------------------------------------------------------------------------


def test_kl_of_normals_is_its_integral():
    p, q = Normal(*np.float32([0.3, 0.7])), Normal(*np.float32([-0.5, 1.3]))
    x, kl, log_prob = np.linspace(-12, 12, 200_001), jax.jit(Normal.kl), jax.jit(Normal.log_prob)
    log = lambda d: np.asarray(log_prob(d, x), np.float64)  # noqa: E731
    integral = np.trapezoid(np.exp(log(p)) * (log(p) - log(q)), x)
    close(kl(p, q), integral, 1e-4)
    close(kl(p, p), 0.0)


def test_a_squashed_normal_integrates_to_one_and_its_samples_fit():
    dist, log_prob = TanhNormal(*np.float32([0.4, 0.8])), jax.jit(TanhNormal.log_prob)
    x = np.linspace(-1 + 1e-5, 1 - 1e-5, 400_001)
    density = np.exp(np.asarray(log_prob(dist, x), np.float64))
    close(np.trapezoid(density, x), 1.0, 1e-3)
    samples = np.asarray(jax.jit(lambda key: dist.pick(jax.random.normal(key, (100_000,))))(jax.random.key(0)))
    close(samples.mean(), np.trapezoid(density * x, x), 1e-2)
    assert np.isfinite(log_prob(dist, np.float32([-1, 1]))).all()


def test_noise_on_actions():
    cases = (Box(2), np.full((1000, 2), np.float32(0.9)), 0.3), (Discrete(4), np.zeros(4000, np.int32), 0.4)
    cases += ((MultiDiscrete((2, 3)), np.zeros((50, 2), np.int32), 0.0),)
    disturbed = jax.jit(lambda key: [disturb(space, x, jnp.float32(noise), key) for space, x, noise in cases])
    box, choice, many = jax.device_get(disturbed(jax.random.key(0)))
    assert box.min() > -1 and box.max() == 1.0 and abs(float(np.minimum(box, np.float32(0.9)).std()) - 0.175) < 0.03
    close((choice == 0).mean(), 0.6 + 0.1, 0.03)
    assert many.shape == (50, 2) and not many.any()


# --- The recurrent model ------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("norm", [False, True])
def test_classic_cell(norm):
    """One step of the recurrence and of both heads, against numpy."""
    model = ClassicRSSM(2, 5, 4, 6, Gaussian(3, 0.1), "elu", norm)
    rng = np.random.default_rng(0)
    params = jax.eval_shape(model.init, jax.random.key(0), *(np.zeros((1, n), np.float32) for n in (5, 2)))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    deter, stoch, action, tokens = (rng.normal(size=(1, n)) for n in (4, 3, 2, 5))
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    elu = lambda x: np.where(x > 0, x, np.expm1(x))  # noqa: E731
    dense = lambda name, x: x @ w[name]["kernel"] + w[name]["bias"]  # noqa: E731

    x = elu(dense("inputs", np.concatenate([stoch, action], -1)))
    if norm:
        both = dense("gru", np.concatenate([x, deter], -1))
        both = (both - both.mean()) / np.sqrt(both.var() + 1e-6) * w["gru_norm"]["scale"] + w["gru_norm"]["bias"]
        reset, cand, update = np.split(both, 3, -1)
        cand, update = np.tanh(sigmoid(reset) * cand), sigmoid(update - 1)
    else:
        own, past = x @ w["gru"]["kernel"][:6] + w["gru"]["bias"], deter @ w["gru"]["kernel"][6:]
        (r, c, u), (rh, ch, uh) = np.split(own, 3, -1), np.split(past, 3, -1)
        cand, update = np.tanh(c + sigmoid(r + rh) * ch), sigmoid(u + uh)
    expected = update * cand + (1 - update) * deter

    @jax.jit
    def step(params, deter, stoch, action, tokens):
        embedded = model.apply(params, action, method="embed_action")
        out = model.apply(params, deter[None], Latent(deter, stoch[..., None]), embedded, method="recur")[0]
        post = model.apply(params, out, model.apply(params, tokens, method="embed_tokens"), method="posterior")
        return out, post, model.apply(params, out, method="prior")

    out, post, prior = jax.device_get(step(params, *(x.astype(np.float32) for x in (deter, stoch, action, tokens))))
    close(out, expected)

    mean, std = np.split(dense("post", elu(dense("obs", np.concatenate([expected, tokens], -1)))), 2, -1)
    close(post.mean, mean, 1e-4)
    close(post.std, np.log1p(np.exp(std)) + 0.1, 1e-4)
    hidden = elu(out @ w["img"]["linear0"]["kernel"] + w["img"]["linear0"]["bias"])
    close(prior.mean, np.split(dense("prior_out", hidden), 2, -1)[0], 1e-4)


@pytest.mark.parametrize("latents", [Gaussian(3), Categorical(3, 4)])
def test_latents(latents):
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(5, 2, latents.outputs)).astype(np.float32)
    uniform = rng.uniform(size=(5, 2, 3)).astype(np.float32)

    @jax.jit
    def results(raw, uniform):
        dist = latents.dist(raw)
        drawn = latents.draw(dist, uniform)
        hot = latents.dream(latents.dist(raw.at[..., 0].add(3.0)), uniform, 50.0)
        return drawn, latents.dream(dist, uniform), latents.unpack(latents.pack(drawn)), hot

    drawn, dreamed, unpacked, hot = jax.device_get(results(raw, uniform))
    assert drawn.shape == (5, 2, *latents.shape)
    close(dreamed, drawn)
    close(unpacked, drawn)
    assert np.isfinite(hot).all()


def test_gaussian_latents_follow_mean_and_deviation():
    latents, raw = Gaussian(1, 0.1), np.float32([[0.7, 0.2]])
    uniform = np.random.default_rng(0).uniform(size=(200_000, 1)).astype(np.float32)
    drawn = np.asarray(jax.jit(lambda raw, uniform: latents.draw(latents.dist(raw), uniform))(raw, uniform))[..., 0, 0]
    close(drawn.mean(), 0.7, 0.02)
    close(drawn.std(), np.log1p(np.exp(0.2)) + 0.1, 0.02)


def test_kl_halves_and_joint():
    """The two halves have the gradients of the KL for one side each; `joint` has both."""
    post, prior = np.random.default_rng(0).normal(size=(2, 1, 3, 4)).astype(np.float32)
    whole = lambda a, b: one_hot(a).kl(one_hot(b)).sum()  # noqa: E731
    half = lambda i, a, b: rssm.kl_losses(one_hot(a), one_hot(b))[i].sum()  # noqa: E731
    joint = lambda a, b: rssm.joint(*rssm.kl_losses(one_hot(a), one_hot(b))).sum()  # noqa: E731
    functions = whole, partial(half, 0), partial(half, 1), joint
    results = jax.jit(lambda a, b: [jax.value_and_grad(f, (0, 1))(a, b) for f in functions])(post, prior)
    (value, (to_post, to_prior)), (_, first), (_, second), (total, both) = jax.device_get(results)
    close(first[0], 0 * post)
    close(first[1], to_prior)
    close(second[0], to_post)
    close(second[1], 0 * prior)
    close(both[0], to_post)
    close(both[1], to_prior)
    close(total, value)


# --- The optimiser ------------------------------------------------------------------------------------------------


def test_groups_are_clipped_and_stepped_apart():
    groups = {"big": ("a", "b"), "small": ("c",)}
    ones = lambda *shape: np.ones(shape, np.float32)  # noqa: E731
    params = {"a": ones(3, 2), "b": {"x": ones(4)}, "c": ones(300)}
    grads = jax.tree.map(lambda x: 100 * x, params) | {"c": np.float32(1e-3) * ones(300)}
    tx = optim.apart(groups, optim.adam(1.0, 0.1))

    @jax.jit
    def step(grads, params):
        direction, state = tx.update(grads, tx.init(params), params)
        return direction, state, descend(params, direction, {"a": 0.5, "b": 0.5, "c": 2.0}, weight_decay=0.1)

    direction, state, new = jax.device_get(step(grads, params))
    clipped = 1.0 / np.sqrt(10)  # of ten equal entries with norm 1
    close(direction["a"], np.full((3, 2), clipped / (clipped + 0.1)), 1e-4)
    close(direction["b"]["x"], np.full(4, clipped / (clipped + 0.1)), 1e-4)
    close(direction["c"], np.full(300, 1e-3 / (1e-3 + 0.1)), 1e-4)  # far below the limit
    close(new["a"], 0.95 * params["a"] - 0.5 * direction["a"])
    close(new["c"], 0.8 * params["c"] - 2.0 * direction["c"])
    assert set(state) == set(groups)


def random_obs(spec, key, lead):
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    if spec.dtype == jnp.float32:
        return rng.normal(size=(*lead, *spec.shape)).astype(np.float32)
    return rng.integers(0, 2, (*lead, *spec.shape)).astype(spec.dtype)


def random_record(agent, spec, config, key):
    """A batch of sequences as the replay would give it."""
    lead = config.batch_size, config.batch_length
    state = jax.eval_shape(lambda: agent.init(key, agent.hyper))
    flags = np.zeros(lead, bool)
    obs = random_obs(spec.obs, key, lead)

    def extras(state):
        step = Step(jax.tree.map(lambda x: x[:, 0], obs), np.zeros(lead[0], np.float32), *[flags[:, 0]] * 3)
        return agent.act(state, agent.reset(state, lead[0]), step, key, "random")[1:]

    action, extra = jax.eval_shape(extras, state)
    fill = lambda x: np.zeros((x.shape[0], lead[1], *x.shape[1:]), x.dtype)  # noqa: E731
    action, extra = jax.tree.map(fill, (action, extra))
    first = flags | (np.arange(lead[1]) == 2)
    record = Record(obs, jax.random.normal(key, lead), first, flags, flags, action, extra)
    return jax.tree.map(jnp.asarray, record)


@pytest.mark.parametrize("name", FAMILY)
def test_published_settings_are_the_default(name):
    entry = agents.find(name)
    assert entry.presets[FAMILY[name]] == entry.config()
    assert entry.config().batch_size == entry.config().batch_length == 50


# --- Whose gradient goes where ------------------------------------------------------------------------------------


def built(name: str, space, **options):
    """A learner, parameters at random and a few starts of dreams."""
    spec, config = Spec("test", VECTOR, space, 10), tiny(name, **options)
    learner = {"dreamer-v1": dreamer_v1, "dreamer-v2": dreamer_v2}[name].build(spec, config)
    rng = np.random.default_rng(5)

    def drawn(path, like):
        if like.ndim > 1:
            return rng.normal(0, like.shape[-2] ** -0.5, like.shape).astype(np.float32)
        return np.full(like.shape, path[-1].key == "scale", np.float32)

    params = jax.eval_shape(lambda: learner.world.init(jax.random.key(1), learner.heads))
    params = jax.tree_util.tree_map_with_path(drawn, params)
    starts = (rng.normal(size=(3, *shape)).astype(np.float32) for shape in ((8,), learner.world.dyn.latents.shape))
    return learner, params, Latent(*starts)


def numbers(**hyper):
    return {name: np.float32(value) for name, value in hyper.items()}


def test_actor_of_v1_climbs_the_dreamed_return():
    """With fixed noise its gradient is the finite difference of its loss: it runs through the whole dream.

    The actor here ignores what it sees, as the gradient leaves out that a changed dream is also seen as another one.
    """
    learner, params, starts = built("dreamer-v1", Box(1), imag_length=4)
    for name in ("mean", "std"):
        params["pol"]["params"][name]["kernel"] = 0 * params["pol"]["params"][name]["kernel"]
    hyper, key = numbers(discount=0.9, lam=0.8), jax.random.key(7)

    @jax.jit
    @jax.value_and_grad
    def loss(bias):
        pol = params["pol"]["params"]
        pol = {"params": pol | {"mean": pol["mean"] | {"bias": bias}}}
        return dreamer_v1.behaviour_losses(learner, params | {"pol": pol}, hyper, starts, key)[0]

    at, eps = np.float32([0.3]), np.float32(1e-2)
    slope = float(loss(at + eps)[0] - loss(at - eps)[0]) / (2 * eps)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(loss(at)[1][0], slope, rtol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dreamer-v1", "dreamer-v2"])
def test_behaviour_teaches_actor_and_critic_alone(name):
    """The actor's loss reaches the actor, the critic's the critic, and no dream teaches the model."""
    options = {"con_scale": 10.0} if name == "dreamer-v1" else {}
    learner, params, starts = built(name, Discrete(3), **options)
    hyper = numbers(discount=0.9, lam=0.8, entropy=0.1, actor_mix=0.5)
    state = hyper if name == "dreamer-v1" else SimpleNamespace(hyper=hyper, slow=params["val"])
    behaviour = {"dreamer-v1": dreamer_v1, "dreamer-v2": dreamer_v2}[name].behaviour_losses
    for which, owner in enumerate(("pol", "val")):
        grads = jax.jit(jax.grad(lambda p, i=which: behaviour(learner, p, state, starts, jax.random.key(2))[i]))(params)
        taught = {part for part, tree in grads.items() if any(bool(x.any()) for x in jax.tree.leaves(tree))}
        assert taught == {owner}


def test_dreams_of_v1_from_an_end_teach_nothing():
    """A start whose own continue flag is 0 has weight 0, for actor and critic."""
    learner, params, starts = built("dreamer-v1", Discrete(3), con_scale=10.0)
    last = params["con"]["params"]["logit"]
    params["con"]["params"]["logit"] = {"kernel": 0 * last["kernel"], "bias": 0 * last["bias"] - 200}
    policy, value, _ = jax.jit(partial(dreamer_v1.behaviour_losses, learner))(
        params, numbers(discount=0.9, lam=0.8), starts, jax.random.key(2)
    )
    assert policy == 0 and value == 0


@pytest.mark.slow
def test_actor_of_v2_mixes_two_gradients():
    """1: REINFORCE with the slow critic as baseline; 0: the gradient through the dream; between: the mixture."""
    learner, params, starts = built("dreamer-v2", Discrete(3))
    key = jax.random.key(3)
    slow = jax.tree.map(lambda x: 0.5 * x, params["val"])

    def dreamed(pol):
        actor = lambda feat: learner.actor({"pol": pol}, feat)  # noqa: E731
        dream, actions = learner.world.explore(params, starts, actor, 3, key)
        feat = dream.feat()
        reward, cont = learner.predict_reward_and_continue(params, feat)
        value, cont = learner.value(slow, feat), 0.9 * cont
        returns = [value[3]]
        for t in (2, 1, 0):  # R_t = r_{t+1} + c_{t+1} ((1 - lambda) v_{t+1} + lambda R_{t+1})
            returns.insert(0, reward[t + 1] + cont[t + 1] * (0.2 * value[t + 1] + 0.8 * returns[0]))
        weight = jnp.stack([cont[0], cont[0] * cont[1], cont[0] * cont[1] * cont[2]])
        return feat, actions, jnp.stack(returns[:3]), value, weight

    fixed = jax.tree.map(jax.lax.stop_gradient, dreamed(params["pol"]))

    def reinforce(pol):
        feat, actions, returns, value, weight = fixed
        logp = learner.actor({"pol": pol}, feat[:3]).log_prob(actions[:3])
        return -(weight * logp * (returns - value[:3])).mean()

    def dynamics(pol):
        return -(fixed[4] * dreamed(pol)[2]).mean()

    @jax.jit
    def ours(pol, mix):
        state = SimpleNamespace(hyper=numbers(discount=0.9, lam=0.8, entropy=0.0) | {"actor_mix": mix}, slow=slow)
        return jax.grad(lambda pol: dreamer_v2.behaviour_losses(learner, params | {"pol": pol}, state, starts, key)[0])(
            pol
        )

    score, path = jax.jit(lambda pol: (jax.grad(reinforce)(pol), jax.grad(dynamics)(pol)))(params["pol"])
    assert all(max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads)) > 1e-5 for grads in (score, path))
    for mix in (1.0, 0.0, 0.25):
        expected = jax.tree.map(lambda a, b, mix=mix: mix * a + (1 - mix) * b, score, path)
        jax.tree.map(partial(close, atol=1e-6), ours(params["pol"], mix), expected)


@pytest.mark.slow
def test_slow_critic_is_a_copy_every_few_updates():
    spec, config = Spec("test", VECTOR, Discrete(2), 10), tiny("dreamer-v2")
    agent = dreamer_v2.make(spec, config)
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    record = random_record(agent, spec, config, jax.random.key(1))
    batch = Batch(record, Index(jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32)), jnp.ones(2))
    learn, first = jax.jit(agent.train_step), state.slow
    same = lambda a, b: all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))  # noqa: E731
    for i in range(1, 5):
        state, _ = learn(state, batch, jax.random.key(i))
        assert same(state.slow, first) == (i < 3) and same(state.slow, state.params["val"]) == (i == 3)


@pytest.mark.parametrize("name", [pytest.param("dreamer-v1", marks=pytest.mark.slow), "dreamer-v2"])
def test_losses_of_the_model_by_hand(name):
    """Squared errors, the Bernoulli loss and both KLs in numpy, from latents and heads; their sum with the weights."""
    scales = dict(rec_scale=0.7, con_scale=3.0) | (dict(kl_scale=0.2, squash=True) if name == "dreamer-v2" else {})
    learner, params, _ = built(name, Discrete(3), **scales)
    config, world = learner.config, learner.world
    agent = agents.make(name, world.spec, MICRO, **vars(config))
    record = random_record(agent, world.spec, config, jax.random.key(1))
    terminal = np.array(record.is_terminal)
    terminal[0, 1] = True
    record = record._replace(is_terminal=jnp.asarray(terminal))
    module = {"dreamer-v1": dreamer_v1, "dreamer-v2": dreamer_v2}[name]

    @jax.jit
    def run(params):
        key = jax.random.key(2)
        latents, total, metrics = module.model_loss(learner, params, record, key)
        _, post, prior, _ = world.infer(params, record, jax.random.uniform(key, (2, 4, 3)))
        outputs = {head: apply(learner.heads[head], params[head], latents.feat()) for head in ("rew", "con")}
        flat = latents.stoch.reshape(2, 4, -1)
        return total, metrics, post, prior, outputs, apply(world.dec, params["dec"], latents.deter, flat)["obs"]

    total, metrics, post, prior, outputs, seen = jax.tree.map(lambda x: np.asarray(x, np.float64), run(params))
    obs, reward = np.asarray(record.obs, np.float64), np.asarray(record.reward, np.float64)
    rec = np.square(seen - np.sign(obs) * np.log1p(np.abs(obs))).sum(-1).mean()
    rew = 0.5 * np.square(outputs["rew"]["mean"][..., 0] - (np.tanh(reward) if name == "dreamer-v2" else reward)).mean()
    logit, flag = outputs["con"]["logit"][..., 0], 1.0 - np.asarray(record.is_terminal)
    con = (np.log1p(np.exp(logit)) - logit * flag).mean()
    if name == "dreamer-v2":
        kl = (np.exp(post.logp) * (post.logp - prior.logp)).sum((-1, -2)).mean()
        kl_term = 0.2 * kl
    else:
        ratio = post.std / prior.std
        kl = (0.5 * (ratio**2 + ((post.mean - prior.mean) / prior.std) ** 2 - 1) - np.log(ratio)).sum(-1).mean()
        kl_term = max(kl, config.free_nats)
    for term, expected in dict(rec=rec, rew=rew, con=con, dyn=kl, rep=kl).items():
        assert metrics[f"loss/{term}"] == pytest.approx(expected, rel=1e-4), term
    assert total == pytest.approx(0.7 * rec + rew + 3.0 * con + kl_term, rel=1e-4)


@pytest.mark.slow
def test_free_nats_hold_the_mean_kl():
    """Below the free nats the KL has no gradient; above, all of it (Dreamer V1 and PlaNet: on the mean)."""
    learner, params, _ = built("dreamer-v1", Box(1))
    agent = dreamer_v1.make(learner.world.spec, learner.config)
    record = random_record(agent, learner.world.spec, learner.config, jax.random.key(1))

    def prior_moves(free):
        config = tiny("dreamer-v1", free_nats=free, rec_scale=0.0)
        only = dreamer_v1.build(learner.world.spec, config)
        hyper, key = numbers(discount=0.9, lam=0.8), jax.random.key(2)
        loss = lambda p: dreamer_v1.loss(only, p, hyper, record, key)[0]  # noqa: E731
        grads = jax.jit(jax.grad(loss))(params)["dyn"]["params"]["prior_out"]["kernel"]
        return float(jnp.abs(grads).max())

    assert prior_moves(1e3) == 0.0 < prior_moves(0.0)


# --- Probes: values and actions that the mathematics gives --------------------------------------------------------

PROBE = dict(
    deter=16, hidden=16, stoch=4, units=16, depth=1, envs=8, batch_size=16, batch_length=8, prefill=200, collect=8,
    phase_updates=4, capacity=2000, free_nats=0.1,
)  # fmt: skip


def trained(name: str, env_name: str, updates: int, **options):
    """An agent trained on a probe, two members."""
    settings = {k: v for k, v in (PROBE | options).items() if k in agents.find(name).config.__dataclass_fields__}
    env = envs.make(env_name, 8)
    agent = agents.make(name, env.spec, MICRO, **settings)
    trainer = Trainer(agent, env, 2, 2000, max_iterations=max(256, updates))
    life, cursor = trainer.init(0), Cursor()
    while int(life.counters.updates) < updates:
        life, cursor, _ = trainer.run(life, cursor, 10_000)
    return agent, env, life


def seen(agent, env, life):
    """Latents that acting sees at the first step of episodes, with the observation."""
    _, step = env.reset(jax.random.key(9))
    state = jax.tree.map(lambda x: x[0], life.agent)
    carry, _, _ = jax.jit(partial(agent.act, mode="greedy"))(state, agent.reset(state, 8), step, jax.random.key(3))
    return state, carry.latent, step


@pytest.mark.slow
def test_v2_values_of_a_probe():
    """obs_reward: V(s) = s with a critic that leaves out no step and no discount."""
    options = dict(classes=4, imag_length=3, model_lr=3e-3, value_lr=3e-3, actor_lr=1e-3, discount=0.9, kl_scale=0.1)
    options["rec_scale"] = 30.0  # the latents are drawn: what is seen has to matter for them to be sure
    agent, env, life = trained("dreamer-v2", "probe/ObsReward", 1500, slow_every=20, **options)
    state, latent, step = seen(agent, env, life)
    same = {name: size for name, size in PROBE.items() if name != "free_nats"}
    learner = dreamer_v2.build(env.spec, tiny("dreamer-v2", **same, **options))
    value = learner.value(state.params["val"], latent.feat())
    np.testing.assert_allclose(value, step.obs[:, 0], atol=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["planet", "dreamer-v1"])
def test_continuous_probe_is_solved(name):
    """continuous_target: the best action is 1/2, which earns 0; a random one earns -7/12."""
    options = dict(plan_horizon=2, candidates=64, elites=8, iterations=4, model_lr=3e-3, actor_lr=3e-3, lr=3e-3)
    options |= dict(imag_length=3, con_scale=1.0, init_std=1.0)
    agent, env, life = trained(name, "probe/ContinuousTarget", 1200, **options)
    state, _, step = seen(agent, env, life)
    _, action, _ = agent.act(state, agent.reset(state, 8), step, jax.random.key(4), "greedy")
    np.testing.assert_allclose(action, 0.5, atol=0.15)


# --- Going on -----------------------------------------------------------------------------------------------------


# --- Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("planet", {"elites": 9}, "elites"),
        ("planet", {"lr": 0.0}, "lr"),
        ("dreamer-v1", {"discount": 1.5}, "discount"),
        ("dreamer-v1", {"batch_length": 1}, "batch_length"),
        ("dreamer-v2", {"classes": 300}, "classes"),
        ("dreamer-v2", {"kl_balance": -0.1}, "kl_balance"),
    ],
)
def test_settings_out_of_range(name, options, text):
    with pytest.raises(ValueError, match=text):
        tiny(name, **options)


def test_planet_wants_continuous_actions():
    with pytest.raises(ValueError, match=r"planet plans over continuous actions .*dreamer-v2"):
        agents.make("planet", Spec("test", VECTOR, Discrete(3)))


def test_images_of_another_size():
    spec = Spec("test", jax.ShapeDtypeStruct((48, 48, 3), jnp.uint8), Box(1))
    with pytest.raises(ValueError, match=r"64 x 64, not 48 x 48.*image_size=64"):
        agents.make("dreamer-v1", spec, MICRO)
