"""Formats of recordings: what is written is read, what others wrote is read, and what is damaged is named."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxwm import data
from jaxwm.__main__ import main
from jaxwm.data import Episode, formats, images, lerobot, video
from jaxwm.types import Box, Discrete, Spec

FORMATS = ("npy", "npz", "minari", "lerobot")
SENSORS = {
    "camera": jax.ShapeDtypeStruct((16, 32, 3), np.uint8),
    "state": jax.ShapeDtypeStruct((3,), np.float32),
    "flag": jax.ShapeDtypeStruct((2, 2), np.bool_),
}
SPEC = Spec("toy/Camera", SENSORS, Box(2), 50)
LENGTHS = (7, 12, 3)


def camera(count: int) -> np.ndarray:
    """Frames [count, 16, 32, 3] that a film keeps well: the number t is a brightness of 8 t, on a slope."""
    slope = np.arange(32)[None, None, :, None] + np.zeros((1, 16, 1, 3))
    return (slope + 8 * np.arange(count)[:, None, None, None]).astype(np.uint8)


def episode(seed: int, count: int, spec: Spec = SPEC) -> Episode:
    rng = np.random.default_rng(seed)
    made = {
        "camera": camera(count),
        "state": rng.normal(size=(count, 3)).astype(np.float32),
        "flag": rng.random((count, 2, 2)) < 0.5,
    }
    obs = {name: made[name] for name in spec.obs} if isinstance(spec.obs, dict) else made["flag"]
    boxed = isinstance(spec.action, Box)
    action = rng.uniform(-1, 1, (count, 2)).astype(np.float32) if boxed else rng.integers(3, size=count, dtype=np.int32)
    reward = np.concatenate([[0], rng.normal(size=count - 1)]).astype(np.float32)
    return Episode(obs, reward, None if spec.action is None else action, bool(seed % 2))


EPISODES = [episode(i, n) for i, n in enumerate(LENGTHS)]


def same(got: Episode, want: Episode, loss: int = 0, last: int = 0) -> None:
    """Two pieces are equal; images up to a mean difference of `loss`, and but for the `last` actions."""
    for a, b in zip(jax.tree.leaves(got.obs), jax.tree.leaves(want.obs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.abs(a.astype(float) - b).mean() <= (loss if a.dtype == np.uint8 else 0)
    np.testing.assert_array_equal(got.reward, want.reward)
    if want.action is not None:
        keep = slice(0, len(want.action) - last)
        np.testing.assert_array_equal(got.action[keep], want.action[keep])
        assert got.action.shape == want.action.shape and got.action.dtype == want.action.dtype
    assert got.terminal == want.terminal


# --- What we write ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_written_is_read_whole_and_in_pieces(format, tmp_path):
    assert data.append(tmp_path / "r", SPEC, iter(EPISODES), "toy/Camera", format) == sum(LENGTHS)
    found = data.open_recording(tmp_path / "r")
    assert (found.format, found.spec, found.env) == (format, SPEC, "toy/Camera")
    assert found.length.tolist() == list(LENGTHS)
    for number, want in enumerate(EPISODES):
        n = len(want.reward)
        for first, count in ((0, n), (1, 2), (0, 1), (n - 1, 1), (n - 2, 9)):
            meaningless = int(format == "minari" and first + count >= n)  # the action of the last record
            loss = 4 if format == "lerobot" else 0
            same(found.load(number, first, count), want.piece(first, count), loss, meaningless)


@pytest.mark.parametrize("format", ("npz", "minari"))
def test_choices_and_a_single_sensor(format, tmp_path):
    spec = Spec("toy/Flag", SENSORS["flag"], Discrete(3))
    made = [episode(i, n, spec) for i, n in enumerate(LENGTHS)]
    data.append(tmp_path / "r", spec, made, "toy/Flag", format)
    found = data.open_recording(tmp_path / "r")
    assert found.spec == spec
    same(found.load(1, 0, 12), made[1], last=int(format == "minari"))


@pytest.mark.parametrize("format", ("npy", "npz", "minari"))
def test_a_recording_grows_or_stays_as_it_was(format, tmp_path):
    out = tmp_path / "r"

    def interrupted():
        yield EPISODES[2]
        raise KeyboardInterrupt

    data.append(out, SPEC, EPISODES[:1], "toy/Camera", format)
    assert data.append(out, SPEC, EPISODES[1:2], "toy/Camera", format) == 19
    same(data.open_recording(out).load(1, 0, 11), EPISODES[1].piece(0, 11))
    before = sorted(p.stat().st_size for p in out.rglob("*.*"))
    with pytest.raises(KeyboardInterrupt):
        data.append(out, SPEC, interrupted(), "toy/Camera", format)
    with pytest.raises(ValueError, match="another action"):
        data.append(out, replace(SPEC, action=Box(3)), EPISODES, "toy/Camera", format)
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    assert sorted(p.stat().st_size for p in out.rglob("*.*")) == before


def test_nothing_is_left_of_what_fails(tmp_path):
    with pytest.raises(ValueError, match="no episodes"):
        data.append(tmp_path / "a" / "r", SPEC, [], "toy/Camera", "minari")
    data.append(tmp_path / "r", SPEC, EPISODES[:1], None, "lerobot")
    with pytest.raises(ValueError, match="holds a lerobot recording"):
        data.append(tmp_path / "r", SPEC, EPISODES[:1], None, "lerobot")
    with pytest.raises(ValueError, match="the format must be one of"):
        data.append(tmp_path / "x", SPEC, EPISODES[:1], None, "rlds")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.parent == tmp_path or "a" in p.parts) == ["a", "r"]


def test_minari_itself_reads_what_we_write(tmp_path):
    minari = pytest.importorskip("minari")
    data.append(tmp_path / "catch", SPEC, EPISODES, "toy/Camera", "minari")
    found = minari.MinariDataset(tmp_path / "catch" / "data")
    assert (found.total_episodes, found.total_steps) == (3, sum(LENGTHS) - 3) and found.spec.dataset_id == "catch-v0"
    first, second = found[0], found[1]
    assert first.truncations[-1] and not first.terminations.any() and second.terminations[-1]
    np.testing.assert_array_equal(first.observations["camera"], EPISODES[0].obs["camera"])
    np.testing.assert_array_equal(first.rewards, EPISODES[0].reward[1:])
    np.testing.assert_array_equal(first.actions, EPISODES[0].action[:-1])


# --- What others write --------------------------------------------------------------------------------------------


def foreign_minari(home: Path, format: str = "hdf5") -> list[dict]:
    """A set with a nested observation, a JPEG image and a torque between -2 and 2; what it holds."""
    from gymnasium import spaces
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    inner = spaces.Tuple((spaces.Box(-1, 1, (2,), np.float64), spaces.Discrete(3, start=1)))
    seen = spaces.Dict({"eye": spaces.Box(0, 255, (32, 32, 3), np.uint8), "arm": inner})
    storage = MinariStorage.new(home, seen, spaces.Box(-2.0, 2.0, (1,), np.float32), data_format=format)
    storage.update_metadata({"dataset_id": "arm-v0", "minari_version": "0.5.4"})
    rng, made = np.random.default_rng(0), []
    for steps in (4, 6):
        eye = np.full((steps + 1, 32, 32, 3), 40, np.uint8) + 10 * np.arange(steps + 1, dtype=np.uint8)[:, None, None, None]  # fmt: skip  # noqa: E501
        one = dict(eye=eye, arm=(rng.normal(size=(steps + 1, 2)), rng.integers(1, 4, steps + 1)))
        acts, rewards = rng.uniform(-2, 2, (steps, 1)).astype(np.float32), rng.normal(size=steps)
        ends = np.arange(steps) == steps - 1
        storage.update_episodes([EpisodeBuffer(None, None, None, one, acts, rewards, ends, ends & False, {})])
        made.append(dict(obs=one, actions=acts, rewards=rewards))
    return made


@pytest.mark.parametrize("format", ("hdf5", "parquet"))
def test_a_minari_set_of_others(format, tmp_path):
    pytest.importorskip("minari")
    (tmp_path / "arm").mkdir()
    made = foreign_minari(tmp_path / "arm" / "data", format)
    found = data.open_recording(tmp_path / "arm")
    assert found.spec.action == Box(1) and found.length.tolist() == [5, 7] and found.env is None
    assert {name: x.shape for name, x in found.spec.obs.items()} == {
        "eye": (32, 32, 3), "arm_0": (2,), "arm_1": (3,),
    }  # fmt: skip
    for first, count in ((0, 7), (2, 3), (5, 2)):
        got, rows = found.load(1, first, count), slice(first, first + count)
        obs = made[1]["obs"]
        assert np.abs(got.obs["eye"].astype(int) - obs["eye"][rows]).mean() < 2
        np.testing.assert_allclose(got.obs["arm_0"], obs["arm"][0][rows], rtol=1e-6)
        np.testing.assert_array_equal(got.obs["arm_1"].argmax(1) + 1, obs["arm"][1][rows])
        np.testing.assert_allclose(got.reward, np.append(0, made[1]["rewards"])[rows], rtol=1e-6)
        acted = made[1]["actions"][rows] / 2
        np.testing.assert_allclose(got.action[: len(acted)], acted, atol=1e-6)
        assert got.terminal == (first + count == 7)


def test_a_lerobot_set_of_others(tmp_path):
    """The same files without our own description: names, scaled actions, one more record for what comes at the end."""
    data.append(tmp_path / "r", SPEC, EPISODES, None, "lerobot")
    file = tmp_path / "r" / lerobot.INFO
    info = json.loads(file.read_text())
    assert info["total_frames"] == sum(LENGTHS) and info["features"]["observation.images.camera"]["dtype"] == "video"
    del info["jaxwm"]
    file.write_text(json.dumps(info))
    found = data.open_recording(tmp_path / "r")
    assert found.spec.obs == SENSORS and found.spec.action == Box(2) and found.length.tolist() == [8, 13, 4]
    whole, want = found.load(1, 0, 13), EPISODES[1]
    np.testing.assert_array_equal(whole.obs["state"], want.obs["state"][[*range(12), 11]])
    np.testing.assert_array_equal(whole.reward, np.append(want.reward, 0))
    every = np.concatenate([e.action for e in EPISODES])
    low, high = every.min(0), every.max(0)
    np.testing.assert_allclose(whole.action[:12], (want.action - low) / (high - low) * 2 - 1, atol=1e-5)
    assert whole.terminal and not found.load(1, 0, 12).terminal and not found.load(0, 0, 8).terminal
    for first, count in ((12, 1), (11, 2), (3, 4)):
        same(found.load(1, first, count), whole.piece(first, count))


def test_an_image_in_a_table_of_lerobot():
    import io

    import pyarrow as pa

    file = io.BytesIO()
    Image.fromarray(camera(2)[1]).save(file, "PNG")
    column = pa.array([{"bytes": file.getvalue(), "path": None}] * 3)
    np.testing.assert_array_equal(lerobot._array(Path(), column, SENSORS["camera"]), camera(2)[[1, 1, 1]])


# --- Video --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("mp4", "gif", "png", "folders"))
def test_video_is_frames_without_actions(kind, tmp_path):
    frames, home = camera(20), tmp_path / "films"
    home.mkdir()
    if kind == "mp4":
        video.encode(home / "a.mp4", [frames])
    elif kind == "gif":
        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(home / "a.gif", save_all=True, append_images=rest, optimize=False)
    else:
        inner = home if kind == "png" else home / "walk 1"
        inner.mkdir(exist_ok=True)
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(inner / f"frame{i}.png")  # frame10 comes after frame9
    found = data.open_recording(home)
    assert (found.format, found.spec.action, found.length.tolist()) == ("video", None, [20])
    whole = found.load(0, 0, 20)
    assert whole.action is None and not whole.reward.any() and not whole.terminal
    assert np.abs(whole.obs.astype(int) - frames).mean() < 4
    for first, count in ((13, 3), (0, 2), (19, 1), (5, 6), (11, 2)):  # a frame does not depend on what was read before
        np.testing.assert_array_equal(found.load(0, first, count).obs, whole.obs[first : first + count])
    assert data.open_data(home).read(0, 3).action is None


def test_a_film_with_key_frames_far_apart_is_read_exactly(tmp_path):
    """H.264 with frames that depend on later ones, one key frame in 25."""
    import av

    rng = np.random.default_rng(0)
    noise = rng.integers(255, size=(60, 16, 16, 3), dtype=np.uint8)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "25", "bf": "3"})
        stream.width = stream.height = 16
        for image in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    film = video.Clip(tmp_path / "a.mp4")
    assert film.length == 60
    whole = film.frames(0, 60)
    for first in rng.integers(58, size=12).tolist():
        np.testing.assert_array_equal(film.frames(first, 2), whole[first : first + 2])


def test_images_are_resized_and_sensors_chosen(tmp_path):
    data.append(tmp_path / "r", SPEC, EPISODES, None)
    found = data.open_recording(tmp_path / "r", image_size=8, sensors="camera,flag")
    assert {name: x.shape for name, x in found.spec.obs.items()} == {"camera": (8, 8, 3), "flag": (2, 2)}
    small = found.load(1, 2, 5).obs["camera"]
    want = EPISODES[1].obs["camera"][2:7].astype(float).reshape(5, 8, 2, 8, 4, 3).mean((2, 4))
    assert np.abs(small - want).max() <= 1, "each pixel is the mean of what it covers"
    for channels in (1, 2, 3):
        x = np.broadcast_to(camera(4)[..., :1], (4, 16, 32, channels))
        assert images.resized(x, 4, 4).shape == (4, 4, 4, channels)
    for options, message in (
        ({"sensors": "ears"}, "no sensor 'ears'"),
        ({"sensors": "state", "image_size": 8}, "holds no images"),
        ({"size": 8}, "has no option 'size'"),
        ({"image_size": 0}, "image_size must be a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            data.open_recording(tmp_path / "r", **options)


def test_films_of_several_sizes_have_to_be_resized(tmp_path):
    for name, size in (("a", (32, 16)), ("b", (24, 24))):
        Image.new("RGB", size).save(tmp_path / f"{name}.gif")
    with pytest.raises(ValueError, match=r"a.gif \(16 x 32\) and b.gif \(24 x 24\): resize them with image_size"):
        data.open_recording(tmp_path)
    assert data.open_data(tmp_path, image_size=16).read(0, 2).obs.shape == (2, 1, 16, 16, 3)


def test_only_images_can_be_a_film(tmp_path):
    with pytest.raises(ValueError, match="a film holds one image sensor"):
        data.append(tmp_path / "r", SPEC, EPISODES, None, "mp4")
    assert not any(tmp_path.iterdir())


# --- Streams ------------------------------------------------------------------------------------------------------


def test_processes_read_different_streams(tmp_path):
    data.append(tmp_path / "r", SPEC, [episode(i, 5) for i in range(12)], None)
    whole = data.open_data(tmp_path / "r", 4).read(0, 30)
    parts = [data.open_data(tmp_path / "r", 4, part=(i, 2)).read(0, 30) for i in range(2)]
    joined = jax.tree.map(lambda *x: np.concatenate(x, 1), *parts)
    jax.tree.map(np.testing.assert_array_equal, whole, joined)
    records = {row.tobytes() for row in whole.obs["state"][:15].reshape(-1, 3)}
    assert len(records) == 60, "every record is in one stream"
    with pytest.raises(ValueError, match="part 2 of 2 of 4 streams"):
        data.open_data(tmp_path / "r", 4, part=(2, 2))


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_read_does_not_depend_on_what_was_read_before(format, tmp_path):
    data.append(tmp_path / "r", SPEC, EPISODES, None, format)
    straight = data.open_data(tmp_path / "r", 2, seed=3)
    rows = jax.tree.map(lambda *x: np.concatenate(x), *[straight.read(i, 5) for i in range(0, 100, 5)])
    resumed = data.open_data(tmp_path / "r", 2, seed=3).read(73, 20)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[73:93]), resumed, rows)


MEMORY = """
import re, shutil, sys
import jax, numpy as np
from jaxwm import data
from jaxwm.data import Episode, recording
from jaxwm.types import Box, Spec

MB, recording.SHARD = 2**20, 2**20
highest = 0

def look():
    global highest
    highest = max(highest, int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)

def episodes(one, count):
    length = MB // (one.size * one.dtype.itemsize)
    for i in range(count):
        obs = np.full((length, *one.shape), i, one.dtype)
        yield Episode(obs, np.zeros(length, np.float32), np.zeros((length, 1), np.float32), True)
        look()

def write_and_read(format, one, count):
    global highest
    highest = 0
    out = f"{sys.argv[1]}/{count}-{format}"
    records = data.append(out, Spec("toy/Large", one, Box(1)), episodes(one, count), None, format)
    source = data.open_data(out, 2)
    for first in range(0, source.rows, 8):
        source.read(first, 8)
        look()
    return records * one.size * one.dtype.itemsize / MB

for format in sys.argv[2:]:
    one = jax.ShapeDtypeStruct(*(((256, 256, 3), np.uint8) if format == "mp4" else ((256, 192), np.float32)))
    write_and_read(format, one, 16)  # what libraries, and films that are open, need for themselves
    before = highest
    print(format, write_and_read(format, one, 60), highest - before)
"""


@pytest.mark.parametrize("formats", [("npy", "minari"), pytest.param(("lerobot", "mp4"), marks=pytest.mark.slow)])
def test_a_recording_may_be_larger_than_memory(formats, tmp_path):
    """With shards of 1 MB, 56 MB and more are written and read, and memory grows by a fraction of that."""
    words = [sys.executable, "-c", MEMORY, str(tmp_path), *formats]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    found = {format: (float(size), float(peak)) for format, size, peak in map(str.split, run.stdout.splitlines())}
    assert tuple(found) == formats
    for format, (size, peak) in found.items():
        assert size >= 55 and peak < size / 2, (format, size, peak)


# --- Bad input ----------------------------------------------------------------------------------------------------


def cut(file: Path, share: float = 0.5) -> None:
    """Keep the beginning of a file only."""
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


def change(file: Path, **entries) -> None:
    """Replace entries of a file of JSON; None takes one away."""
    whole = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({name: x for name, x in whole.items() if x is not None}))


def front(file: Path) -> None:
    """A film whose table of contents comes first, and which is cut short."""
    import av

    with av.open(str(file), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 32
        for image in np.random.default_rng(0).integers(255, size=(40, 32, 32, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    cut(file, 0.8)


META = Path("data/metadata.json")
TABLE, LISTED = (Path(f"{x}/chunk-000/file-000.parquet") for x in ("data", "meta/episodes"))
CAMERA = Path("videos/observation.images.camera/chunk-000/file-000.mp4")
HARM = [
    ("minari", lambda r: cut(r / "data" / "main_data.hdf5"), "main_data.hdf5 is damaged"),
    ("minari", lambda r: (r / "data" / "main_data.hdf5").unlink(), "main_data.hdf5 is missing"),
    ("minari", lambda r: (r / META).write_text("{"), "metadata.json is damaged"),
    ("minari", lambda r: change(r / META, action_space=None), "no entry 'action_space'"),
    ("minari", lambda r: change(r / META, total_episodes=9), "main_data.hdf5 is damaged"),
    ("lerobot", lambda r: cut(r / TABLE), "file-000.parquet is damaged"),
    ("lerobot", lambda r: cut(r / LISTED), "file-000.parquet is damaged"),
    ("lerobot", lambda r: (r / TABLE).unlink(), "file-000.parquet is missing"),
    ("lerobot", lambda r: (r / LISTED).unlink(), "holds no episodes"),
    ("lerobot", lambda r: cut(r / CAMERA), "file-000.mp4 cannot be read as a video"),
    ("lerobot", lambda r: change(r / lerobot.INFO, codebase_version="v2.1"), "version v2.1, and v3.0 is read"),
    ("lerobot", lambda r: (r / lerobot.INFO).write_text("[]"), "info.json is damaged"),
    ("npz", lambda r: cut(r / "000001.npz"), "000001.npz is damaged"),
    ("npz", lambda r: np.savez(r / "000001.npz", reward=np.zeros(3, np.float32)), "has no array 'obs.camera'"),
    ("npz", lambda r: (r / "recording.json").unlink(), "holds no recording: there is no recording.json"),
]


@pytest.mark.parametrize(("format", "harm", "message"), HARM, ids=[f"{x[0]} {x[2]}" for x in HARM])
def test_damage_is_named_in_one_line(format, harm, message, tmp_path, capsys):
    data.append(tmp_path / "r", SPEC, EPISODES, None, format)
    harm(tmp_path / "r")
    refused(["data", "convert", str(tmp_path / "r"), str(tmp_path / "out")], message, tmp_path, capsys)


def refused(words, message, home, capsys):
    """A command says why not in one line, and writes nothing."""
    before = sorted(home.rglob("*"))
    assert main(words) == 2
    told = capsys.readouterr().err
    assert message in told and told.startswith("error: ") and told.count("\n") == 1, told
    assert sorted(home.rglob("*")) == before


FILES = [
    ("a.mp4", lambda f: f.write_bytes(b"no film" * 100), "a.mp4 cannot be read as a video"),
    ("a.mp4", front, "it is cut short"),
    ("a.gif", lambda f: f.write_bytes(b"GIF89a"), "a.gif cannot be read as an image"),
    ("a.png", lambda f: f.write_bytes(b"nothing"), "a.png cannot be read as an image"),
]


@pytest.mark.parametrize(("name", "make", "message"), FILES, ids=[x[2] for x in FILES])
def test_video_that_cannot_be_read(name, make, message, tmp_path, capsys):
    (tmp_path / "films").mkdir()
    make(tmp_path / "films" / name)
    refused(["data", "convert", str(tmp_path / "films"), str(tmp_path / "out")], message, tmp_path, capsys)


def test_frames_of_several_sizes_in_one_episode(tmp_path, capsys):
    for i, size in enumerate((8, 8, 9)):
        Image.new("RGB", (size, size)).save(tmp_path / f"{i}.png")
    refused(
        ["data", "info", str(tmp_path)], "2.png is 9 x 9, and other frames of its episode are 8 x 8", tmp_path, capsys
    )


LEARN = ["train", "dreamer-v3", "--updates", "9", "--run", "{}/run"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "info", "{}/empty"], "empty holds no recording"),
        (["data", "info", "{}/nowhere"], "nowhere holds no recording"),
        (["data", "convert", "{}/r"], "Missing from jaxwm data convert: OUT"),
        (["data", "convert", "{}/r", "{}/full"], "full holds other files"),
        (["data", "convert", "{}/r", "{}/out", "--format", "rlds"], "the format must be one of"),
        (["data", "convert", "{}/r", "{}/out", "--format", "mp4"], "seen as numbers only"),
        (["data", "show", "{}/r", "--out", "{}/sheet.jpg"], "--out must be FOLDER/NAME.png"),
        (["data", "show", "{}/r", "--frames", "0"], "--frames must be a whole number of at least 1"),
        (["data", "look", "{}/r"], "unknown word 'look'"),
        (["data"], "usage: jaxwm data info|convert|show PATH"),
        ([*LEARN, "--data", "{}/empty"], "holds no recording"),
        (
            [
                "train",
                "dreamer-v3",
                "--data",
                "{}/r",
                "--updates",
                "9",
                "--run",
                "{}/run",
                "--env",
                "gymnax/Catch-bsuite",
            ],
            "do not fit gymnax/Catch-bsuite: they hold actions Box(size=2), and it takes Discrete(n=3)",
        ),
        (
            [
                "train",
                "dreamer-v3",
                "--data",
                "{}/r",
                "--updates",
                "9",
                "--run",
                "{}/run",
                "--env",
                "continuous/CartPole",
            ],
            "do not fit",
        ),
        (["train", "dreamer-v3", "--data-option", "image_size=8", "--run", "{}/run"], "say which with --data PATH"),
        (
            ["record", "--env", "gymnax/Catch-bsuite", "--out", "{}/out", "--format", "rlds"],
            "the format must be one of",
        ),
        (["record", "--env", "gymnax/MetaMaze-misc", "--format", "mp4", "--out", "{}/out"], "seen as numbers only"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_is_one_line(words, message, tmp_path, capsys):
    spec = Spec("toy/State", SENSORS["state"], Box(2))
    made = Episode(np.zeros((9, 3), np.float32), np.zeros(9, np.float32), np.zeros((9, 2), np.float32), True)
    data.append(tmp_path / "r", spec, [made])
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    refused([word.format(tmp_path) for word in words], message, tmp_path, capsys)


@pytest.mark.parametrize(("format", "package", "extra"), [("minari", "h5py", "minari"), ("lerobot", "pyarrow", "data")])
def test_a_missing_extra_is_named(format, package, extra, tmp_path, capsys, monkeypatch):
    data.append(tmp_path / "r", SPEC, EPISODES, None, format)
    data.append(tmp_path / "npy", SPEC, EPISODES)
    monkeypatch.setattr(formats, "_is_installed", lambda name: name != package)
    way = f"needs {package}: pip install 'jaxwm[{extra}]'"
    refused(["data", "info", str(tmp_path / "r")], way, tmp_path, capsys)
    convert = ["data", "convert", str(tmp_path / "npy"), str(tmp_path / "out"), "--format", format]
    refused(convert, way, tmp_path, capsys)


def test_films_need_pyav(tmp_path, capsys, monkeypatch):
    video.encode(tmp_path / "a.mp4", [camera(3)])
    monkeypatch.setitem(sys.modules, "av", None)
    refused(["data", "info", str(tmp_path)], "a.mp4 needs av to be read: pip install 'jaxwm[data]'", tmp_path, capsys)


# --- The command line ---------------------------------------------------------------------------------------------


def test_info_show_and_convert(tmp_path, capsys):
    data.append(tmp_path / "r", SPEC, EPISODES, "toy/Camera")
    assert main(["data", "info", str(tmp_path / "r"), "--records", "10"]) == 0
    said = capsys.readouterr().out
    assert "npy, 22 records in 3 episodes of toy/Camera" in said and "length: 3 to 12, mean 7.333" in said
    assert "16 x 32 x 3" in said and "the first 10 records" in said
    words = [str(tmp_path / "r"), str(tmp_path / "small"), "--format", "lerobot", "--data-option", "image_size=16"]
    assert main(["data", "convert", *words]) == 0
    found = data.open_recording(tmp_path / "small")
    assert (found.format, found.env, found.length.tolist()) == ("lerobot", "toy/Camera", list(LENGTHS))
    assert found.spec.obs["camera"].shape == (16, 16, 3)
    assert main(["data", "show", str(tmp_path / "small"), "--episodes", "2", "--frames", "3"]) == 0
    with Image.open(tmp_path / "small.png") as sheet:
        assert min(sheet.size) > 150, "two rows of three pictures"
    assert main(["data", "convert", str(tmp_path / "small"), str(tmp_path / "films"), "--format", "mp4"]) == 0
    assert data.open_recording(tmp_path / "films").spec.obs.shape == (16, 16, 3), "of its camera"
