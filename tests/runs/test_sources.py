"""Runs on recordings, with the weights of others, and longer ones: through Trainer and command line."""

import json
from dataclasses import replace

import autoencoder
import jax
import numpy as np
import pytest
from PIL import Image
from toys import counting_env

from jaxwm import agents, data, envs, load
from jaxwm.__main__ import main
from jaxwm.data import Episode
from jaxwm.report.page import report
from jaxwm.run.checkpoint import Checkpoints
from jaxwm.run.json_files import read_jsonl
from jaxwm.types import Discrete, Spec

TINY = (
    "--deter 16 --hidden 8 --units 8 --stoch 4 --classes 4 --bins 11 --batch-size 4 --batch-length 6 --imag-length 3 "
    "--prefill 64 --train-ratio 6"
).split()


def raw(tree):
    typed = lambda x: jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    return jax.tree.map(lambda x: np.asarray(typed(x)), tree)


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(raw(a)), jax.tree.leaves(raw(b)), strict=True))


# --- A system without an environment ------------------------------------------------------------------------------


@pytest.fixture
def frames(tmp_path):
    """A recording of 30 episodes of moving dots, without actions."""
    rng, spec = np.random.default_rng(0), Spec("toy/Dots", jax.ShapeDtypeStruct((4, 4), np.float32), None)
    dots = np.eye(16, dtype=np.float32).reshape(16, 4, 4)
    found = [Episode(dots[rng.integers(16, size=8)], np.zeros(8, np.float32), None, True) for _ in range(30)]
    data.append(tmp_path / "frames", spec, found)
    return tmp_path / "frames"


@pytest.fixture
def system(monkeypatch):
    """The autoencoder as a system of the registry."""
    first = agents.find("dreamer-v3")
    entry = replace(
        first,
        make=autoencoder.make,
        config=autoencoder.Config,
        presets=autoencoder.PRESETS,
        default="small",
        summary="tests",
        video=True,
    )
    monkeypatch.setitem(agents.AGENTS, "autoencoder", entry)


def test_it_trains_resumes_goes_on_longer_and_reports(system, frames, tmp_path, capsys):
    run, begin = tmp_path / "run", ["train", "autoencoder", "--data", str(frames), "--members", "2"]
    assert main([*begin, "--updates", "40", "--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "40/40 updates" in out and "squared error" in out and "one copy for all members" in out
    result = json.loads((run / "evaluation.json").read_text())
    assert result["updates"] == 40 and len(result["scores"]["squared error"]["trained"]) == 2
    assert "env_steps" not in result and "trained" not in result
    rows = read_jsonl(run / "metrics.jsonl")
    assert rows[-1]["updates"] == 40 and all("env_steps" not in row for row in rows)

    assert main(["resume", str(run)]) == 0 and "is finished" in " ".join(capsys.readouterr().out.split())
    assert main(["resume", str(run), "--updates", "400"]) == 0
    longer = json.loads((run / "evaluation.json").read_text())["scores"]["squared error"]["trained"]
    assert max(longer) < 0.9 * min(result["scores"]["squared error"]["trained"])
    straight = tmp_path / "straight"
    assert main([*begin, "--updates", "400", "--run", str(straight)]) == 0
    assert same(load(run).state, load(straight).state), "cut in two it is the same run"

    assert main(["eval", str(run)]) == 0 and "squared error" in capsys.readouterr().out
    page = report([run, straight], tmp_path / "report").read_text()
    assert "squared error" in page and "autoencoder" in page


def test_what_it_cannot_do_is_said(system, frames, tmp_path, capsys):
    for words, message in (
        (["train", "autoencoder", "--env", "gymnax/Catch-bsuite", "--steps", "40"], "needs recordings (--data DIR)"),
        (["train", "dreamer-v3", "--data", str(frames), "--updates", "5"], "has no action"),
        (["train", "autoencoder", "--data", str(tmp_path), "--updates", "5"], "holds no recording"),
        (["train", "autoencoder", "--data", str(frames), "--steps", "5"], "--updates"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err, words


def test_other_weights_are_taken_and_frozen(system, frames, tmp_path, capsys):
    """Weights of another run, whole or by component, members in turn; frozen ones stay as they are."""
    begin, first = ["train", "autoencoder", "--data", str(frames), "--members"], tmp_path / "first"
    assert main([*begin, "2", "--updates", "40", "--run", str(first)]) == 0
    go_on = [*begin, "3", "--updates", "6", "--seed", "5", "--from", str(first)]
    there, turn = load(first).state.params, np.array([0, 1, 0])
    for words, kept, apart in (
        (["--freeze", "enc"], "enc", "dec"),
        (["--from-parts", "dec", "--freeze", "dec"], "dec", "enc"),
    ):
        run = tmp_path / kept
        assert main([*go_on, *words, "--run", str(run)]) == 0
        here = load(run).state.params
        assert same(there[kept][turn], here[kept])
        near = np.abs(np.asarray(there[apart])[turn] - np.asarray(here[apart])).max()
        assert (0 < near < 0.05) if apart == "dec" else near > 0.1, "taken and trained, or begun anew"
    capsys.readouterr()
    for more, message in (
        (["--from-parts", "enc", "ears"], "no component 'ears'"),
        (["--codes", "16"], "component 'dec' of"),
        (["--freeze", "ears"], "no component 'ears' to freeze"),
    ):
        assert main([*go_on, *more, "--run", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "no").exists()


@pytest.mark.slow
def test_films_are_streamed_and_a_resumed_run_goes_on_where_it_was(system, tmp_path):
    """GIFs of two sizes, seen as 8 x 8, through a replay that holds a part of them."""
    films, rng = tmp_path / "films", np.random.default_rng(0)
    films.mkdir()
    for number, size in enumerate((8, 12, 8)):
        first, *rest = [Image.fromarray(x) for x in rng.integers(255, size=(60, size, size, 3), dtype=np.uint8)]
        first.save(films / f"{number}.gif", save_all=True, append_images=rest)
    begin = ["train", "autoencoder", "--data", str(films), "--data-option", "image_size=8", "--capacity", "80"]
    begin += ["--members", "1", "--run"]
    assert main([*begin, str(tmp_path / "a"), "--updates", "40"]) == 0
    assert main(["resume", str(tmp_path / "a"), "--updates", "130"]) == 0
    assert main([*begin, str(tmp_path / "b"), "--updates", "130"]) == 0
    assert same(load(tmp_path / "a").state, load(tmp_path / "b").state), "loaded twice over, cut in two it is the same"


# --- Dreamer on recordings ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Catch at random, and a run of dreamer-v3 that learned from nothing else."""
    home = tmp_path_factory.mktemp("recorded")
    catch = home / "catch"
    assert main(["record", "--random", "--env", "gymnax/Catch-bsuite", "--episodes", "60", "--out", str(catch)]) == 0
    run = ["train", "dreamer-v3", "--data", str(catch), "--updates", "6", "--members", "2", "--episodes", "4", *TINY]
    assert main([*run, "--run", str(home / "run")]) == 0
    return home


@pytest.mark.slow
def test_recordings_grow(recorded, tmp_path):
    before = data.open_data(recorded / "catch").rows
    words = ["record", str(recorded / "run"), "--steps", "30", "--out", str(recorded / "catch"), "--mode", "greedy"]
    assert main(words) == 0
    assert data.open_data(recorded / "catch").rows >= before + 30


@pytest.mark.slow
@pytest.mark.parametrize("format", ["npy", "minari", "lerobot"])
def test_what_a_simulator_says_of_itself_is_not_recorded(format, tmp_path):
    words = ["record", "--env", "pgx/TicTacToe", "--env-option", "opponent=random", "--episodes", "4", "--out"]
    assert main([*words, str(tmp_path / "r"), "--format", format]) == 0
    assert "sim" not in data.open_recording(tmp_path / "r").spec.obs


@pytest.mark.slow
def test_it_is_scored_in_the_real_environment(recorded):
    result = json.loads((recorded / "run" / "evaluation.json").read_text())
    assert result["updates"] == 6 and len(result["trained"]) == len(result["random"]) == 2
    life = load(recorded / "run")
    assert life.plan.env == "gymnax/Catch-bsuite" and life.steps == 6


@pytest.mark.slow
def test_it_goes_on_in_the_environment_with_those_weights(recorded, tmp_path, capsys):
    begin = ["train", "dreamer-v3", "--steps", "80", "--members", "3", "--episodes", "4"]
    begin += ["--from", str(recorded / "run")]
    run = tmp_path / "online"
    assert main([*begin, "--freeze", "enc,dec", "--run", str(run), *TINY]) == 0
    there, here = load(recorded / "run").state, load(run).state
    for name in ("enc", "dec"):
        pick = lambda tree: jax.tree.map(lambda x: x[np.array([0, 1, 0])], tree)  # noqa: E731
        assert same(pick(there.params[name]), here.params[name]), "frozen, members in turn"
    assert not same(jax.tree.map(lambda x: x[0], there.params["dyn"]), jax.tree.map(lambda x: x[0], here.params["dyn"]))

    capsys.readouterr()
    for more, message in (
        (["--from-parts", "enc", "ears"], "no component 'ears'"),
        (["--deter", "32"], "dyn"),
        (["--freeze", "ears"], "no component 'ears' to freeze"),
    ):
        assert main([*begin, *TINY, *more, "--run", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err


# --- Longer -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_longer_run_equals_one_that_was_planned_so(tmp_path):
    begin = ["train", "dreamer-v3", "--members", "2", "--episodes", "4", *TINY]
    assert main([*begin, "--steps", "100", "--run", str(tmp_path / "a")]) == 0
    assert main(["resume", str(tmp_path / "a"), "--steps", "160"]) == 0
    assert main([*begin, "--steps", "160", "--run", str(tmp_path / "b")]) == 0
    assert same(load(tmp_path / "a").state, load(tmp_path / "b").state)
    rows = [read_jsonl(tmp_path / name / "scores.jsonl") for name in "ab"]
    assert rows[0] == rows[1]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["steps"] == 160


@pytest.mark.slow
def test_it_cannot_become_shorter(recorded, capsys):
    assert main(["resume", str(recorded / "run"), "--updates", "3"]) == 2
    assert "must be at least that" in capsys.readouterr().err
    assert main(["resume", str(recorded / "run"), "--steps", "300"]) == 2


@pytest.mark.slow
def test_an_older_checkpoint_is_one_line(recorded, tmp_path, monkeypatch, capsys):
    from jaxwm.run import checkpoint

    run = ["train", "dreamer-v3", "--steps", "80", "--members", "1", "--episodes", "4", *TINY, "--run"]
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    assert main([*run, str(tmp_path / "old")]) == 0
    monkeypatch.undo()
    capsys.readouterr()
    assert main(["resume", str(tmp_path / "old"), "--steps", "90"]) == 2
    assert "has format 1" in capsys.readouterr().err
    assert load(tmp_path / "old").steps == 80, "weights are read all the same"
    assert Checkpoints(tmp_path / "old" / "checkpoints", writing=False).steps() == [80]


# --- Environments of one's own ------------------------------------------------------------------------------------

MINE = """
from toys import counting_env
from jaxwm import envs

envs.register("mine/Count", lambda num_envs: counting_env(num_envs)._replace(spec=counting_env(1).spec))
"""


@pytest.mark.slow
def test_own_environments_from_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_envs.py").write_text(MINE)
    run = tmp_path / "run"
    words = ["train", "dreamer-v3", "--import", str(tmp_path / "my_envs.py"), "--env", "mine/Count", "--steps", "80"]
    assert main([*words, "--members", "1", "--episodes", "4", *TINY, "--run", str(run)]) == 0
    monkeypatch.setattr(envs.registry if hasattr(envs, "registry") else envs, "_registered", {})
    import sys

    monkeypatch.delitem(sys.modules, "jaxwm_import_my_envs")
    assert main(["eval", str(run), "--episodes", "4"]) == 0, "config.json says what to import"
    capsys.readouterr()
    for name, message in (("nothing.py", "--import"), ("no.such.module", "ModuleNotFoundError")):
        assert main([*words[:2], "--import", name, "--env", "mine/Count", "--steps", "80"]) == 2
        assert message in capsys.readouterr().err


assert counting_env and Discrete  # what MINE and the fixtures import by name
