"""What a process decides about its machine: devices, compilation cache, signals, other processes of the run."""

import contextlib
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax

from jaxwm.run.flags import optional


def program() -> str:
    """How to call `jaxwm` from this shell, for printed commands."""
    found = shutil.which("jaxwm")
    own = Path(sys.executable).parent / "jaxwm"
    if found and Path(found).resolve() == own.resolve():
        return "jaxwm"
    if not own.exists():
        return f"{shlex.quote(sys.executable)} -m jaxwm"
    with contextlib.suppress(ValueError):
        return shlex.quote(str(own.relative_to(Path.cwd())))
    return shlex.quote(str(own))


def resume_command(run: Path) -> str:
    """The command that goes on with a run."""
    return f"{program()} resume {shlex.quote(str(run))}"


def use_compilation_cache() -> None:
    """Programs compiled once are kept on disk, unless JAX_COMPILATION_CACHE_DIR says where (or, empty, that not)."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxwm" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_cores(members: int, cores: int | None = None, shards: int = 1) -> None:
    """On a CPU, give members (and their shards) devices of their own, several where there are cores enough. `cores` are
    all of the machine unless given. Call before JAX starts."""
    cores = cores or os.cpu_count() or 1
    if shards > 1:
        count = members * shards
    elif members <= 2 * cores:
        count = members * max(1, cores // members)
    else:
        count = max(n for n in range(1, cores + 1) if members % n == 0)
    with contextlib.suppress(RuntimeError):  # JAX runs already, in a test or a notebook: leave it as it is
        jax.config.update("jax_num_cpu_devices", count)


@contextlib.contextmanager
def stoppable(owner: Any, text: str) -> Iterator[None]:
    """SIGINT and SIGTERM set `owner.stopping` and print `text` on `owner.console`; a second one interrupts."""

    def stop(*_: Any) -> None:
        if owner.stopping:
            raise KeyboardInterrupt
        owner.stopping = True
        owner.console.print(text)

    try:
        old = {which: signal.signal(which, stop) for which in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: a notebook's worker, say
        old = {}
    try:
        yield
    finally:
        for which, handler in old.items():
            signal.signal(which, handler)


COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def _number(flag: str, value: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if value is not None or not text:
        return value
    if not text.isdigit():
        raise ValueError(f"{variable} must be a whole number, not {text!r} (or give {flag})")
    return int(text)


@dataclass(frozen=True)
class Hosts:
    """Several processes in one run, each with some of the members; all must see the run directory."""

    coordinator: Annotated[str | None, optional("HOST:PORT")] = None
    """Where they meet: HOST:PORT of the first process (default: JAX_COORDINATOR_ADDRESS)."""
    processes: Annotated[int | None, optional("INT")] = None
    """How many there are (default: JAX_NUM_PROCESSES)."""
    process: Annotated[int | None, optional("INT")] = None
    """Which one this is, from 0 (default: JAX_PROCESS_ID)."""
    distributed: bool = False
    """Find all of this out from Slurm, Open MPI, Kubernetes or a TPU pod."""

    def expected(self) -> int:
        """How many processes `join` will meet, as far as flags and variables tell."""
        return _number("--processes", self.processes, PROCESSES) or 1

    def join(self) -> int:
        """Meet the other processes, before JAX starts; how many there are. ValueError where neither flags nor variables
        say who they are, ConnectionError where they do not meet."""
        coordinator = self.coordinator or os.environ.get(COORDINATOR)
        processes = _number("--processes", self.processes, PROCESSES)
        process = _number("--process", self.process, PROCESS)
        if not coordinator and not self.distributed:
            if processes is not None or process is not None:
                raise ValueError(f"--processes and --process need --coordinator HOST:PORT (or {COORDINATOR})")
            return 1
        if not self.distributed and (processes is None or process is None):
            text = f"--coordinator needs --processes and --process (or {PROCESSES} and {PROCESS})"
            raise ValueError(f"{text}; under Slurm or Open MPI use --distributed alone")
        if processes is not None and process is not None and not 0 <= process < processes:
            raise ValueError(f"--process counts from 0 to {processes - 1}, got {process}")
        try:
            jax.distributed.initialize(coordinator, processes, process)
        except Exception as error:
            where, why = coordinator or "the detected address", str(error).strip().splitlines()[0][:200]
            way = "start as many as --processes says, each with its own --process and the same --coordinator"
            raise ConnectionError(f"the processes of this run did not meet at {where} ({why}): {way}") from error
        return jax.process_count()
