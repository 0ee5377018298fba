"""EfficientZero (Ye et al. 2021): MuZero with reanalysis and three additions, each a switch of `muzero.Config`.

- `consistency` (section 4.1): an unrolled latent must agree with the latent of what is then seen. Both are projected;
  a predictor turns the unrolled one into the other, which gets no gradient (SimSiam, Chen & He 2021). It carries most
  of the gain. `muzero.consistency_loss`, `Net.projected` and `Net.compare`.
- `prefix` (section 4.2): instead of each reward an LSTM predicts the sum of rewards since it was last reset, every
  `unroll` steps, in learning and in the search. `Net.reward`. The sum is not discounted, as in the official code.
- `correction` (section 4.3): the older a sequence, the fewer of its own rewards are used before the bootstrap value,
  from `td_steps` down to 1 over 0.3 of the run's updates. `muzero.targets_of`.

Its networks see no reconstruction of observations. Differences from the official code: RMS norm instead of batch norm,
whose running statistics differ between acting and learning; reanalysed policies and values are written back to the
replay instead of being used once. An ablation is one command: `jaxwm train efficientzero --consistency 0`."""

from dataclasses import replace

from jaxwm.agents import muzero
from jaxwm.agents.muzero import Config

PUBLISHED = Config(
    search="puct", simulations=50, dirichlet=0.3, noise=0.25, cooling=100_000, residual=True, width=64, units=32,
    layers=1, bins=601, bound=300.0, envs=4, batch_size=256, unroll=5, td_steps=5, train_ratio=256.0, reanalyse=1536,
    prefill=2000, capacity=100_000, alpha=0.6, beta=0.4, discount=0.997**4, value_scale=0.25, consistency=2.0,
    projection=1024, prefix=True, correction=100_000, augment=True, optimizer="sgd", lr=0.2,
    lr_decay_updates=100_000, l2=1e-4, clip=5.0, target_every=200,
)  # fmt: skip


def with_additions(base: Config, updates: int) -> Config:
    """A MuZero with the three additions; `updates` of a run are what the age of data is measured by."""
    return replace(base, consistency=2.0, prefix=True, correction=updates)


PRESETS = {
    "published": PUBLISHED,
    "cartpole": with_additions(muzero.PRESETS["cartpole"], 15_000),
    "catch": with_additions(muzero.PRESETS["catch"], 4_000),
    "minatar": with_additions(muzero.PRESETS["minatar"], 10_000),
}
"""Atari 100k as published (input: `--env-option stack=4 --env-option image_size=96`), and MuZero's small ones."""

SYSTEM = replace(
    muzero.SYSTEM, presets=PRESETS, year=2021,
    summary="MuZero with consistency, value prefixes and corrected old data (Ye et al. 2021)",
    paper="Ye et al., Mastering Atari Games with Limited Data",
    sees="as MuZero", acts="as MuZero",
    predicts="as MuZero; sums of rewards by an LSTM; latents that agree with what is then seen",
)  # fmt: skip
