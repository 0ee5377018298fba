"""The benchmark's own parts: arguments, ratios, worker processes, what is kept. No times are asserted."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import run, scaling, suites
from benchmarks.sides import MARKS, Failed, Worker, alternate, parse_peers, ratio
from jaxwm.envs import tasks

PEERS = Path(run.__file__).parent / "peers"

FAKE = f"""
import sys
sys.path.insert(0, {str(PEERS)!r})
from serve import answers, serve
say = answers()
print("noise of a library")
times = iter((0.5, 0.25, 0.125))
serve(say, {{"parameters": 3}}, {{"update": lambda: {{"seconds": next(times)}}}})
"""


def checkout(folder: Path, name: str) -> Path:
    for mark in MARKS[name]:
        (folder / mark).parent.mkdir(parents=True, exist_ok=True)
        (folder / mark).touch()
    return folder


def fake(name: str, program: str = FAKE) -> Worker:
    return Worker(name, [sys.executable, "-c", program])


def test_peers_take_the_python_that_is_named_then_their_own_then_this_one(tmp_path):
    path = checkout(tmp_path, "dreamerv3")
    argument = f"dreamerv3={path}"
    assert parse_peers([argument])[0].python == sys.executable
    own = path / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    (peer,) = parse_peers([argument])
    assert peer.python == str(own) and peer.path == path
    assert parse_peers([argument], ["dreamerv3=/usr/bin/python3"])[0].python == "/usr/bin/python3"
    assert peer.command("--setting", "a")[1:] == [
        str(PEERS / "dreamerv3.py"), "--path", str(path), "--setting", "a",
    ]  # fmt: skip


def test_every_peer_has_a_driver():
    assert all((PEERS / f"{name}.py").is_file() for name in MARKS)


@pytest.mark.parametrize(
    ("peers", "pythons", "message"),
    [
        (["dreamerv3"], [], "NAME=PATH"),
        (["dreamerv3="], [], "NAME=PATH"),
        (["dreamer=/x"], [], "unknown peer 'dreamer'; did you mean"),
        (["dreamerv3=/nowhere"], [], "there is no folder /nowhere"),
        (["r2dreamer={tmp}"], [], "is no checkout of it: it has no dreamer.py"),
        ([], ["dreamerv3=/usr/bin/python3"], "there is no --peer of that name"),
        ([], ["python3"], "--peer-python wants NAME=PATH"),
    ],
)
def test_wrong_peers_are_explained(tmp_path, peers, pythons, message):
    with pytest.raises(ValueError, match=message):
        parse_peers([peer.format(tmp=tmp_path) for peer in peers], pythons)


def test_ratio_of_medians_and_spread_of_pairs():
    result = ratio([(1.0, 2.0), (2.0, 4.0), (3.0, 2.0), (6.0, 8.0), (4.0, 4.0)])
    assert result.medians == 3 / 4
    assert (result.least, result.quarter, result.three_quarters, result.most) == (0.5, 0.5, 1.0, 1.5)
    assert str(result) == "0.750 (0.500..1.500, middle half 0.500..1.000)"


def test_workers_answer_in_turn_whatever_else_they_print():
    with fake("ours") as ours, fake("theirs") as theirs:
        assert ours.ready == {"parameters": 3}
        assert alternate(ours, theirs, 2) == [(0.5, 0.5), (0.25, 0.25)]
        assert ours.update() == 0.125
    assert ours._process.returncode == 0 and theirs._process.returncode == 0


def test_a_worker_that_does_not_start_shows_its_last_errors():
    with pytest.raises(Failed, match=r"(?s)peer ended with status 1.*ModuleNotFoundError: No module named 'nothing_of"):
        fake("peer", "import nothing_of_this_name")
    with pytest.raises(Failed, match="peer does not start"):
        Worker("peer", ["/nowhere/python"])


def test_a_worker_that_dies_later_shows_its_last_errors():
    with fake("peer") as peer:
        for _ in range(3):
            peer.update()
        with pytest.raises(Failed, match="StopIteration") as failure:
            peer.update()
        assert failure.value.name == "peer"


def test_kept_results_name_no_folders_of_this_machine(tmp_path, monkeypatch):
    folders = [
        "--peer",
        "dreamerv3=/home/me/dreamerv3",
        "--peer-python=dreamerv3=~/python",
        "--peer",
        "r2dreamer=../r2",
    ]
    monkeypatch.setattr(sys, "argv", ["run.py", "--settings", "a", *folders])
    file = run.keep("update", {"x": 1.5}, tmp_path)
    record = json.loads(file.read_text())
    assert record["command"] == (
        "python -m benchmarks.run --settings a --peer dreamerv3=PATH --peer-python=dreamerv3=PATH --peer r2dreamer=PATH"
    )
    assert record["results"] == {"x": 1.5}
    assert record["date"] and record["device"] and record["versions"]["jax"]
    assert "/home/me" not in file.read_text()


def test_a_machine_without_a_gpu_is_told_so_in_one_line(monkeypatch, capsys):
    def none():
        raise RuntimeError("no backend")

    monkeypatch.setattr(sys, "argv", ["run.py", "--device", "gpu"])
    monkeypatch.setattr(run, "start", lambda device, cache: None)
    monkeypatch.setattr(run.jax, "devices", none)
    assert run.main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no GPU" in error and "make bench" in error


def test_tables_have_a_column_for_each_setting():
    policy = dict(call=0.5, ready=0.4, network=0.1)
    pairs = [(1.0, 2.0), (2.0, 2.0)]
    warm = dict(trace_seconds=1.0, compile_seconds=0.5, cache_hits=3)
    result = dict(
        setting="a", preset="1m", batch=16, length=64, dtype="float32", seconds=[1.0, 2.0, 3.0], parameters=10,
        flops=2e9, matrix_flops_per_second=4e9, peak_bytes=1e9, scratch_bytes=1e6, policy_ms=policy, warm=warm,
        trace_seconds=2.0, compile_seconds=20.0, pairs={"dreamerv3": pairs},
        ratios={"dreamerv3": ratio(pairs)._asdict()},
    )  # fmt: skip
    rates = dict(task="t", preset="nano", steps_per_second=5.0, updates_per_second=1.0)
    table = run.update_table([result], dict(policy_ms=policy, loops=[rates]))
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    cells = dict(zip(columns[0], columns[1], strict=True))
    assert cells["update"] == "2,000 ms (1,000..3,000)"
    assert cells["rate, share of a matrix product's"] == "1.0 GFLOP/s, 25% of 4.0 GFLOP/s"
    assert cells["  our time / that of dreamerv3"].startswith("0.750 (0.500..1.000")
    assert dict(zip(columns[0], columns[2], strict=True))["whole loop, t, nano"] == "5.0 steps/s, 1.00 updates/s"


def test_growth_is_told_for_a_doubling():
    results = [
        dict(name=name, value=value, seconds=[seconds], flops=flops)
        for name, value, seconds, flops in (("batch", 8, 1.0, 1e9), ("batch", 32, 2.25, 4e9), ("length", 16, 1.0, 1e9))
    ]
    factors = [list(column.cells) for column in scaling.growth_table("nano", results).columns][3:]
    assert factors == [["", "x 1.50", ""], ["", "x 2.00", ""]]


def test_random_data_has_the_shapes_asked_for():
    import jax

    from benchmarks.ours import make, random_like

    spec, _ = make("b", "nano")
    data = random_like({"obs": spec.obs, "flag": jax.ShapeDtypeStruct((2,), bool)}, jax.random.key(0))
    assert data["obs"].shape == (64, 64, 3) and data["obs"].dtype == np.uint8
    assert not data["flag"].any()


@pytest.mark.parametrize("name", ["toy/Taxi", "tabular/DynaMaze"])
def test_environments_are_timed_host_and_pure(name):
    rates = suites.measured(name, {}, (1, 2), seconds=0.01)
    assert list(rates) == [1, 2] and all(rate.wall > 0 and rate.cpu > 0 for rate in rates.values())
    assert suites.rounded(12_345.6) == 12_000 and suites.rounded(0.4) == 0


def test_each_suite_is_timed():
    assert {name.split("/")[0] for name in suites.TASKS} == set(tasks.TASKS)
