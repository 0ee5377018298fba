"""Compiling is most of what the default tests do, and their networks are tiny: compile without optimisations."""

import os


def pytest_configure(config):
    if config.option.markexpr == "not slow":  # the slow tests train for minutes: there optimising pays
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for processes that tests start
        import jax

        jax.config.update("jax_disable_most_optimizations", True)
