"""TD-MPC2 on Pendulum, and on CartpoleSwingup in MuJoCo: three seeds a task as one population.

Expected: Pendulum as in docs/systems/tdmpc2.md; CartpoleSwingup has not been measured yet (published mean: 839 at
          100,000 steps).
Time:     Pendulum 82 minutes on two CPU cores that many share, 20 of them of CPU time.
Command:  make sweep EXPERIMENT=experiments/tdmpc2.py
          make sweep EXPERIMENT=experiments/tdmpc2.py ARGS="--tasks pendulum"
"""

from typing import Literal

from jaxwm import Plan, agents

TASKS = {"pendulum": ("gymnax/Pendulum-v1", 10_000), "cartpole-swingup": ("dmc/CartpoleSwingup", 50_000)}
"""Task -> environment, environment steps of each member."""


def runs(
    tasks: tuple[Literal["pendulum", "cartpole-swingup"], ...] = ("pendulum", "cartpole-swingup"),
    preset: str = "small",
    seeds: int = 3,
    steps: int | None = None,
    episodes: int = 20,
) -> dict[str, Plan]:
    """TD-MPC2 on continuous control.

    Args:
        tasks: Of pendulum and cartpole-swingup.
        preset: Sizes.
        seeds: Members of the population of each task.
        steps: Environment steps of each member (default: the task's own).
        episodes: Evaluation episodes of each member.
    """
    settings = agents.settings("tdmpc2", preset)
    return {
        task: Plan("tdmpc2", TASKS[task][0], settings, steps or TASKS[task][1], seeds, episodes=episodes, gauge=0)
        for task in tasks
    }
