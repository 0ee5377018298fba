"""Learning rates and sizes of Dreamer V3 on Catch: four rates with three seeds each, one population for each size.

Expected: not measured yet; the report shows each rate as a system of its own, beside the random policy (-0.7).
Time:     minutes on two CPU cores.
Command:  make sweep EXPERIMENT=experiments/learning_rates.py
"""

from jaxwm import Plan, agents

RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def runs(
    presets: tuple[str, ...] = ("nano", "micro"), rates: tuple[float, ...] = RATES, seeds: int = 3, steps: int = 3000
) -> dict[str, Plan]:
    """Learning rates and sizes on Catch.

    Args:
        presets: Sizes, each a population of its own.
        rates: Learning rates of its members.
        seeds: Members with the same rate.
        steps: Environment steps of each member.
    """
    lr = [rate for rate in rates for _ in range(seeds)]
    settings = {preset: agents.settings("dreamer-v3", preset) for preset in presets}
    return {
        preset: Plan("dreamer-v3", "gymnax/Catch-bsuite", settings[preset], steps, len(lr), vary={"lr": lr})
        for preset in presets
    }
