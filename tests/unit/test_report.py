"""Reports of hand-written run directories: every number in the page can be checked by hand."""

import csv
import dataclasses
import json
import struct
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from jaxwm import agents, cli
from jaxwm.report import charts
from jaxwm.report.charts import Series
from jaxwm.report.curves import binned, learning_curve, learning_curves, metric_curve, panels, reached, words
from jaxwm.report.page import report
from jaxwm.report.statistics import published_runs
from jaxwm.report.story import column, flatten, read
from jaxwm.run import directory
from jaxwm.run.plan import Plan
from jaxwm.run.writer import Writer

EVALUATION = dict(
    env_steps=400, updates=80, seconds=90.0, compile_seconds=30.0, episodes=10, mode="greedy",
    trained=[0.5, 1.0, -0.3], random=[-0.5, -0.6, -0.7], complete=True,
)  # fmt: skip


def write(
    folder: Path, metrics=None, scores=None, evaluation=EVALUATION, env="gymnax/Catch-bsuite", **settings
) -> Path:
    """A run directory of three members over 400 steps; learning starts at 200, with two updates in ten steps."""
    plan = Plan("dreamer-v3", env, agents.settings("dreamer-v3", "nano", **settings), 400, 3, episodes=10)
    directory.create(folder)
    directory.write_config(folder, plan.to_json())
    with Writer(folder) as writer:
        for row in default_metrics() if metrics is None else metrics:
            writer.metrics(row)
        writer.scores(default_scores() if scores is None else scores)
    if evaluation:
        (folder / directory.EVALUATION).write_text(json.dumps(evaluation))
    return folder


def default_metrics() -> list[dict]:
    rows = [{"env_steps": 100, "updates": 0, "seconds": 31.0, "return": [None] * 3}]
    for steps in (200, 300, 400):
        row = {"env_steps": steps, "updates": steps // 5, "seconds": 31.0 + steps / 20, "return": [0.0, None, 1.0]}
        rows.append(row | {"loss": [100.0 / steps, 2.0, 4.0], "loss/rec": [1.0, 2.0, 3.0], "grad_norm": [5.0] * 3})
    return rows


def default_scores() -> list[dict]:
    return [
        {"member": m, "env_steps": steps, "return": m + steps / 100, "length": 9}
        for steps in range(20, 401, 20)
        for m in range(3)
    ]


def text_of(paths, out) -> str:
    """The page, after checking that every picture it shows is there and whole, and inside the HTML file."""
    page = report(paths, out)
    text = page.with_suffix(".md").read_text()
    check_html(page, text)
    for name in [part.split(")")[0] for part in text.split("](")[1:]]:
        if name.endswith(".png"):
            data = (page.parent / name.replace("%20", " ")).read_bytes()
            assert data[:8] == b"\x89PNG\r\n\x1a\n" and min(struct.unpack(">II", data[16:24])) > 200
            Image.open(page.parent / name.replace("%20", " ")).load()
    return text


class Tags(HTMLParser):
    """Counts tags, and collects what pictures and links point to."""

    def __init__(self):
        super().__init__()
        self.count, self.open, self.sources = Counter(), [], []

    def handle_starttag(self, tag, attrs):
        self.count[tag] += 1
        if tag not in ("img", "meta"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_html(page: Path, text: str) -> None:
    """It is well-formed, has all tables, headings and pictures of the Markdown, and needs no other file."""
    tags = Tags()
    tags.feed(page.read_text())
    assert tags.open == [] and tags.count["style"] == 1 and not tags.count["script"] + tags.count["link"]
    assert tags.count["table"] == text.count("\n| ---") and tags.count["img"] == text.count("![")
    assert tags.count["h2"] == text.count("\n## ")
    outside = [source for source in tags.sources if not source.startswith(("#", "data:image/"))]
    assert set(outside) <= {"scores.csv"}


def row_of(text: str, start: str) -> list[str]:
    """The cells of the first table row that starts like this."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows_after(text: str, heading: str) -> str:
    return text.split(heading, 1)[1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[str, Path]:
    """A report of two runs that differ in their learning rate and random start."""
    root = tmp_path_factory.mktemp("pair")
    write(root / "a")
    write(root / "b", lr=3e-3, prefill=128, evaluation=EVALUATION | {"trained": [0.0, 0.25, 0.5], "random": [-0.6] * 3})
    return text_of([root], root / "out"), root / "out"


def test_evaluation_is_a_table_with_means_and_minima(pair):
    part = rows_after(pair[0], "### Evaluation")
    assert row_of(part, "a") == ["a", "400", "10", "0.50 1.00 -0.30", "0.40", "-0.30", "-0.60"]
    assert row_of(part, "b") == ["b", "400", "10", "0.00 0.25 0.50", "0.25", "0.00", "-0.60"]


def test_how_soon_runs_are_good(pair):
    """Random -0.6, best 0.4: the mark is 0.3. Returns are m + steps / 100, points in the middle of 20 steps."""
    after = rows_after(pair[0], "### Steps to the mark")
    assert row_of(after, "a")[1:] == row_of(after, "b")[1:] == ["50 30 30", "30", "50"]
    assert "a training return of 0.30, 90% of the way" in after
    curve = Series("", 0, np.array([1.0, 2, 3]), np.array([[np.nan, 0, 5], [1, 2, np.nan], [4, 0, 0]]))
    assert reached(curve, 1.5).tolist() == [3, 2, 1] and reached(curve, 4.5).tolist() == [np.inf, np.inf, 1]


def test_only_differing_settings_are_side_by_side(pair):
    table, common = rows_after(pair[0], "## Settings").split("<details>")
    assert row_of(table, "`settings.lr`") == ["`settings.lr`", "`0.01`", "`0.003`"]
    assert row_of(table, "`settings.prefill`") == ["`settings.prefill`", "`256`", "`128`"]
    assert table.count("`settings.") == 2
    assert row_of(common, "`settings.deter`") == ["`settings.deter`", "`32`"]
    assert "`settings.lr`" not in common


def test_throughput_counts_learning_only(pair):
    """From 200 to 400 steps in 10 seconds, 40 updates, three members."""
    row = row_of(rows_after(pair[0], "## Throughput"), "a")
    assert row == ["a", "60.0", "12.0", "1.5 min", "30.0 s", "80"]


def test_the_figures_are_there(pair):
    names = {file.name for file in pair[1].iterdir()}
    assert names == {"report.md", "report.html"} | {
        f"{kind}-gymnax-Catch-bsuite.png" for kind in ("returns", "losses", "other-metrics")
    }  # fmt: skip
    assert "Not recorded in a, b: no `gauge/dreamed`" in pair[0]


def test_commands_make_the_same_run(pair):
    prefix, suffix = "train dreamer-v3 --env gymnax/Catch-bsuite", "--steps 400 --members 3 --seed 0 --episodes 10"
    lines = [line.split(" ", 1)[-1] for line in pair[0].splitlines()]
    assert f"{prefix} {suffix}" in lines and f"{prefix} --prefill 128 --lr 0.003 {suffix}" in lines


def test_other_versions_settings_have_no_command(tmp_path):
    folder = write(tmp_path / "old")
    config = directory.read_config(folder)
    config["settings"]["gone"] = 1
    directory.write_config(folder, config)
    assert "old: no command, because unknown entry 'settings.gone'" in text_of([folder], None)


def test_one_run_is_reported_inside_itself(tmp_path):
    folder = write(tmp_path / "single")
    text = text_of([folder], None)
    assert (folder / "report" / "report.md").exists() and text.startswith("# Report: single")
    assert "<summary>All settings (" in text and "| **unfinished** |" not in text
    assert text_of([folder], None).splitlines()[3:] == text.splitlines()[3:]  # again, over the old one


def test_an_unfinished_run_says_so_and_how_to_go_on(tmp_path):
    folder = write(tmp_path / "stopped", metrics=default_metrics()[:3], evaluation=None)
    text = text_of([folder], None)
    assert row_of(text, "stopped")[-2:] == ["400 of 400 environment steps", "**unfinished**"]  # its scores reach to 400
    assert f"jaxwm resume {folder}`" in text and "stopped is not evaluated yet." in text
    assert row_of(rows_after(text, "## Throughput"), "stopped")[3:] == ["46.0 s", "-", "60"]


def test_a_run_that_has_only_started(tmp_path):
    text = text_of([write(tmp_path / "new", metrics=[], scores=[], evaluation=None)], None)
    assert row_of(text, "new")[-2:] == ["0 of 400 environment steps", "**unfinished**"]
    assert "has no metrics yet" in text and "has no scores yet" in text and "None recorded yet." in text
    (tmp_path / "new" / "metrics.jsonl").unlink()
    assert "has no metrics yet" in text_of([tmp_path / "new"], None)


def test_null_entries_are_gaps_and_are_named(tmp_path):
    rows = default_metrics()
    rows[2]["loss/rec"], rows[3]["loss/rec"] = [1.0, None, 3.0], [None, None, None]
    folder = write(tmp_path / "nan", metrics=rows)
    text = text_of([folder], None)
    assert "`loss/rec` of member 1 is null (NaN or infinite) in 2 of 3 rows, first at 300 environment steps" in text
    steps, values = column(read([folder])[0], "loss/rec")
    assert steps.tolist() == [200, 300, 400]
    np.testing.assert_array_equal(np.isnan(values), [[0, 0, 0], [0, 1, 0], [1, 1, 1]])


def test_episodes_cut_off_in_the_evaluation_are_named(tmp_path):
    text = text_of([write(tmp_path / "cut", evaluation=EVALUATION | {"complete": False})], None)
    assert "cut off by the step limit" in text


def test_binned_means():
    steps, values = np.array([0.0, 5, 10, 40]), np.array([[1.0, 0], [3, np.nan], [5, np.nan], [7, 8]])
    centres, means = binned(steps, values, np.array([0.0, 10, 20, 30, 40]))
    assert centres.tolist() == [5, 15, 35]  # nothing between 20 and 30; 40 belongs to the last bin
    np.testing.assert_array_equal(means, [[2, 0], [5, np.nan], [7, 8]])


def write_scores(folder: Path, scores) -> Path:
    fields = ("member", "env_steps", "return", "length")
    return write(folder, scores=[dict(zip(fields, (*score, 9), strict=True)) for score in scores])


def test_a_learning_curve_has_gaps_where_a_member_has_no_episode(tmp_path):
    folder = write_scores(tmp_path / "r", [(0, 5, 1.0), (0, 8, 3.0), (0, 35, 6.0), (1, 15, 2.0), (1, 25, None)])
    curve = learning_curve(read([folder])[0], np.array([0.0, 10, 20, 30, 40]))
    nan = np.nan
    np.testing.assert_allclose(curve.values.T, [[2, nan, nan, 6], [nan, 2, nan, nan], [nan] * 4])


def test_rare_episodes_make_fewer_points(tmp_path):
    """Members end an episode every 100 of 400 steps, at other times: with four points there is no gap."""
    scores = [(m, steps + 30 * m, 1.0) for m in range(3) for steps in range(5, 400, 100)]
    (curve,) = learning_curves(read([write_scores(tmp_path / "r", scores)]))
    assert len(curve.steps) == 4 and np.isfinite(curve.values).all()
    (curve,) = learning_curves(read([write(tmp_path / "often")]))
    assert len(curve.steps) == 20


def drawn(axes) -> dict[str, np.ndarray]:
    """The mean (the thickest line) of each colour, as points that are there."""
    lines = [line for line in axes.lines if line.get_linewidth() > 2]
    return {line.get_color(): np.column_stack([line.get_xdata(), line.get_ydata()]) for line in lines}


def test_means_are_drawn_where_all_members_have_data_only():
    values = np.array([[1.0, 3.0], [np.nan, 5.0], [3.0, 5.0]])
    figure = charts.returns("", [Series("a", 0, np.array([10.0, 20, 30]), values)], [], None)
    (axes,) = figure.axes
    (mean,) = drawn(axes).values()
    np.testing.assert_array_equal(mean[:, 1], [2, np.nan, 4])
    assert axes.get_xlim()[0] == 0
    (gap,) = [patch for patch in axes.patches if tuple(patch.get_facecolor()) == to_rgba(charts.GAP)]
    assert (gap.get_x(), gap.get_width()) == (15, 10)
    assert "not every member has an episode here" in [text.get_text() for text in figure.legends[0].texts]


def test_panels_have_words_and_equal_metrics_share_one(tmp_path):
    rows = [row | {"loss/dyn": row["loss"], "loss/rep": row["loss"], "odd": [1.0] * 3} for row in default_metrics()[1:]]
    story = read([write(tmp_path / "r", metrics=rows)])
    found = panels(story, ["loss/rec", "loss/dyn", "loss/rep", "odd", "grad_norm", "missing"])
    assert [panel.title for panel in found] == [
        "reconstruction loss", "dynamics loss = representation loss", "odd", "gradient norm",
    ]  # fmt: skip
    assert [panel.note for panel in found][:3] == ["lower is better", "lower is better", ""]
    assert words("model/loss") == ("model: total loss", "lower is better")
    assert words("loss/rec/image") == ("reconstruction loss: image", "lower is better")


def test_the_gauge_is_not_squeezed_by_its_first_point():
    steps = np.arange(20.0)
    values = np.where(steps == 0, -15.0, 1 + steps / 20)[:, None]
    (left, right) = charts.gauge([[Series("a long name", 0, steps, values)] * 3]).axes
    assert left.get_ylim()[0] > 0 and right.get_ylim()[0] > 0
    assert "first points from -15 to" in left.texts[0].get_text() and right.get_title() == ""


def test_a_greedy_policy_that_is_worse_is_explained(tmp_path):
    """The last training returns are about 4 to 6."""
    far = write(tmp_path / "far", evaluation=EVALUATION | {"trained": [-5.0] * 3})
    text = text_of([far], None)
    assert "**far**: the greedy policy (-5.00) is below the last training returns (4." in text
    assert "and random play (-0.60)" in text and f"jaxwm eval {far} --mode explore" in text
    one = write(tmp_path / "one", evaluation=EVALUATION | {"trained": [9.0, 5.0, -2.0]})
    assert "- **one**: below random play (-0.60): member 2." in text_of([one], None)
    good = write(tmp_path / "good", evaluation=EVALUATION | {"trained": [5.0] * 3})
    assert "the greedy policy" not in rows_after(text_of([good], None), "### Evaluation")


def test_gauge_and_skipped_updates(tmp_path):
    rows = default_metrics()
    for i, row in enumerate(rows[1:]):
        row |= {"gauge/dreamed": [1.0, 2.0 + i, 3.0], "gauge/real": [0.5, 1.0, None], "gauge/gap": [0.5, 1.0 + i, None]}
        row["skipped"] = [0, 20 * (i + 1), 4]  # so far
    text = text_of([write(tmp_path / "g", metrics=rows), write(tmp_path / "old")], tmp_path / "out")
    assert "Not recorded in old" in text and "![Dreamed and real return from the same states](gauge.png)" in text
    table = rows_after(text, "gauge.png").splitlines()
    assert "| g | 400 | 1 | 4.00 | 1.00 | 3.00 |" in table and "| g | 400 | 2 | 3.00 | - | - |" in table
    assert row_of(rows_after(text, "## Throughput"), "g")[-1] == "0 60 4"
    assert row_of(rows_after(text, "## Throughput"), "old")[-1] == "-"


def test_dreams_are_copied_and_shown(tmp_path):
    folder = write(tmp_path / "d")
    (folder / "dreams").mkdir()
    Image.new("RGB", (300, 300)).save(folder / "dreams" / "open loop.png")
    Image.new("RGB", (4, 4)).save(folder / "dreams" / "film.gif")
    (folder / "dreams" / "errors.csv").touch()
    Image.new("RGB", (4, 4)).save(folder / "watch.gif")
    Image.new("RGB", (300, 300)).save(folder / "dreams" / "error.png")
    (folder / "dreams" / "dreams.json").write_text('{"verdict": ["a dream is better at all 9 steps"]}')
    text = text_of([folder], tmp_path / "out")
    assert "![film.gif](dreams/d/film.gif)" in text and "(dreams/d/open%20loop.png)" in text and "csv" not in text
    assert (tmp_path / "out" / "dreams" / "d" / "film.gif").exists()
    part = rows_after(text, "## Dreams and videos")
    assert "### How far dreams can be trusted" in part and "- a dream is better at all 9 steps" in part
    assert part.index("### How far") < part.index("### The policy at play") < part.index("### film.gif")


def test_a_directory_of_runs_is_expanded_and_every_environment_has_its_section(tmp_path):
    write(tmp_path / "sweep" / "catch" / "s0")
    write(tmp_path / "sweep" / "catch" / "s1")
    write(tmp_path / "sweep" / "recall", env="probe/Recall")
    text = text_of([tmp_path / "sweep", tmp_path / "sweep" / "recall"], tmp_path / "out")
    assert text.startswith("# Report: 3 runs")
    assert [row_of(text, name)[2] for name in ("catch/s0", "catch/s1", "recall")] == [
        "gymnax/Catch-bsuite", "gymnax/Catch-bsuite", "probe/Recall",
    ]  # fmt: skip
    assert "## gymnax/Catch-bsuite" in text and "## probe/Recall" in text
    assert "(returns-probe-Recall.png)" in text


def test_many_runs_have_a_look_of_their_own(tmp_path):
    for i in range(9):
        write(tmp_path / "many" / f"run|{i}")
    text = text_of([tmp_path / "many"], tmp_path / "out")
    assert "\n| run\\|0 | dreamer-v3 | gymnax/Catch-bsuite | 3 |" in text  # the bar is escaped
    assert "The runs have the same settings." in text


def test_several_runs_go_to_a_directory_of_their_own(tmp_path, monkeypatch, capsys):
    write(tmp_path / "runs" / "a"), write(tmp_path / "runs" / "b")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "runs"]) == 0
    (folder,) = (tmp_path / "runs").glob("report-*")
    assert (folder / "report.md").exists() and (folder / "report.html").exists()
    out = capsys.readouterr().out
    assert out.startswith(f"runs/{folder.name}/report.html\n") and f"open it in a browser: {folder.as_uri()}" in out
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert report(["elsewhere/a", "elsewhere/b"]).parent.parent == Path()


def test_a_run_that_never_learned_is_shown_next_to_one_that_did(tmp_path):
    """It has no losses: its curves are left out, not its scores."""
    learned, idle = write(tmp_path / "learned"), write(tmp_path / "idle", metrics=default_metrics()[:1])
    text = text_of([learned, idle], tmp_path / "report")
    assert "idle" in text and "losses-gymnax-Catch-bsuite.png" in text


def test_flatten():
    nested = {"a": 1, "b": {"c": [1], "d": {"e": None}}, "f": {}}
    assert flatten(nested) == {"a": 1, "b.c": [1], "b.d.e": None, "f": {}}


def test_scalar_metrics_have_one_column(tmp_path):
    rows = [row | {"temperature": 0.5} for row in default_metrics()]
    story = read([write(tmp_path / "r", metrics=rows)])[0]
    assert column(story, "temperature")[1].tolist() == [[0.5]] * 4
    assert dataclasses.asdict(Plan.from_json(story.config))["members"] == 3


def damage(folder: Path, what: str) -> None:
    file = folder / what
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{broken", *lines[1:]]) + "\n")


def test_errors_are_one_line_that_names_the_way_out(tmp_path, capsys):
    def message(*arguments):
        assert cli.main(["report", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.strip().splitlines()) == 1
        return error

    assert "which runs? jaxwm report RUN..." in message()
    assert "no run directory and contains none" in message(tmp_path / "nothing")
    assert "no run directory and contains none" in message(tmp_path)
    write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c"), write(tmp_path / "d")
    (tmp_path / "file").touch()
    assert "choose another directory with --out" in message(tmp_path / "a", "--out", tmp_path / "file")
    assert "choose another directory with --out" in message(tmp_path / "a", "--out", tmp_path / "file" / "below")
    damage(tmp_path / "a", "scores.jsonl")
    error = message(tmp_path / "a")
    assert "scores.jsonl, line 2 is damaged" in error and "delete that line, or leave this run out" in error
    (tmp_path / "b" / directory.EVALUATION).write_text("{")
    assert "evaluation.json is damaged" in message(tmp_path / "b")
    (tmp_path / "c" / directory.CONFIG).write_text('{"agent": "x"}')
    assert "has no entry 'env'" in message(tmp_path / "c")
    with open(tmp_path / "d" / "metrics.jsonl", "a") as file:
        file.write('{"env_steps": 5')  # as a running program leaves it
    assert cli.main(["report", str(tmp_path / "d")]) == 0


# --- All tasks ----------------------------------------------------------------------------------------------------


def evaluated(scores, chance=0.0) -> dict:
    return EVALUATION | dict(trained=list(scores), random=[chance] * len(scores), episodes=100, env_steps=100_000)


def test_atari_runs_are_normalised_next_to_the_published(tmp_path):
    """Runs with DIAMOND's scores of three games get the statistics of DIAMOND's column, and half of it is better."""
    games = ("Pong", "Boxing", "Qbert")
    for game in games:
        write(tmp_path / "runs" / game, env=f"atari/{game}", evaluation=evaluated(published_runs()["diamond"][game]))
    text = text_of([tmp_path / "runs"], tmp_path / "out")
    assert "over 3 of the 26 games" in text and "repeated with probability 0 (sticky actions)" in text
    ours, theirs = row_of(text, "dreamer-v3"), row_of(text, "diamond (published)")
    assert ours[1:] == theirs[1:] and row_of(text, "simulus (published)")[1:] != theirs[1:]
    expected = np.mean([(20.4 + 20.7) / 35.3, (86.9 - 0.1) / 12.0, (4499.3 - 163.9) / (13455.0 - 163.9)])
    assert float(ours[1].split()[0]) == pytest.approx(expected, abs=0.005)
    assert "| dreamer-v3 | diamond (published) | 0.500" in text
    for name in ("aggregates", "profiles", "games"):
        assert f"({name}.png)" in text
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").read_text().splitlines()))
    assert len(rows) == 15 and {row["task"] for row in rows} == {f"atari/{game}" for game in games}
    assert float(rows[0]["human_normalised"]) == pytest.approx((float(rows[0]["score"]) - 0.1) / 12.0)


def test_systems_are_told_apart_by_the_settings_that_differ(tmp_path):
    for lr in (1e-3, 1e-2):
        for env in ("gymnax/Catch-bsuite", "probe/Recall"):
            write(tmp_path / "runs" / f"{env[-3:]}{lr}", env=env, lr=lr, evaluation=evaluated([lr, 1.0], -1.0))
    text = text_of([tmp_path / "runs"], tmp_path / "out")
    assert "| probe/Recall | dreamer-v3, lr 0.01 | 2 | 100,000 | 0.51 | 0.01 to 1.00 | -1.00 |" in text
    assert "(tasks.png)" in text and "the best member" in text and "uman-normalised" not in text


def test_members_with_their_own_hyperparameters_are_told_apart(tmp_path):
    """Three members with two learning rates are two systems, of two seeds and of one; the command is one."""
    counted = {"trained": [4.0, 5.0, 6.0], "random": [2.0, 2.5, 3.0]}  # by the environment
    named = {"scores": {"squared error": {"trained": [0.5, 0.25, 0.125]}, "achievements": counted}}
    folder = write(tmp_path / "rates", evaluation=evaluated([1.0, 3.0, 5.0], -1.0) | named)
    config = json.loads((folder / directory.CONFIG).read_text()) | {"vary": {"lr": [0.1, 0.1, 0.2]}}
    (folder / directory.CONFIG).write_text(json.dumps(config))
    one, two = read([folder])
    assert (one.label, two.label) == ("rates lr 0.1", "rates lr 0.2")
    assert (one.evaluation["trained"], two.evaluation["trained"]) == ([1.0, 3.0], [5.0])
    assert ({row["member"] for row in one.scores}, {row["member"] for row in two.scores}) == ({0, 1}, {0})
    assert two.scores[0]["return"] == 2.2, "that of member 2"
    assert one.metrics[-1]["loss"] == [0.25, 2.0] and two.metrics[-1]["loss"] == [4.0]
    text = text_of([folder], tmp_path / "out")
    assert text.count("jaxwm train dreamer-v3") == 1 and "--vary lr=0.1,0.1,0.2" in text
    assert "| rates lr 0.1 | 100,000 | 100 | 1.00 3.00 | 2.00 | 1.00 | -1.00 |" in text
    assert "| rates lr 0.1 | squared error | 80 | 0.5 0.25 | 0.375 |" in text
    assert "| rates lr 0.1 | achievements | 80 | 4 5 | 4.5 | 2.25 |" in text
    assert "| rates lr 0.2 | squared error | 80 | 0.125 | 0.125 |" in text


def test_a_run_on_recordings_counts_updates(tmp_path):
    """Its tables, notes and axes say so; what it learned from is no environment that it stepped."""
    rows = [{"updates": n, "seconds": 31.0 + n, "loss": [n, None, 1.0], "return": [None] * 3} for n in (40, 80)]
    result = {key: value for key, value in EVALUATION.items() if key != "env_steps"}
    folder = write(tmp_path / "offline", metrics=rows, scores=[], evaluation=result)
    config = json.loads((folder / directory.CONFIG).read_text()) | {"data": "catch", "steps": None, "updates": 80}
    (folder / directory.CONFIG).write_text(json.dumps(config))
    text = text_of([folder], tmp_path / "out")
    assert "80 of 80 updates" in text and "no scores yet" not in text.lower()
    assert "| run | updates | episodes per member |" in text and "first at 40 updates." in text
    assert "environment steps" not in text
    story = read([folder])[0]
    curve = metric_curve(story, "loss")
    assert curve.unit == "updates"
    (axes,) = charts.returns("", [], [curve._replace(steps=np.array([80]), values=np.ones((1, 3)))], None).axes
    assert axes.get_xlabel() == "updates per member"


def test_games_that_are_not_finished_are_left_out_of_the_statistics(tmp_path):
    write(tmp_path / "runs" / "a", env="atari/Pong", evaluation=evaluated([1.0, 2.0]))
    write(tmp_path / "runs" / "b", env="atari/Boxing", evaluation=evaluated([1.0, 2.0]))
    write(tmp_path / "runs" / "c", env="atari/Boxing", units=64, evaluation=evaluated([1.0, 2.0]))
    text = text_of([tmp_path / "runs"], tmp_path / "out")
    assert "because not all games are finished" in text


def test_different_environment_options_are_named(tmp_path):
    for game, options in (("Pong", {}), ("Boxing", {"sticky": 0.25})):
        folder = write(tmp_path / "runs" / game, env=f"atari/{game}", evaluation=evaluated([1.0, 2.0]))
        config = json.loads((folder / directory.CONFIG).read_text())
        (folder / directory.CONFIG).write_text(json.dumps(config | {"env_options": options}))
    assert "do not compare" in text_of([tmp_path / "runs"], tmp_path / "out")
