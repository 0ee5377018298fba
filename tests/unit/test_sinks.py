"""Sinks: TensorBoard, trackio, Weights & Biases and CSV get what the files of a run directory hold."""

import csv
import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxwm.run import directory, json_files, sinks
from jaxwm.run.writer import Writer

SCORE = {"member": 0, "env_steps": 100, "return": 1.0, "length": 9}


@pytest.fixture
def run(tmp_path) -> Path:
    path = directory.create(tmp_path / "run")
    directory.write_config(path, {"agent": "dyna-q", "seed": 3})
    return path


def writer(run: Path, *names: str, fresh: bool = True) -> Writer:
    return Writer(run, sinks.opened(names, run, directory.read_config(run), fresh))


def picture(path: Path) -> Path:
    frames = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (0, 90)]
    frames[0].save(
        path, save_all=path.suffix == ".gif", **({"append_images": frames[1:]} if path.suffix == ".gif" else {})
    )
    return path


# --- Any sink -----------------------------------------------------------------------------------------------------


def broken(error: Exception, calls: list[str]) -> sinks.Sink:
    def fail(name):
        def call(*_):
            calls.append(name)
            raise error

        return call

    return sinks.Sink(*map(fail, sinks.Sink._fields))


def test_a_sink_that_fails_costs_one_warning_and_no_row(run):
    """Whatever it raises and whenever: metrics and scores are whole, other sinks go on, it is tried again."""
    calls: list[str] = []
    rows: list[int] = []
    good = sinks.Sink(lambda row, step: rows.append(step))
    with pytest.warns(UserWarning, match=r"bad failed \(no network\): the run goes on.*metrics\.jsonl") as caught:
        with Writer(run, {"bad": broken(RuntimeError("no network\nmore"), calls), "good": good}) as out:
            offsets = out.offsets()
            out.truncate(offsets)
            for step in range(3):
                out.metrics({"env_steps": step})
            out.scores([SCORE])
    assert len(caught) == 1 and rows == [0, 1, 2]
    assert calls == ["flush", "rewind", *["metrics"] * 3, "scores", "flush", "close"]
    assert len(json_files.read_jsonl(run / "metrics.jsonl")) == 3
    assert json_files.read_jsonl(run / "scores.jsonl") == [SCORE]


def test_a_sink_that_cannot_start_is_one_error_and_closes_the_others(run, monkeypatch):
    closed = []
    monkeypatch.setitem(sinks.SINKS, "csv", lambda folder, about: sinks.Sink(None, close=lambda: closed.append(1)))  # type: ignore[arg-type]

    def start(folder, about):
        raise RuntimeError("no key\nlog in")

    monkeypatch.setitem(sinks.SINKS, "tensorboard", start)
    with pytest.raises(ValueError, match=r"--log tensorboard cannot start \(no key\)"):
        sinks.opened(["csv", "tensorboard"], run, {})
    assert closed == [1]


def test_pictures_that_cannot_be_shown_cost_a_warning(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.warns(UserWarning, match=r"tensorboard does not show .* pip install 'jaxwm\[log\]'"):
        sinks.publish(["tensorboard", "csv"], run, [picture(run / "watch.gif")], 3)


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [
        ("tensorboardX.event_file_writer", "tensorboard", "log"),
        ("trackio", "trackio", "log"),
        ("wandb", "wandb", "wandb"),
    ],
)
def test_a_missing_library_names_the_extra(module, name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'jaxwm\[{extra}\]'"):
        sinks.check([name])


def test_every_sink_has_a_hint(run):
    assert len(sinks.hints(sinks.SINKS, run)) == len(sinks.SINKS) == 4


# --- TensorBoard --------------------------------------------------------------------------------------------------


def events(folder) -> list:
    """The records of the event files: length (8 bytes), check sum (4), content, check sum (4)."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for file in sorted(folder.glob("events*")):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_tensorboard_gets_every_number(run):
    pytest.importorskip("tensorboardX")
    with writer(run, "tensorboard") as out:
        out.metrics({"env_steps": 10, "loss": 0.5, "bad": float("nan"), "each": np.array([1.0, 2.0]), "note": "x"})
        out.metrics({"updates": 7, "loss": 0.25})
        out.metrics({"loss": 1.0})
        out.scores([{**SCORE, "member": 2}])
    found = events(run / "tensorboard")
    points = [(value.tag, event.step, value.simple_value) for event in found for value in event.summary.value]
    assert points == [
        ("env_steps", 10, 10),
        ("loss", 10, 0.5),
        ("each/0", 10, 1),
        ("each/1", 10, 2),
        ("updates", 7, 7),
        ("loss", 7, 0.25),
        ("episode/return/2", 100, 1),
        ("episode/length/2", 100, 9),
    ]


def test_tensorboard_is_rewound(run):
    pytest.importorskip("tensorboardX")
    with writer(run, "tensorboard") as out:
        out.metrics({"env_steps": 10})
        offsets = out.offsets()
        out.metrics({"env_steps": 20})
    with writer(run, "tensorboard", fresh=False) as out:
        out.truncate(offsets)
    assert len(list((run / "tensorboard").iterdir())) == 2
    assert [event.step for event in events(run / "tensorboard") if event.HasField("session_log")] == [11]


def test_tensorboard_on_a_full_disk(run, monkeypatch):
    pytest.importorskip("tensorboardX")
    writers, _ = sinks.import_tensorboard()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with writer(run, "tensorboard") as out:
        out.metrics({"env_steps": 0})
        monkeypatch.setattr(writers, "write_event", full)
        with pytest.warns(UserWarning, match="no space left for") as caught:
            for step in range(1, 100):
                out.metrics({"env_steps": step})
        assert len(caught) == 1
    assert len(json_files.read_jsonl(run / "metrics.jsonl")) == 100


def test_tensorboard_shows_pictures(run):
    pytest.importorskip("tensorboardX")
    (run / "dreams").mkdir()
    files = [picture(run / "watch.gif"), picture(run / "dreams" / "dream.png"), run / "watch.mp4"]
    sinks.publish(["tensorboard"], run, files, 7)
    values = [
        (event.step, value) for event in events(run / "tensorboard" / "pictures") for value in event.summary.value
    ]
    assert [(step, value.tag) for step, value in values] == [(7, "watch.gif"), (7, "dreams/dream.png")]
    for file, (_, value) in zip(files[:2], values, strict=True):
        assert (value.image.width, value.image.height) == (30, 20)
        assert value.image.encoded_image_string == file.read_bytes()


# --- CSV ----------------------------------------------------------------------------------------------------------


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_column_for_each_number_that_ever_came(run):
    with writer(run, "csv") as out:
        out.metrics({"env_steps": 1, "return": [None, 0.5]})
        out.metrics({"env_steps": 2, "return": [1.0, 2.0], "loss": np.float32(0.1), "note": "a,b"})
        offsets = out.offsets()
        out.metrics({"env_steps": 3, "return": [1.0, np.nan]})
        out.scores([SCORE, {**SCORE, "member": 1}])
    assert table(run / "metrics.csv") == [
        {"env_steps": "1", "return/0": "", "return/1": "0.5", "loss": "", "note": ""},
        {"env_steps": "2", "return/0": "1.0", "return/1": "2.0", "loss": "0.1", "note": "a,b"},
        {"env_steps": "3", "return/0": "1.0", "return/1": "", "loss": "", "note": ""},
    ]
    assert [row["member"] for row in table(run / "scores.csv")] == ["0", "1"]
    with writer(run, "csv", fresh=False) as out:
        out.truncate(offsets)
        out.metrics({"env_steps": 4})
    assert [row["env_steps"] for row in table(run / "metrics.csv")] == ["1", "2", "4"]
    assert table(run / "scores.csv") == []


def test_csv_is_whole_again_after_an_error(run, monkeypatch):
    with writer(run, "csv") as out:
        out.metrics({"env_steps": 1})
        with monkeypatch.context() as patch:
            patch.setattr(sinks.csv_files.DictWriter, "writerows", lambda *_: (_ for _ in ()).throw(OSError("broken")))
            with pytest.warns(UserWarning, match=r"csv failed \(broken\)"):
                out.metrics({"env_steps": 2})
        out.metrics({"env_steps": 3})
    assert [row["env_steps"] for row in table(run / "metrics.csv")] == ["1", "2", "3"]


# --- trackio and Weights & Biases ---------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path, monkeypatch):
    """trackio with its database in a folder of this test."""
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in [m for name, m in sys.modules.items() if name.split(".")[0] == "trackio"]:
        for name, inner in (("TRACKIO_DIR", ""), ("MEDIA_DIR", "media"), ("ARTIFACTS_DIR", "artifacts")):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / "trackio" / inner)
    monkeypatch.setenv("JAXWM_PROJECT", "tests")
    assert trackio and utils.TRACKIO_DIR == tmp_path / "trackio"
    return sqlite_storage.SQLiteStorage


def test_trackio_gets_every_number_and_picture(run, database):
    with writer(run, "trackio") as out:
        out.metrics({"env_steps": 10, "loss": np.array([0.5, 0.25]), "note": "x", "bad": np.nan})
        out.scores([SCORE])
    with writer(run, "trackio", fresh=False) as out:  # resumed
        out.metrics({"env_steps": 20, "loss": np.array([0.5, 0.125])})
    sinks.publish(["trackio"], run, [picture(run / "watch.gif"), picture(run / "a.png")], 20)
    (name,) = database.get_runs("tests")
    assert name.startswith("run-") and json_files.read_json(run / "log.json") == {"id": name}
    rows = [{k: v for k, v in row.items() if k != "timestamp"} for row in database.get_logs("tests", name)]
    assert rows[:2] == [
        {"step": 10, "env_steps": 10, "loss/0": 0.5, "loss/1": 0.25},
        {"step": 20, "env_steps": 20, "loss/0": 0.5, "loss/1": 0.125},
    ]
    shown = {key: row[key] for row in rows[2:] for key in ("watch.gif", "a.png") if key in row}
    assert {key: value["_type"] for key, value in shown.items()} == {
        "watch.gif": "trackio.video",
        "a.png": "trackio.image",
    }
    assert database.get_run_config("tests", name)["agent"] == "dyna-q"
    with writer(run, "trackio") as out:  # another run in the same place
        out.metrics({"env_steps": 1})
    assert len(database.get_runs("tests")) == 2


def test_trackio_that_cannot_write_ends_nothing(run, database, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with writer(run, "trackio") as out:
        monkeypatch.setattr(database, "bulk_log", full)
        with pytest.warns(UserWarning, match="No space left"):
            for step in range(5):
                out.metrics({"env_steps": step})
            out.close()
    assert len(json_files.read_jsonl(run / "metrics.jsonl")) == 5


@pytest.mark.filterwarnings("default")
def test_wandb_offline(run, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with writer(run, "wandb") as out:
        out.metrics({"env_steps": 10, "loss": np.array([0.5, 0.25])})
    (place,) = (run / "wandb").glob("offline-run-*")
    assert json_files.read_json(run / "log.json")["id"] in place.name
    assert any(file.stat().st_size for file in place.glob("*.wandb"))
