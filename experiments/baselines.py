"""The model-free baselines: soft actor-critic on a pendulum, PPO on a cart-pole.

Expected: minimum of three seeds (2026-11-26, 20 episodes each):
          gymnax/Pendulum-v1 (random -1342)   sac -169 after 20,000 steps
          gymnax/CartPole-v1 (random 18)      ppo 500 after 500,000 steps
Time:     two to twelve minutes a run on two CPU cores that many share.
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
