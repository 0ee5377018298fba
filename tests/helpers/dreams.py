"""Actor and critic on given dreams, composed as `Learner.behaviour` composes them on the dreams that it rolls out."""

import jax

from jaxwm.agents.dreamer_v3 import Learner, State
from jaxwm.control.actor_critic import ReturnRange
from jaxwm.types import Array

sg = jax.lax.stop_gradient


def judged(
    learner: Learner, params, state: State, feat: Array, actions: Array
) -> tuple[dict[str, Array], Array, ReturnRange, dict[str, Array]]:
    """Losses `{"policy", "value"}: [H, R]` on `feat [H + 1, R, F]`, lambda-returns `[H, R]`, the new range, metrics.

    The critic's parameters are the only ones that learn from the critic's loss, the policy's from its own; that this is
    what `behaviour` does is checked in `test_fast_step.py`.
    """
    value, judged = learner.judge(params["val"], sg(params), state, feat, actions)
    judged = sg(judged)
    ranges = state.returns.update(judged.returns)
    advantage = (judged.returns - judged.value[:-1]) / ranges.scale()
    known = feat[:-1], actions[:-1], advantage, judged.weight
    policy, entropy = learner.policy_loss(params["pol"], state.hyper, *known)
    metrics = {
        "dream/reward": judged.reward.mean(),
        "dream/return": judged.returns[0].mean(),
        "dream/continue": judged.cont.mean(),
        "dream/value": judged.value.mean(),
        "policy/entropy": entropy.mean(),
        "policy/advantage_std": advantage.std(),
        "policy/return_scale": ranges.scale(),
    }
    if judged.spread is not None:
        metrics["dream/disagreement"] = judged.spread.mean()
    return {"policy": policy, "value": value}, judged.returns, ranges, metrics
