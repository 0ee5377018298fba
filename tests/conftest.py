"""Compiling is most of what the default tests do, and their networks are tiny: compile without optimisations.

What was compiled once is kept on disk for the next process, small programs too; in a directory of its own where
JAX_COMPILATION_CACHE_DIR names none.
"""

import gc
import os
import tempfile


def pytest_configure(config):
    gc.set_threshold(100_000, 20, 100)  # tracing makes so many objects that collecting takes a tenth of the time
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxwm-tests-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    if config.option.markexpr == "not slow":  # the slow tests train for minutes: there optimising pays
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for processes that tests start
        # XLA's other emitter of fused loops compiles these programs three times as fast; numbers differ by rounding.
        # Code in one piece: small programs gain nothing from several.
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ.setdefault("XLA_FLAGS", flags)
        import jax

        jax.config.update("jax_disable_most_optimizations", True)
