"""Actor and critic on given dreams, composed as `dreamer_v3.behaviour_losses` does on the dreams that it rolls out."""

import jax

from jaxwm.agents.dreamer_v3 import Learner, State, evaluate_dream
from jaxwm.control.actor_critic import ReturnRange
from jaxwm.control.behaviour import policy_loss
from jaxwm.types import Array

sg = jax.lax.stop_gradient


def judged(
    learner: Learner, params, state: State, feat: Array, actions: Array
) -> tuple[dict[str, Array], Array, ReturnRange, dict[str, Array]]:
    """Losses `{"policy", "value"}: [H, R]` on `feat [H + 1, R, F]`, lambda-returns `[H, R]`, the new range, metrics.

    The critic's parameters are the only ones that learn from the critic's loss, the policy's from its own; that this is
    what `behaviour_losses` does is checked in `test_fast_step.py`.
    """
    value, seen = evaluate_dream(learner, params["val"], sg(params), state, feat, actions)
    seen = sg(seen)
    ranges = state.returns.update(seen.returns)
    advantage = (seen.returns - seen.value[:-1]) / ranges.scale()
    known = actions[:-1], advantage, seen.weight, state.hyper["entropy"]
    policy, entropy = policy_loss(learner.actor(params, feat[:-1]), *known)
    metrics = {
        "dream/reward": seen.reward.mean(),
        "dream/return": seen.returns[0].mean(),
        "dream/continue": seen.cont.mean(),
        "dream/value": seen.value.mean(),
        "policy/entropy": entropy.mean(),
        "policy/advantage_std": advantage.std(),
        "policy/return_scale": ranges.scale(),
    }
    if seen.spread is not None:
        metrics["dream/disagreement"] = seen.spread.mean()
    return {"policy": policy, "value": value}, seen.returns, ranges, metrics
