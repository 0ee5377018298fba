"""PlaNet on a pendulum and a cart-pole that must swing up, from state, beside a model that never learned.

Expected: minimum of three seeds after 6,000 steps of the agent (2026-11-21, 20 episodes each):
          gymnax/Pendulum-v1 (random -1336)   trained -404, untrained -1342
          dmc/CartpoleSwingup (random 134)    trained 522, untrained 72
Time:     four to eight minutes a trained run on one or two cores that are shared, half of that an untrained one.
Command:  make sweep EXPERIMENT=experiments/planet.py

The report at the end draws returns against environment steps, beside a random policy.
"""

from typing import Any

from jaxwm import Plan, agents

TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "pendulum": ("gymnax/Pendulum-v1", {}),
    "cartpole": ("dmc/CartpoleSwingup", {"action_repeat": 8}),
}


def runs(
    tasks: tuple[str, ...] = tuple(TASKS), seeds: int = 3, preset: str = "micro", steps: int = 6000, episodes: int = 20
) -> dict[str, Plan]:
    """PlaNet, trained and untrained.

    Args:
        tasks: Of pendulum and cartpole.
        seeds: Members of each population.
        preset: Size.
        steps: Environment steps of each member, in steps of the agent.
        episodes: Evaluation episodes of each member.
    """
    out = {}
    for task in tasks:
        env, options = TASKS[task]
        for name, updates in {"trained": {}, "untrained": {"updates": 0}}.items():
            settings = agents.settings("planet", preset, **updates)
            count = steps if name == "trained" else settings.prefill
            out[f"{task}-{name}"] = Plan(
                "planet", env, settings, count, seeds, episodes=episodes, env_options=options, gauge=0
            )
    return out
