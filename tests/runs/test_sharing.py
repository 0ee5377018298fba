"""Models pushed, pulled and served, and a run in an environment of another process: real files, sockets, processes."""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from arrays import assert_same
from elsewhere import Elsewhere
from safetensors.numpy import load_file, save_file

import jaxwm
from jaxwm import cli
from jaxwm.envs import wire
from jaxwm.run import directory, hub, load, session
from jaxwm.run.json_files import read_json, read_jsonl
from jaxwm.studio import serve
from jaxwm.studio.episodes import open_player

STEPS = 40


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A small game in another process."""
    with Elsewhere(tmp_path_factory.mktemp("there"), "Plain") as server:
        yield server


def train(address: str, run: Path, steps: int = STEPS, *more: str) -> int:
    command = f"train dyna-q --env remote/{address} --members 2 --steps {steps} --episodes 1 --gauge 0 --run {run}"
    return cli.main([*command.split(), *more])


@pytest.fixture(scope="module")
def run(there, tmp_path_factory) -> Path:
    """A run that learned from the other process."""
    run = tmp_path_factory.mktemp("runs") / "lake"
    assert train(there.address, run, STEPS, "--log", "csv", "tensorboard") == 0
    return run


@pytest.fixture(scope="module")
def model(run, tmp_path_factory) -> Path:
    """That run, pushed."""
    folder = tmp_path_factory.mktemp("hub") / "lake"
    (run / "watch.gif").write_bytes(b"GIF89a")
    assert cli.main(["push", str(run), str(folder)]) == 0
    return folder


def test_a_run_learns_from_another_process(run):
    result = read_json(run / directory.EVALUATION)
    assert result["env_steps"] == STEPS and len(result["trained"]) == len(result["random"]) == 2
    assert {row["member"] for row in read_jsonl(run / directory.SCORES)} == {0, 1}
    lines = (run / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + len(read_jsonl(run / directory.METRICS)) and lines[0].startswith("env_steps,updates,")
    assert list((run / "tensorboard").glob("events*"))


# --- Models -------------------------------------------------------------------------------------------------------


def front(card: str) -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(card.split("---\n")[1])


def test_a_model_says_what_it_is(run, model, there):
    assert {file.name for file in model.iterdir()} == set(hub.FILES) - {"dream.gif"}
    card, result = (model / hub.CARD).read_text(), read_json(run / directory.EVALUATION)
    for member in (0, 1):
        assert f"| {member} | {result['trained'][member]:.2f} | {result['random'][member]:.2f} |" in card
    assert (
        f"--env remote/127.0.0.1:{there.port}" in card and f"jaxwm {jaxwm.__version__}, jax {jax.__version__}" in card
    )
    assert "jaxwm train dyna-q " in card and "--log" not in card and "![watch](watch.gif)" in card
    about = front(card)
    assert about["library_name"] == "jaxwm" and {"reinforcement-learning", "dyna-q"} <= set(about["tags"])
    (found,) = about["model-index"][0]["results"]
    assert found["metrics"][0]["value"].startswith(f"{np.mean(result['trained']):.2f} +/- ")
    assert "/tmp" not in card + (model / hub.PLAN).read_text() and str(run) not in card


def test_what_was_pulled_acts_like_the_run(run, model, tmp_path, capsys):
    assert cli.main(["pull", str(model), str(tmp_path / "pulled")]) == 0
    assert "jaxwm eval" in capsys.readouterr().out
    ours, theirs = jaxwm.load(run), jaxwm.load(tmp_path / "pulled")
    assert_same(ours.state.params, theirs.state.params)
    assert theirs.steps == ours.steps == STEPS and theirs.plan == hub.portable(ours.plan) != ours.plan
    cells = np.eye(6, dtype=bool)
    step = jaxwm.types.Step(cells, np.zeros(6, np.float32), np.ones(6, bool), np.zeros(6, bool), np.zeros(6, bool))
    acted = []
    for agent, state in ((ours.agent, ours.state), (theirs.agent, theirs.state)):
        one = jax.tree.map(lambda x: x[0], state)
        carry = agent.reset(one, 6)
        acted.append(jax.jit(agent.act, static_argnums=4)(one, carry, step, jax.random.key(0), "greedy")[1])
    np.testing.assert_array_equal(*acted)


def test_a_model_is_no_run(model, capsys):
    """`resume` would train it anew, in its folder."""
    before = sorted(model.iterdir())
    assert cli.main(["resume", str(model)]) == 2 and "no run directory" in capsys.readouterr().err
    assert sorted(model.iterdir()) == before


def test_pushed_again_it_is_replaced(run, tmp_path):
    assert hub.push(run, str(tmp_path / "m")) == str(tmp_path / "m")
    old = (tmp_path / "m" / hub.CARD).read_text()
    (tmp_path / "m" / hub.CARD).write_text(old + "old")
    hub.push(run, str(tmp_path / "m"))
    assert (tmp_path / "m" / hub.CARD).read_text() == old


def said(capsys, *words) -> str:
    assert cli.main([*map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_what_cannot_be_pushed_or_pulled_is_one_line_and_writes_nothing(run, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "README.md").write_text("mine")
    (tmp_path / "bad").mkdir()
    content = (model / load.WEIGHTS).read_bytes()
    (tmp_path / "bad" / load.WEIGHTS).write_bytes(content[: len(content) // 2])
    before = sorted(tmp_path.rglob("*"))
    assert "thesis is not empty" in said(capsys, "push", run, "./thesis")
    assert "is not empty" in said(capsys, "push", run, run)
    assert "neither USER/MODEL on the Hugging Face hub nor a folder (./thesis)" in said(capsys, "push", run, "thesis")
    assert "no run directory" in said(capsys, "push", "nothing", "./new")
    assert "no checkpoint '7'" in said(capsys, "push", run, "./new", "--checkpoint", "7")
    assert "holds a model already" in said(capsys, "pull", model, model)
    assert "is no model of jaxwm: there is no weights.safetensors" in said(capsys, "pull", "./thesis", "new")
    assert "no safetensors file, or damaged" in said(capsys, "pull", "./bad", "new")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "changed",
    [
        {"imports": ["evil"]},
        {"env": "remote/example.com:80"},
        {"start": "/etc"},
        {"data": "/x/y", "updates": 5, "steps": None},
    ],
)
def test_a_model_that_reaches_for_the_machine_is_refused(model, changed, tmp_path):
    from safetensors import safe_open

    with safe_open(model / load.WEIGHTS, framework="numpy") as file:
        facts = file.metadata()
    about = json.loads(facts["about"])
    about["plan"] |= changed
    (tmp_path / "evil").mkdir()
    save_file(load_file(model / load.WEIGHTS), tmp_path / "evil" / load.WEIGHTS, facts | {"about": json.dumps(about)})
    with pytest.raises(ValueError, match="of another machine: refused"):
        hub.pull(str(tmp_path / "evil"), tmp_path / "new")
    for broken in ("{}", "no json", '{"plan": 1, "steps": 2}'):
        save_file({"x": np.zeros(1)}, tmp_path / "evil" / load.WEIGHTS, facts | {"about": broken})
        with pytest.raises(ValueError, match="does not say what its weights are"):
            hub.pull(str(tmp_path / "evil"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


class Hub:
    """In place of huggingface_hub, whose servers no test can reach: a folder. Calls must fit the library's own."""

    def __init__(self, place: Path):
        self.place, self.calls = place, []
        known = find_spec("huggingface_hub") is not None
        self.api = importlib.import_module("huggingface_hub").HfApi() if known else None

    def HfApi(self):
        return self

    def _fits(self, name, *arguments, **options):
        if self.api is not None:
            inspect.signature(getattr(self.api, name)).bind(*arguments, **options)
        self.calls.append(name)

    def create_repo(self, *arguments, **options):
        self._fits("create_repo", *arguments, **options)

    def upload_folder(self, **options):
        self._fits("upload_folder", **options)
        for file in Path(options["folder_path"]).iterdir():
            assert file.name in options["allow_patterns"]
            (self.place / file.name).write_bytes(file.read_bytes())

    def snapshot_download(self, *arguments, **options):
        self._fits("snapshot_download", *arguments, **options)
        for file in self.place.iterdir():
            (Path(options["local_dir"]) / file.name).write_bytes(file.read_bytes())


def test_the_hub_gets_and_gives_the_same_files(run, tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    fake = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)  # type: ignore[arg-type]
    assert hub.push(run, "someone/lake") == "https://huggingface.co/someone/lake"
    monkeypatch.chdir(tmp_path)
    assert hub.pull("someone/lake") == Path("models/lake")
    assert fake.calls == ["create_repo", "upload_folder", "snapshot_download"]
    assert jaxwm.load("models/lake").steps == STEPS
    monkeypatch.setattr(fake, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("401\nmore")))
    with pytest.raises(ConnectionError, match=r"cannot pull someone/other \(RuntimeError: 401\).*hf auth login"):
        hub.pull("someone/other")


# --- Serving ------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(run):
    """The policy of the run, served from a thread."""
    server = serve.prepare(open_player(run, 1, 1), "greedy", "127.0.0.1", 0, "secret")
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server.address
    server.stopped = True
    thread.join()


def cell(place: int) -> np.ndarray:
    return np.arange(6) == place


def test_clients_ask_and_the_policy_of_the_run_answers(run, served):
    """Several at once; wrong observations are told and disturb nobody."""
    one, two = (wire.Agent(served, token="secret") for _ in range(2))
    assert one.about["agent"] == "dyna-q" and one.about["steps"] == STEPS and one.about["member"] == 1
    assert one.about["obs"] == {"": {"shape": [6], "dtype": "bool"}} and one.about["action"] == {
        "kind": "Discrete",
        "n": 2,
    }
    values = np.asarray(jaxwm.load(run).state.params["q"])[1]
    for place in range(6):
        a, b = one.act(cell(place)), two.act(cell(place), reward=0.5)
        assert a.dtype == np.int32 and a.shape == () and 0 <= a < 2 and 0 <= b < 2
        if np.ptp(values[place]):
            assert a == b == values[place].argmax()
        with pytest.raises(wire.Failure, match=r"the observation has shape \(1, 3\), expected \(1, 6\)"):
            two.act(np.zeros(3, bool))
    with pytest.raises(wire.Failure, match="several entries or none, expected one-hot"):
        one.act(np.ones(6, bool))
    with pytest.raises(wire.Failure, match="join or act, not to 'dance'"):
        one.ask({"kind": "dance"})
    one.reset()
    assert one.act(cell(3)).shape == ()
    with pytest.raises(wire.Failure, match="wrong token"):
        wire.Agent(served, token="no")
    with pytest.raises(ConnectionError, match="serves an agent, not an environment"):
        wire.Environment(served, token="secret")
    one.close(), two.close()


@pytest.mark.slow
def test_a_process_scores_and_serves_a_model(model):
    """`jaxwm eval`, and `jaxwm serve`, asked by a process that has NumPy and one file."""
    assert cli.main(["eval", str(model), "--episodes", "2"]) == 0
    env = {**os.environ, "PYTHONPATH": str(Path(jaxwm.__file__).parents[1])}
    command = [sys.executable, "-m", "jaxwm", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    try:
        lines = [process.stdout.readline() for _ in range(3)]  # type: ignore[union-attr]
        address = re.search(r"127\.0\.0\.1:\d+", lines[1])
        assert address, lines
        ask = f"import wire, numpy as np; a = wire.Agent({address[0]!r}); print(a.act(np.arange(6) == 4))"
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        where = Path(wire.__file__).parent
        out = subprocess.run(
            [sys.executable, "-c", ask], cwd=where, env=clean, capture_output=True, text=True, timeout=60
        )
        assert out.stdout.strip() in "01", out.stderr
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--port 99999", "--port must be"),
        ("--host 192.0.2.1", "cannot listen on"),
        ("--mode wild", "--mode must be one of"),
    ],
)
def test_serving_refuses_in_one_line(words, error, run, capsys, monkeypatch):
    monkeypatch.setenv(wire.TOKEN, "x")
    assert error in said(capsys, "serve", run, *words.split())


# --- An environment that goes away --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
def test_a_run_whose_environment_goes_away_keeps_what_it_has_and_goes_on(tmp_path, capsys, monkeypatch):
    """Killed in the middle: one line, the checkpoint is there; once it is back `resume` goes on to the end."""
    monkeypatch.setattr(session, "CHUNK_SECONDS", 0.05)
    server, run = Elsewhere(tmp_path, "Plain"), tmp_path / "run"

    def kill() -> None:
        until = time.monotonic() + 120
        while not list((run / directory.CHECKPOINTS).glob("*/checksums.json")) and time.monotonic() < until:
            time.sleep(0.02)
        server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    steps = 20_000
    more = ["--checkpoint-minutes", "0.01", "--env-option", "patience=0"]
    assert train(server.address, run, steps, *more) == 2
    killer.join()
    told = capsys.readouterr().err.splitlines()
    assert "restarted, 1 times so far" in told[0]
    error = [line for line in told if line.startswith("error: ")]
    assert len(error) == 1 and f"Plain-v0 died (ConnectionError: nothing answers at {server.address}" in error[0]
    good = re.search(
        r"the last good checkpoint is at step ([\d,]+): when it works again, go on with `.*resume", error[0]
    )
    assert good, error
    at = int(good[1].replace(",", ""))
    assert 0 < at < steps
    assert (run / directory.CHECKPOINTS / str(at)).is_dir() and not (run / directory.EVALUATION).exists()
    before = read_jsonl(run / directory.SCORES)
    assert cli.main(["resume", str(run)]) == 2, "it is still away"
    assert "start the server there first" in capsys.readouterr().err
    assert read_jsonl(run / directory.SCORES) == before
    with Elsewhere(tmp_path, "Plain", server.port):
        monkeypatch.setattr(session.Run, "_left", lambda self: 0 if self.done[0] >= at + 20 else 20)
        assert cli.main(["resume", str(run)]) == 0
    after = read_jsonl(run / directory.SCORES)
    kept = [row for row in before if row["env_steps"] <= at]
    assert kept == after[: len(kept)] and read_json(run / directory.EVALUATION)["env_steps"] >= at + 20
