"""A run directory is plain files: made once, written line by line, readable after a kill or a full disk."""

import errno
import json
import os
import stat
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.run import directory, json_files
from jaxwm.run.writer import Writer

SCORE = {"member": 0, "env_steps": 100, "return": 1.0, "length": 9}


@pytest.fixture
def run(tmp_path) -> Path:
    return directory.create(tmp_path / "run")


# --- The directory ------------------------------------------------------------------------------------------------


def test_create(tmp_path):
    path = directory.create(str(tmp_path / "runs" / "mine"))
    assert path == tmp_path / "runs" / "mine"
    assert (path / "checkpoints").is_dir()


def test_create_accepts_an_empty_directory(tmp_path):
    assert (directory.create(tmp_path) / "checkpoints").is_dir()


def test_create_refuses_a_run_and_tells_the_way_out(run):
    directory.write_config(run, {})
    with pytest.raises(FileExistsError, match=r"--run, or go on with `.*jaxwm resume .*run`"):
        directory.create(run)


def test_create_refuses_foreign_files(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="is not empty: choose another directory with --run"):
        directory.create(tmp_path)
    with pytest.raises(FileExistsError, match="is a file: choose another directory with --run"):
        directory.create(tmp_path / "thesis.tex")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_create_in_an_unwritable_folder(tmp_path, monkeypatch, code):
    def refuse(self, *args, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"cannot write to .*run \(.*choose another directory with --run"):
        directory.create(tmp_path / "run")


def test_what_a_killed_run_left_before_its_configuration_is_used_again(tmp_path):
    directory.create(tmp_path / "run")
    (tmp_path / "run" / directory.LOCK).touch()
    (tmp_path / "run" / ".config.json.x7").touch()
    directory.create(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "100").mkdir()
    with pytest.raises(FileExistsError, match="holds a run already"):
        directory.create(tmp_path / "run")


def test_of_two_runs_at_once_only_one_is_created(tmp_path):
    with directory.created(tmp_path / "run") as lock:
        with pytest.raises(BlockingIOError, match=rf"process {os.getpid()} on .* is working on the run in .*run"):
            with directory.created(tmp_path / "run"):
                pass
        directory.write_config(tmp_path / "run", {})
    assert (tmp_path / "run" / directory.CONFIG).exists(), "the one that failed takes nothing away"
    with pytest.raises(BlockingIOError):
        directory.lock(tmp_path / "run", wait=0.3)
    lock.close()
    directory.lock(tmp_path / "run").close()


def test_a_run_that_appears_while_waiting_is_not_overwritten(tmp_path, monkeypatch):
    looks = iter([True, False])  # empty at first, then somebody else's
    monkeypatch.setattr(directory, "_unused", lambda path: next(looks))
    (tmp_path / "run").mkdir()
    with pytest.raises(FileExistsError):
        with directory.created(tmp_path / "run"):
            pass
    assert (tmp_path / "run").is_dir()


def test_default_path(tmp_path, monkeypatch):
    monkeypatch.setattr(directory.time, "strftime", lambda format: "20260131-120000")
    path = directory.default_path("dreamer-v3", "gymnax/Catch-bsuite", tmp_path)
    assert path == tmp_path / "dreamer-v3-Catch-bsuite-20260131-120000"
    assert not path.exists()
    path.mkdir()
    assert directory.default_path("dreamer-v3", "gymnax/Catch-bsuite", tmp_path).name == path.name + "-2"
    assert directory.default_path("a", "suite/odd/na me", tmp_path).name == "a-odd-na-me-20260131-120000"
    assert directory.default_path("a", "suite/b").parent == Path("runs")


# --- The configuration --------------------------------------------------------------------------------------------


def test_config_comes_back(run):
    config = {"agent": "dreamer-v3", "hyper": {"lr": 4e-5, "sizes": (1, 2)}, "seed": 0, "resume": None, "fast": True}
    directory.write_config(run, config)
    assert directory.read_config(run) == {**config, "hyper": {"lr": 4e-5, "sizes": [1, 2]}}


def test_config_takes_scalars_and_paths(run):
    directory.write_config(run, {"lr": np.float32(0.1), "members": jnp.int32(3), "root": Path("runs") / "x"})
    assert directory.read_config(run) == {"lr": 0.1, "members": 3, "root": str(Path("runs") / "x")}


def test_config_is_replaced_whole_or_not_at_all(run, monkeypatch):
    directory.write_config(run, {"seed": 1})

    def fail(*args):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="broken"):
        patch.setattr(os, "replace", fail)
        directory.write_config(run, {"seed": 2})
    assert directory.read_config(run) == {"seed": 1}
    assert sorted(file.name for file in run.iterdir()) == ["checkpoints", "config.json"]
    directory.write_config(run, {"seed": 3})
    assert directory.read_config(run) == {"seed": 3}


def test_config_can_be_read_by_others(run):
    directory.write_config(run, {})
    assert stat.S_IMODE((run / "config.json").stat().st_mode) == 0o644


@pytest.mark.parametrize("value", [float("nan"), [1.0, float("inf")], {"deep": np.float32("inf")}])
def test_config_refuses_what_would_not_come_back(run, value):
    with pytest.raises(ValueError, match="'lr'"):
        directory.write_config(run, {"seed": 0, "lr": value})


def test_config_refuses_objects(run):
    with pytest.raises(TypeError, match=r"'thing'.*object"):
        directory.write_config(run, {"thing": object()})
    assert not (run / "config.json").exists()


def test_config_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run directory: there is no config\.json"):
        directory.read_config(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b'{"seed": 1', b"", b"[1]", b"\xff\xfe"])
def test_config_damaged(run, content):
    (run / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        directory.read_config(run)


# --- Writing and reading ------------------------------------------------------------------------------------------


def test_rows_come_back(run):
    with Writer(run) as writer:
        writer.metrics({"env_steps": 10, "loss": 0.5})
        writer.metrics({"env_steps": 20, "note": "é", "absent": None})
        writer.scores([SCORE, {**SCORE, "member": 1}])
        writer.scores([])
    assert json_files.read_jsonl(run / "metrics.jsonl") == [
        {"env_steps": 10, "loss": 0.5},
        {"env_steps": 20, "note": "é", "absent": None},
    ]
    assert json_files.read_jsonl(run / "scores.jsonl") == [SCORE, {**SCORE, "member": 1}]


def test_rows_are_there_without_a_flush(run):
    writer = Writer(run)
    writer.metrics({"loss": 1})
    assert json_files.read_jsonl(run / "metrics.jsonl") == [{"loss": 1}]
    writer.close()
    writer.close()


def test_numbers_of_every_kind(run):
    row = {
        "python": 0.1,
        "float32": np.float32(0.1),
        "float64": np.float64(0.1),
        "bfloat16": jnp.bfloat16(0.5),
        "jax": jnp.float32(0.1),
        "int": jnp.int32(3),
        "uint8": np.uint8(4),
        "bool": np.bool_(True),
        "members": jnp.array([0.1, jnp.nan]),
        "matrix": np.arange(4).reshape(2, 2),
        "nan": float("nan"),
        "inf": jnp.float32(-jnp.inf),
    }
    with Writer(run) as writer, jax.transfer_guard("disallow"):
        writer.metrics(row)
    assert json_files.read_jsonl(run / "metrics.jsonl") == [
        {
            "python": 0.1,
            "float32": 0.1,
            "float64": 0.1,
            "bfloat16": 0.5,
            "jax": 0.1,
            "int": 3,
            "uint8": 4,
            "bool": True,
            "members": [0.1, None],
            "matrix": [[0, 1], [2, 3]],
            "nan": None,
            "inf": None,
        }
    ]


def test_float32_survives_as_the_same_float32(run):
    values = np.random.default_rng(0).normal(size=200).astype(np.float32)
    with Writer(run) as writer:
        writer.metrics({"values": values})
    (row,) = json_files.read_jsonl(run / "metrics.jsonl")
    np.testing.assert_array_equal(np.array(row["values"], np.float32), values)


def test_scores_have_four_fields(run):
    with Writer(run) as writer, pytest.raises(ValueError, match="member, env_steps, return, length"):
        writer.scores([SCORE, {"member": 0, "score": 1.0}])
    assert json_files.read_jsonl(run / "scores.jsonl") == []


def test_unfinished_last_line_is_skipped(run):
    file = run / "metrics.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    assert json_files.read_jsonl(file) == [{"a": 1}, {"a": 2}]
    file.write_bytes(b'{"a": 1}\n{"a": "\xc3')
    assert json_files.read_jsonl(file) == [{"a": 1}]
    file.write_bytes(b"")
    assert json_files.read_jsonl(file) == []


def test_last_line_may_lack_its_line_break(run):
    file = run / "metrics.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": 2}')
    assert json_files.read_jsonl(file) == [{"a": 1}, {"a": 2}]
    with Writer(run) as writer:
        writer.metrics({"a": 3})
    assert json_files.read_jsonl(file) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_damage_before_the_end_is_an_error(run):
    (run / "metrics.jsonl").write_bytes(b'{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged"):
        json_files.read_jsonl(run / "metrics.jsonl")


def test_reopening_cuts_an_unfinished_line(run):
    (run / "metrics.jsonl").write_bytes(b'{"a": 1}\n{"a"')
    with Writer(run) as writer:
        writer.metrics({"a": 2})
    assert json_files.read_jsonl(run / "metrics.jsonl") == [{"a": 1}, {"a": 2}]


# --- Resuming -----------------------------------------------------------------------------------------------------


def test_offsets_and_truncate(run):
    with Writer(run) as writer:
        writer.metrics({"a": 1})
        offsets = json.loads(json.dumps(writer.offsets()))
        assert offsets == {"metrics.jsonl": (run / "metrics.jsonl").stat().st_size, "scores.jsonl": 0}
        writer.metrics({"a": 2})
        writer.scores([SCORE])
    with Writer(run) as writer:
        writer.truncate(offsets)
        writer.metrics({"a": 3})
    assert json_files.read_jsonl(run / "metrics.jsonl") == [{"a": 1}, {"a": 3}]
    assert json_files.read_jsonl(run / "scores.jsonl") == []


def test_truncate_never_lengthens_a_file(run):
    with Writer(run) as writer:
        writer.metrics({"a": 1})
        with pytest.warns(UserWarning, match=r"metrics\.jsonl is shorter than at its checkpoint"):
            writer.truncate({"metrics.jsonl": 1000})
        with pytest.raises(ValueError, match=r"unknown files: other\.jsonl"):
            writer.truncate({"other.jsonl": 0})
    assert json_files.read_jsonl(run / "metrics.jsonl") == [{"a": 1}]


# --- A full disk --------------------------------------------------------------------------------------------------


def nearly_full(write, room, code=errno.ENOSPC):
    """A file's `write` that takes only `room` more bytes."""

    def some(data):
        nonlocal room
        if not room:
            raise OSError(code, os.strerror(code))
        taken = write(data[:room])
        room -= taken
        return taken

    return some


def test_full_disk_warns_once_and_leaves_whole_lines(run, monkeypatch):
    with Writer(run) as writer:
        writer.metrics({"a": 1})
        lines = writer._files["metrics.jsonl"]
        monkeypatch.setattr(lines, "write", nearly_full(lines.write, room=4))
        with pytest.warns(UserWarning, match="no space left for") as caught:
            writer.metrics({"a": 2})
            writer.metrics({"a": 3})
            writer.scores([SCORE])
        assert [warning.filename for warning in caught] == [__file__]
        monkeypatch.undo()
        writer.metrics({"a": 4})
    assert json_files.read_jsonl(run / "metrics.jsonl") == [{"a": 1}, {"a": 4}]
    assert json_files.read_jsonl(run / "scores.jsonl") == [SCORE]


def test_full_disk_while_flushing(run, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Writer(run) as writer:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match="no space left for") as caught:
            writer.flush()
            assert writer.offsets() == {"metrics.jsonl": 0, "scores.jsonl": 0}
        assert len(caught) == 1


def test_other_errors_are_raised(run, monkeypatch):
    with Writer(run) as writer:
        lines = writer._files["metrics.jsonl"]
        monkeypatch.setattr(lines, "write", nearly_full(lines.write, room=0, code=errno.EIO))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            writer.metrics({"a": 1})
