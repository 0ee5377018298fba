"""Dreamer V3 against numbers from the official implementation: `golden/dreamer_v3.json`.

The file holds inputs (given, or by the formula of `noise`) and float32 outputs; its texts say what each array is.
Parameters carry the official names there; `LAYERS` maps them to ours. Layouts are the same.
"""

import json
import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dreams import judged

from jaxwm import distributions as d
from jaxwm.agents import dreamer_v3 as v3
from jaxwm.control import actor_critic as ac
from jaxwm.control.policy import action_distribution
from jaxwm.learning import optim
from jaxwm.models import rssm
from jaxwm.models.rssm import Latent
from jaxwm.nets import layers
from jaxwm.types import Box, Discrete, MultiDiscrete, Record, Spec

GOLDEN = json.loads((Path(__file__).parent / "golden" / "dreamer_v3.json").read_text())
WHOLE = GOLDEN["whole"]
CASES = ("discrete", "continuous", "image_vector")


def f32(x) -> np.ndarray:
    return np.asarray(x, np.float32)


def noise(shape, phase: int) -> np.ndarray:
    """Reproducible numbers in [-1, 1) by exact integer arithmetic, as `source.noise` in the file defines them."""
    i = np.arange(1, math.prod(shape) + 1, dtype=np.int64)
    u = (i * i * 7919 + i * (10473 + 2011 * phase) + 15485863 * (phase + 1)) % 65521
    return (2 * (u / 65521) - 1).reshape(shape)


def hill(shape, phase: int, amp: float, center: float, width: float, **_) -> np.ndarray:
    """Two-hot logits `[..., K]` with a maximum near bin `center`."""
    bins = np.arange(shape[-1])
    return f32(amp * noise(shape, phase) - 0.5 * ((bins - center) / width) ** 2)


def close(ours, theirs, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(np.asarray(ours, np.float64), np.asarray(theirs, np.float64), rtol=rtol, atol=atol)


symexp_bins = jax.jit(d.symexp_bins, static_argnums=0, compiler_options={"xla_cpu_use_fusion_emitters": True})
"""Compiled as in runs: the emitter that tests use (tests/conftest.py) has another `exp`, a last bit away."""


# --- Distributions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["symlog", "symexp"])
def test_squashing(name):
    case = GOLDEN["symlog"][name]
    close(jax.jit(getattr(d, name))(f32(case["x"])), case["y"], rtol=1e-6, atol=0)


def twohot_rows() -> np.ndarray:
    return np.stack([f32(np.zeros(255))] + [hill((255,), **row) for row in GOLDEN["twohot"]["rows"]["rows"]])


def test_twohot_bins_and_means():
    case, bins = GOLDEN["twohot"], symexp_bins(255)
    close(bins, case["bins"], rtol=1e-6, atol=0)
    mean = np.asarray(jax.jit(d.TwoHot.mean)(d.TwoHot(twohot_rows(), bins)))
    assert mean[0] == 0
    close(mean, case["pred"])


def test_twohot_loss():
    """Targets at 0, on bins, on the last bins, between bins, and beyond both ends."""
    case, bins = GOLDEN["twohot"], symexp_bins(255)
    target = np.asarray(twohot(f32(case["targets"]), bins))
    close(target.sum(-1), np.ones(len(target)), rtol=1e-6)
    loss = jax.jit(lambda rows, target: d.TwoHot(rows, bins).loss(target))
    close(loss(twohot_rows()[:, None], target[None]), case["loss"])


twohot = jax.jit(d.twohot)


def test_twohot_gradient():
    bins = symexp_bins(255)
    grad = jax.jit(jax.grad(lambda x, target: d.TwoHot(x, bins).loss(target)))
    for case in GOLDEN["twohot"]["grads"]:
        target = twohot(f32(case["target"]), bins)
        close(grad(twohot_rows()[case["row"]], target), case["grad"], atol=2e-7)


def test_onehot_mixing_and_entropy():
    case = GOLDEN["onehot"]

    @jax.jit
    def results(logits):
        dist = d.one_hot(logits, case["unimix"])
        return dist.logp, dist.probs, dist.entropy().sum(-1), dist.mode()

    logp, probs, entropy, mode = results(f32(case["post"]))
    close(logp, case["logp"])
    close(probs, case["prob"])
    close(entropy, case["entropy"])
    assert mode.tolist() == case["mode"]


def test_kl_losses():
    """One row above and one below the free nat, where neither loss has a gradient."""
    case = GOLDEN["onehot"]
    mixed = lambda logits: d.one_hot(logits, case["unimix"])  # noqa: E731

    def loss(index):
        return lambda q, p: rssm.kl_losses(mixed(q), mixed(p), 1.0)[index].sum()

    @jax.jit
    def results(post, prior):
        losses = rssm.kl_losses(mixed(post), mixed(prior), case["free_nats"])
        grads = [jax.grad(loss(i), (0, 1))(post, prior) for i in range(2)]
        return losses, mixed(post).kl(mixed(prior)).sum(-1), grads

    (dyn, rep), kl, (dyn_grads, rep_grads) = jax.device_get(results(f32(case["post"]), f32(case["prior"])))
    close(dyn, case["dyn"])
    close(rep, case["rep"])
    close(kl, case["kl"])
    close(dyn_grads[1], case["dyn_grad_prior"])
    close(rep_grads[0], case["rep_grad_post"])
    assert not dyn_grads[0].any() and not rep_grads[1].any()


def test_straight_through_gradient():
    case = GOLDEN["onehot"]
    post, weight = f32(case["post"]), f32(case["c"])

    def through(logits):
        dist = d.one_hot(logits, case["unimix"])
        return (weight * dist.straight_through(dist.mode())).sum()

    close(jax.jit(jax.grad(through))(post), case["straight_through_grad"])


def test_bounded_normal():
    case = GOLDEN["bounded_normal"]
    action = f32(case["action"])
    raw = {"mean": f32(case["raw_mean"]), "std": f32(case["raw_std"])}
    vector = jax.jit(lambda raw: action_distribution(Box(3), raw).vector)(raw)
    close(vector.mean, case["mean"])
    close(vector.std, case["std"])
    for name, of in (("logp", lambda a: a.log_prob(action)), ("entropy", lambda a: a.entropy())):

        def summed(raw, of=of):
            each = of(action_distribution(Box(3), raw))
            return each.sum(), each

        (_, each), grad = jax.jit(jax.value_and_grad(summed, has_aux=True))(raw)
        close(each, case[name])
        close(grad["mean"], case[f"{name}_grad"]["raw_mean"])
        close(grad["std"], case[f"{name}_grad"]["raw_std"])


# --- Returns and optimiser ----------------------------------------------------------------------------------------


lambda_return = jax.jit(ac.lambda_return, static_argnums=4)


def test_lambda_return_imagined():
    case = GOLDEN["lambda_return"]["imagined"]
    reward, cont, value = (f32(case[name]).T for name in ("rew", "con", "val"))
    close(lambda_return(reward, value, cont, np.zeros_like(cont), case["lam"]).T, case["ret"])


def test_lambda_return_replay():
    case = GOLDEN["lambda_return"]["replay"]
    reward, boot, term = (f32(case[name]).T for name in ("rew", "boot", "term"))
    discount = (1 - term) * (1 - 1 / case["horizon"])
    close(lambda_return(reward, boot, f32(discount), np.array(case["last"]).T, case["lam"]).T, case["ret"])


def test_return_range():
    case, ranges = GOLDEN["retnorm"], ac.initial_range()
    step = jax.jit(lambda ranges, x: (new := ranges.update(x, case["rate"]), new.scale()))
    for update in case["updates"]:
        ranges, scale = step(ranges, f32(update["x"]))
        close(ranges.low, update["offset"])
        close(ranges.high, update["hi"])
        close(scale, update["scale"])


@cache
def laprop() -> tuple[Callable, Callable]:
    """The optimiser's `init` and its jitted `update`."""
    case = GOLDEN["optimizer"]
    tx = optim.laprop(case["agc"], case["beta1"], case["beta2"], case["eps"])
    return jax.jit(tx.init), jax.jit(tx.update)


@pytest.mark.parametrize("run", range(len(GOLDEN["optimizer"]["runs"])))
def test_optimizer(run):
    """Warm-up over 1000 updates (the first has rate 0), none, and one that ends within the five updates."""
    case = GOLDEN["optimizer"]
    run = case["runs"][run]
    init, update = laprop()
    params = jax.tree.map(f32, case["params"], is_leaf=lambda x: isinstance(x, list))
    state, warmup = init(params), jax.jit(optim.warmup, static_argnums=1)
    for step, (grads, expected) in enumerate(zip(case["grads"], run["steps"], strict=True)):
        rate = np.float32(run["lr"]) * np.asarray(warmup(step, run["warmup"]))
        direction, state = update({k: f32(v) for k, v in grads.items()}, state, params)
        direction = jax.device_get(direction)
        params = {k: v - rate * direction[k] for k, v in params.items()}
        close(rate, expected["lr"], rtol=1e-6, atol=0)
        for k, v in params.items():
            close(-rate * direction[k], expected["update"][k], atol=1e-6 * run["lr"])
            close(v, expected["params"][k], rtol=1e-6, atol=1e-6 * run["lr"])


def test_adaptive_clipping():
    case = GOLDEN["optimizer"]
    params = {k: f32(v) for k, v in case["params"].items()}

    @jax.jit
    def clip(grads):
        rows = optim.clip(optim.pack(grads), optim.pack(params), params, case["agc"], case["pmin"])
        return optim.unpack(rows, params)

    for grads, expected in zip(case["grads"], case["agc_only"]["clipped"], strict=True):
        clipped = clip({k: f32(v) for k, v in grads.items()})
        jax.tree.map(lambda x, y: close(x, y, rtol=1e-6, atol=1e-10), clipped, {k: f32(v) for k, v in expected.items()})


def test_norms_are_those_of_each_tensor_and_need_no_scatter():
    """A scatter is the dearest kernel of a whole update on a GPU."""
    tree = {"a": f32(np.arange(700).reshape(7, 100)), "b": f32(np.full(3, 2)), "c": f32(np.ones((2, 256)))}
    double = jax.tree.map(lambda x: 2 * x, tree)
    found = jax.jit(lambda a, b: optim.norms((optim.pack(a), optim.pack(b)), a))(tree, double)
    heights = {"a": 3, "b": 1, "c": 2}
    expected = np.concatenate([np.full(heights[name], np.linalg.norm(x)) for name, x in tree.items()])
    np.testing.assert_allclose(found, [expected, 2 * expected], rtol=1e-6)
    program = jax.jit(lambda tree: optim.clip(optim.pack(tree), optim.pack(tree), tree))
    assert "scatter" not in program.lower(tree).as_text()


# --- Initialisation and sizes -------------------------------------------------------------------------------------


def drawn(name: str, shape: list[int]) -> np.ndarray:
    """A kernel with the fan-in of `shape`, but very many outputs."""
    many, key = 20_000, jax.random.key(0)
    if name == "linear":
        module, inputs = layers.Linear(shape[0], many), [(1, shape[0])]
    elif name == "conv":
        module, inputs = layers.Conv(many // 5, shape[0]), [(1, 4, 4, shape[2])]
    else:
        blocks, width, _ = shape
        own = width // 2
        module = layers.BlockLinear(blocks * own, blocks * many // 8, blocks, shared=width - own)
        inputs = [(blocks, 1, own), (1, width - own)]
    return np.asarray(jax.jit(module.init)(key, *(f32(np.zeros(x)) for x in inputs))["params"]["kernel"])


@pytest.mark.parametrize("name", ["linear", "conv", "block"])
def test_initialiser(name):
    case = GOLDEN["initializer"]["cases"][name]
    kernel = drawn(name, case["shape"])
    assert kernel.shape[:-1] == tuple(case["shape"][:-1])
    assert kernel.std() == pytest.approx(case["std"], rel=0.01)
    assert np.abs(kernel).max() == pytest.approx(case["bound"], rel=0.01)


@pytest.mark.slow
def test_output_scales():
    """Reward and critic start at zero, the actor at a hundredth."""
    spec, units = Spec("test", jax.ShapeDtypeStruct((5,), jnp.float32), Discrete(6)), v3.PRESETS["1m"].units
    nets = v3.build(spec, v3.PRESETS["1m"])
    params, scale = v3.init_params(nets, spec, jax.random.key(0)), GOLDEN["initializer"]["outscale"]
    last = {
        "reward": params["rew"]["params"]["bins"],
        "critic": params["val"]["params"]["bins"],
        "actor": params["pol"]["params"]["logits0"],
        "cont": params["con"]["params"]["logit"],
        "decoder": params["dec"]["params"]["out_obs"],
        "rssm_logits": params["dyn"]["params"]["prior_logits"],
    }
    for name, layer in last.items():
        bound = 2 * GOLDEN["initializer"]["factor"] / math.sqrt(units) * scale[name]
        assert bound * 0.9 <= jnp.abs(layer["kernel"]).max() <= bound * 1.0001, name
        assert not layer["bias"].any(), name


COMPONENTS = dict(enc="encoder", dyn="rssm", dec="decoder", rew="reward", con="continue", pol="actor", val="critic")
VECTOR, IMAGE = jax.ShapeDtypeStruct((16,), jnp.float32), jax.ShapeDtypeStruct((64, 64, 3), jnp.uint8)
SETTINGS = {
    "size1m_vector16_discrete6": (VECTOR, Discrete(6)),
    "size1m_vector16_box3": (VECTOR, Box(3)),
    "size1m_vector16_two_keys_discrete3_discrete5": (VECTOR, MultiDiscrete((3, 5))),
    "size1m_image64_vector5_discrete6": (
        {"image": IMAGE, "vector": jax.ShapeDtypeStruct((5,), jnp.float32)},
        Discrete(6),
    ),
}


@pytest.mark.parametrize("name", list(GOLDEN["parameter_counts"]))
def test_parameter_counts(name):
    obs, action = SETTINGS.get(name, (IMAGE, Discrete(6)))
    spec = Spec("test", obs, action)
    nets = v3.build(spec, v3.PRESETS[name.split("_")[0].removeprefix("size")])
    params = jax.eval_shape(lambda key: v3.init_params(nets, spec, key), jax.random.key(0))
    count = {COMPONENTS[k]: sum(math.prod(x.shape) for x in jax.tree.leaves(v)) for k, v in params.items()}
    assert count | {"total": sum(count.values())} == GOLDEN["parameter_counts"][name]


# --- Networks with given weights ----------------------------------------------------------------------------------

LAYERS = {
    "enc/mlp/linear": "mlp/linear", "enc/cnn": "conv", "dec/vec/vector/pred": "out_vector", "dec/sp0": "from_deter",
    "dec/sp1": "from_stoch", "dec/sp2": "spread", "dec/imgout": "image", "dyn/dynin0": "in_deter",
    "dyn/dynin1": "in_stoch", "dyn/dynin2": "in_action", "dyn/dynhid0": "mix", "dyn/dyngru": "gates", "dyn/obs0": "obs",
    "dyn/obslogit": "post_logits", "dyn/prior0": "img/linear0", "dyn/prior1": "img/linear1",
    "dyn/priorlogit": "prior_logits", "rew/head/logits": "bins", "val/head/logits": "bins",
    "slowval/head/logits": "bins",
    "con/head/logit": "logit", "pol/head/action/logits": "logits0", "pol/head/action/mean": "mean",
    "pol/head/action/stddev": "std",
}  # fmt: skip
NORMS = {
    "dyn/dynin0norm": "act_deter", "dyn/dynin1norm": "act_stoch", "dyn/dynin2norm": "act_action",
    "dyn/dynhid0norm": "act_mix", "dyn/obs0norm": "act_obs", "dyn/prior0norm": "img/act0",
    "dyn/prior1norm": "img/act1", "dec/sp1norm": "stoch_act", "dec/spnorm": "space_act",
}  # fmt: skip


def renamed(layer: str) -> str:
    """Our path of an official layer, without the component."""
    if layer in LAYERS:
        return LAYERS[layer]
    if layer in NORMS:
        return NORMS[layer] + "/norm"
    component, name = layer.split("/")[0], layer.split("/")[-1]
    number = "".join(c for c in name if c.isdigit())
    branch = "mlp/" if "mlp" in layer else ""
    if "norm" in name:
        return f"{branch}act{number}/norm"
    return f"mlp/linear{number}" if branch else f"conv{number}" if component in ("enc", "dec") else name


def weight(shape, phase: int, offset: float, amp: float, center: float | None = None) -> np.ndarray:
    w = offset + amp * noise(shape, phase)
    return f32(w if center is None else w - 0.5 * ((np.arange(shape[-1]) - center) / 8) ** 2)


def nested(flat: dict) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def ours(name: str) -> str:
    """`component/params/path` of an official tensor."""
    layer, leaf = name.rsplit("/", 1)
    return f"{name.split('/')[0]}/params/{renamed(layer)}/{leaf}"


def parameters(case: dict) -> dict:
    """`{component: tree}`, with the slow critic as component "slowval"."""
    return nested({ours(name): weight(**how) for name, how in case["params"].items()})


def lookup(tree: dict, path: str):
    for part in path.split("/"):
        tree = tree[part]
    return tree


def spec_of(name: str) -> Spec:
    obs = {"vector": jax.ShapeDtypeStruct((5,), jnp.float32)} | ({"image": IMAGE} if name == "image_vector" else {})
    return Spec("test", obs, Box(3) if name == "continuous" else Discrete(6))


@cache
def learner_of(name: str) -> v3.Learner:
    sizes = {k: WHOLE["sizes"][k] for k in ("deter", "hidden", "stoch", "classes", "blocks", "units", "depth")}
    config = v3.Config(**sizes, imag_length=WHOLE["sizes"]["imag_length"], actor_unimix=0.0)
    return v3.Learner(v3.build(spec_of(name), config), spec_of(name), config)


def observations(name: str, time: int = 4) -> dict:
    obs = {"vector": f32(3 * noise((2, time, 5), 11))}
    if name == "image_vector":
        obs["image"] = ((noise((2, time, 64, 64, 3), 10) + 1) * 127.99).astype(np.uint8)
    return obs


def test_names_cover_every_parameter():
    for name in CASES:
        learner, params = learner_of(name), parameters(WHOLE[name])
        fresh = jax.eval_shape(lambda k, le=learner: v3.init_params(le.nets, le.spec, k), jax.random.key(0))
        params.pop("slowval")
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)


def test_rssm():
    """The recurrent core, prior and posterior, without and with a reset."""
    case = GOLDEN["rssm"]
    dyn, params = learner_of("continuous").nets.dyn, parameters(WHOLE["continuous"])["dyn"]
    deter, action, tokens = (f32(case[k]) for k in ("deter_in", "action", "tokens"))
    stoch = f32(np.eye(4)[np.array(case["stoch_index"])])

    @jax.jit
    def step(deter, stoch, action):
        embedded = dyn.apply(params, action, method="embed_action")
        blocks = layers.to_blocks(deter, dyn.blocks)
        blocks = dyn.apply(params, blocks, Latent(deter, stoch), embedded, method="recur")
        prior, deter = dyn.apply(params, deter, method="prior"), layers.from_blocks(blocks)
        embedded = dyn.apply(params, tokens, method="embed_tokens")
        return deter, dyn.apply(params, deter, embedded, method="posterior").logp, prior.logp

    mixed = jax.jit(lambda logits: d.one_hot(logits, 0.01).logp)
    out, post, prior = step(deter, stoch, action)
    close(out, case["deter_out"])
    close(post, mixed(f32(case["post_logits"])), atol=3e-6)
    close(prior, mixed(f32(case["prior_logits"])), atol=3e-6)
    out, post, _ = step(0 * deter, 0 * stoch, 0 * action)
    close(out, case["deter_out_first"])
    close(post, mixed(f32(case["post_logits_first"])), atol=3e-6)


def test_encoder():
    case, learner = GOLDEN["encoder_decoder"], learner_of("image_vector")
    see = jax.jit(learner.nets.enc.apply)
    tokens = np.asarray(see(parameters(WHOLE["image_vector"])["enc"], observations("image_vector")))
    close(tokens[..., :12], case["tokens_first"])
    close(tokens[..., -4:], case["tokens_last"])
    close((np.asarray(tokens, np.float64) * noise(tokens.shape, 97)).sum(-1), case["tokens_dot"], atol=1e-5)


def test_decoder():
    case, learner = GOLDEN["encoder_decoder"], learner_of("image_vector")
    stoch = f32(np.eye(4)[np.array(case["stoch_index"])]).reshape(2, 4, -1)
    params = parameters(WHOLE["image_vector"])["dec"]
    out = jax.jit(learner.nets.dec.apply)(params, f32(case["deter"]), stoch)
    image = np.asarray(out["image"], np.float64)
    close(out["vector"], case["vector"])
    close(image[:, :, 0, :2], case["image_first_pixels"])
    close(image[:, :, 31:33, 40], case["image_mid_pixels"])
    close((image * noise(image.shape, 96)).reshape(2, 4, -1).sum(-1), case["image_dot"], atol=1e-4)


# --- Losses -------------------------------------------------------------------------------------------------------


def state_of(params: dict, slow, before: dict, lam=0.95, entropy=3e-4) -> v3.State:
    ranges = ac.ReturnRange(f32(before["lo"]), f32(before["hi"]))
    hyper = dict(lr=f32(4e-5), entropy=f32(entropy), discount_horizon=f32(333), lam=f32(lam))
    return v3.State(params, slow, ranges, None, hyper, np.int32(0))


class Fixed:
    """Heads whose outputs are given: stands in for the networks of a `Learner`."""

    def apply(self, params, feat, method=None):
        return {k: v[: len(feat)] for k, v in params.items()}


def fixed_learner(space) -> v3.Learner:
    spec = Spec("test", jax.ShapeDtypeStruct((5,), jnp.float32), space)
    nets = v3.Networks(None, None, None, *[Fixed()] * 4)
    return v3.Learner(nets, spec, v3.Config(actor_unimix=0.0))


@jax.jit
def reward_logits(reward: jax.Array) -> jax.Array:
    """Logits whose mean is exactly the given reward."""
    target = d.twohot(reward, d.symexp_bins(255))
    return jnp.where(target > 0, jnp.log(jnp.maximum(target, 1e-30)), -200.0)


@pytest.mark.parametrize("name", ["discrete", "continuous"])
def test_actor_and_critic_losses(name):
    golden = GOLDEN["imag_loss"]
    case, swap = golden["cases"][name], lambda x: np.swapaxes(x, 0, 1)
    raw, cont = swap(f32(case["policy_raw"])), swap(f32(golden["con"]))
    policy = {"logits0": raw} if name == "discrete" else {"mean": raw[..., :3], "std": raw[..., 3:]}
    values, slow = (swap(hill((2, 5, 255), **golden[k])) for k in ("value", "slowvalue"))
    rest = {"rew": {"bins": reward_logits(swap(f32(golden["rew"])))}}
    rest["con"] = {"logit": (np.log(cont) - np.log1p(-cont))[..., None]}
    learner = fixed_learner(Discrete(6) if name == "discrete" else Box(3))
    actions = swap(np.asarray(case["action"], np.int32 if name == "discrete" else np.float32))

    def losses(policy, values):
        params = rest | {"pol": policy, "val": {"bins": values}}
        state = state_of(params, {"bins": slow}, golden["retnorm_before"], golden["hyper"]["lam"])
        return judged(learner, params, state, jnp.zeros((5, 2, 1)), actions)[:3]

    @jax.jit
    def results(policy, values):
        to_policy = jax.grad(lambda p: losses(p, values)[0]["policy"].mean())(policy)
        to_values = jax.grad(lambda v: losses(policy, v)[0]["value"].mean())(values)
        return losses(policy, values), to_policy, to_values

    (los, returns, ranges), to_policy, to_values = jax.device_get(results(policy, values))
    close(returns.T, case["ret"])
    close(los["policy"].T, case["policy"])
    close(los["value"].T, case["value"])
    close(ranges.low, case["retnorm_after"]["lo"])
    close(ranges.high, case["retnorm_after"]["hi"])
    close(np.concatenate(list(to_policy.values()), -1).swapaxes(0, 1), case["policy_mean_grad_raw"])
    grad = swap(to_values)
    close(np.linalg.norm(grad), case["value_mean_grad_logits"]["norm"])
    close((grad * noise(grad.shape, 78)).sum(), case["value_mean_grad_logits"]["dot_noise78"])


def test_replay_value_loss():
    case, swap = GOLDEN["repl_loss"], lambda x: x.swapaxes(0, 1)
    values, slow = (swap(hill((2, 5, 255), **case[k])) for k in ("value", "slowvalue"))
    flags = {k: np.asarray(case[k]) for k in ("last", "term")}
    record = Record(None, f32(case["rew"]), None, flags["last"], flags["term"], None, None)
    learner = fixed_learner(Discrete(6))

    def loss(values):
        params = {"val": {"bins": values}}
        state = state_of(params, {"bins": slow}, dict(lo=0, hi=0), case["hyper"]["lam"])
        each = v3.replay_value_loss(learner, params, state, record, jnp.zeros((2, 5, 1)), f32(case["boot"]))
        return each.mean(), each

    (_, each), grad = jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(values))
    close(each.T, case["repval"])
    grad = swap(grad)
    close(np.linalg.norm(grad), case["repval_mean_grad_logits"]["norm"])
    close((grad * noise(grad.shape, 78)).sum(), case["repval_mean_grad_logits"]["dot_noise78"])


def record_of(name: str) -> Record:
    """The sequence with its context record in front: the stored latent is the carry, its action the first one."""
    case = WHOLE[name]
    ahead = lambda x: np.concatenate([x[:, :1], x], 1)  # noqa: E731
    previous = np.asarray(case["prevact"]["action"], np.float32 if name == "continuous" else np.int32)
    deter, stoch = f32(case["carry"]["deter"]), np.asarray(case["carry"]["stoch_index"], np.uint8)
    extras = {"deter": np.stack([deter] + 4 * [deter + 9], 1), "stoch": np.stack([stoch] + 4 * [3 - stoch], 1)}
    flags = [ahead(np.asarray(case["flags"][k])) for k in ("is_first", "is_last", "is_terminal")]
    action = np.concatenate([previous, previous[:, :1]], 1)
    return Record(jax.tree.map(ahead, observations(name)), ahead(f32(case["reward"])), *flags, action, extras)


@pytest.fixture
def no_chance(monkeypatch):
    """Discrete samples without chance, as in the golden run (`whole.sampling`); straight-through gradients stay."""
    monkeypatch.setattr(d.OneHot, "invert", lambda self, uniform: self.mode())


def golden_noise(learner: v3.Learner) -> v3.Noise:
    """Every continuous action lies half a standard deviation above the mean; the rest is up to `no_chance`."""
    noise = jax.jit(lambda key: learner.noise(key, 2, 5))(jax.random.key(0))
    return noise._replace(plan=np.full(noise.plan.shape, 0.5, noise.plan.dtype))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "image_vector" else pytest.mark.slow) for name in CASES]
)
def test_whole_loss_and_gradient(name, no_chance):
    """One loss of the whole agent: every term, the return range, and the gradient of every tensor."""
    case, learner = WHOLE[name], learner_of(name)
    params = parameters(case)
    state = state_of(params, params.pop("slowval"), WHOLE["retnorm_before"])
    step = jax.jit(jax.value_and_grad(partial(v3.loss, learner), has_aux=True))
    found = jax.device_get(step(params, state, record_of(name), golden_noise(learner)))
    (total, ((latents, ranges), metrics)), grads = found
    close(latents.deter, case["deter"])
    assert np.argmax(latents.stoch, -1).tolist() == case["stoch_index"]
    for term, value in case["terms"].items():
        key = {"vector": "rec"}.get(term, term) if len(learner.spec.obs) == 1 else term
        close(metrics[f"loss/rec/{key}" if key in ("vector", "image") else f"loss/{key}"], value, rtol=3e-6)
    close(total, case["loss"], rtol=3e-6)
    close(ranges.low, case["retnorm_after"]["lo"])
    close(ranges.high, case["retnorm_after"]["hi"])
    check_gradients(grads, case)


def check_gradients(grads: dict, case: dict):
    norms = {k: math.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(v))) for k, v in grads.items()}
    for component, norm in norms.items():
        close(norm, case["grad_norm"][component])
    for name, expected in case["grad_per_tensor"].items():
        grad = np.asarray(lookup(grads, ours(name)), np.float64)
        close(np.linalg.norm(grad), expected["norm"])
        probe = noise(grad.shape, case["params"][name]["phase"] + 500)
        close((grad * probe).sum(), expected["dot"], rtol=0, atol=1e-5 * expected["norm"])
