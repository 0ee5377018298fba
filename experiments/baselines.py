"""The model-free baselines: soft actor-critic on a pendulum, PPO on a cart-pole.

Expected: see results/sac-pendulum.json and results/ppo-cartpole.json.
Time:     two to ten minutes a run on one CPU core that is shared.
Command:  make sweep EXPERIMENT=experiments/baselines.py
"""

from jaxwm import Plan, agents


def runs(systems: tuple[str, ...] = ("sac", "ppo"), seeds: int = 3, episodes: int = 20) -> dict[str, Plan]:
    """Each baseline on the environment of its example.

    Args:
        systems: Of sac and ppo.
        seeds: Members of each population.
        episodes: Evaluation episodes of each member.
    """
    found = {name: agents.find(name) for name in systems}
    return {
        name: Plan(name, one.env, agents.settings(name), one.steps, seeds, episodes=episodes, gauge=0)
        for name, one in found.items()
    }
