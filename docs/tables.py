"""Print the tables of README.md and docs/ from results/*.json.

    python -m docs.tables            # rewrite every block between <!-- table: NAME --> and <!-- /table -->
    python -m docs.tables --check    # exit 1 and name each file with a block that is out of date

Each results file is one measured row; `FIELDS` lists what it holds. Numbers are printed with the decimals of the file.
Rows that were copied from an older README instead of measured again carry a dagger.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent

FIELDS = {
    "name": "the name of the file",
    "table": "the table to which it belongs, one of TABLES",
    "system": "a system, or null where none is involved",
    "environment": "SUITE/TASK",
    "preset": "the preset of the system",
    "command": "what was run",
    "metric": "what `score` counts; a return is the mean over episodes",
    "goal": "the score that the worst seed must reach, or `3x random`",
    "scores": "one per seed",
    "score": "the worst seed",
    "random": "the score of a random policy in the same evaluation",
    "steps": "environment steps of each member",
    "updates": "updates of each member",
    "wall": "wall time in words, compiling and evaluation included",
    "seeds": "number of seeds",
    "episodes": "evaluation episodes of each seed",
    "date": "YYYY-MM-DD",
    "device": "what it ran on",
    "versions": "of libraries",
    "source": "the commit that was measured, or `README at COMMIT` for a transcribed row",
    "note": "anything a reader must know",
    "more": "further numbers, by name",
}
"""Every results file has exactly these; what is unknown is null."""

Row = dict[str, Any]
Cell = Callable[[Row], str]


class Table(NamedTuple):
    """Rows of the tables `of`, and for each column its title and the cell of a row."""

    of: tuple[str, ...]
    columns: dict[str, Cell]


class System(NamedTuple):
    """A row of README's table of systems; `task` is the environment whose best score is shown."""

    title: str
    observations: str
    actions: str
    task: str


SEEN, DONE = "images, vectors, planes", "discrete (masked), continuous, mixed"
SYSTEMS = {
    "dyna-q": System("Dyna-Q", "one-hot states", "discrete", "tabular/Taxi"),
    "world-models": System("World Models", "images", "discrete, continuous", "vizdoom/TakeCover"),
    "pets": System("PETS", "vectors", "continuous", "continuous/CartPole"),
    "planet": System("PlaNet", "images, vectors", "continuous", "dmc/CartpoleSwingup"),
    "dreamer-v1": System("Dreamer V1", SEEN, DONE, "gymnax/Pendulum-v1"),
    "dreamer-v2": System("Dreamer V2", SEEN, DONE, "minatar/Breakout"),
    "dreamer-v3": System("Dreamer V3", SEEN, DONE, "minatar/Breakout"),
    "iris": System("IRIS", "images, planes", "discrete, continuous", "minatar/Breakout"),
    "token-dyna": System("Token Dyna", "images, planes", "discrete, continuous", "minatar/Breakout"),
    "diamond": System("DIAMOND", "images, planes", "discrete, continuous", "gymnax/Catch-bsuite"),
    "genie": System("Genie", "images, planes (video)", "discrete, latent", "probe/Square"),
    "storm": System("STORM", "images, vectors, planes", "discrete, continuous", "minatar/Breakout"),
    "mbpo": System("MBPO", "vectors", "continuous", "mujoco/InvertedPendulum-v4"),
    "grbal": System("GrBAL", "vectors", "continuous", "continuous/Pendulum"),
    "mb-mpo": System("MB-MPO", "vectors", "continuous", "continuous/Pendulum"),
    "tdmpc2": System("TD-MPC2", "images, vectors, planes", "continuous", "gymnax/Pendulum-v1"),
    "simple": System("SimPLe", "images, planes", "discrete", "gymnax/Catch-bsuite"),
    "alphazero": System("AlphaZero", "boards", "discrete, masked", "pgx/ConnectFour"),
    "muzero": System("MuZero", "images, vectors, planes", "discrete, continuous", "gymnax/CartPole-v1"),
    "efficientzero": System("EfficientZero", "images, vectors, planes", "discrete, continuous", "gymnax/Catch-bsuite"),
    "sac": System("Soft actor-critic (baseline)", "vectors", "continuous", "gymnax/Pendulum-v1"),
    "ppo": System("PPO (baseline)", "images, vectors, planes", "discrete, continuous", "gymnax/CartPole-v1"),
}

DAGGER = "†"


def number(value: Any) -> str:
    """A number as written in the file, cut to two decimals; nothing for null."""
    if isinstance(value, Decimal) and -value.as_tuple().exponent > 2:  # type: ignore[operator]
        value = round(value, 2)
    return "" if value is None else str(value)


def count(value: int | None) -> str:
    """A whole number with thousands separated."""
    return "" if value is None else f"{value:,}"


def field(name: str) -> Cell:
    """The cell that shows a field, or an entry of `more`."""
    return lambda row: number(row[name] if name in row else row["more"][name])


def counted(name: str) -> Cell:
    """The same for a count."""
    return lambda row: count(row[name] if name in row else row["more"][name])


def score(row: Row) -> str:
    """`**worst** (all seeds)`."""
    every = f" ({' '.join(map(number, row['scores']))})" if row["scores"] and len(row["scores"]) > 1 else ""
    return f"**{number(row['score'])}**{every}"


def system(row: Row) -> str:
    return SYSTEMS[row["system"]].title


def date(row: Row) -> str:
    """The date, with a dagger where the row was transcribed."""
    return f"{row['date'] or ''} {DAGGER if transcribed(row) else ''}".strip()


def transcribed(row: Row) -> bool:
    return row["source"].startswith("README at ")


def mean(name: str) -> Cell:
    """Mean and deviation of temperatures."""
    return lambda row: f"{number(row['more'][name + '_mean'])} ± {number(row['more'][name + '_deviation'])}"


def ratio(name: str) -> Cell:
    """A ratio with its spread."""

    def cell(row: Row) -> str:
        low, high = row["more"][f"{name}_range"]
        return f"**{number(row['more'][name])}** ({number(low)} to {number(high)})"

    return cell


def reached(row: Row) -> str:
    steps = count(row["more"]["steps_without_planning"])
    return steps if row["more"]["reached_without_planning"] else f"not in {steps}"


def needed(row: Row) -> str:
    """Steps of each member until it reached the goal."""
    return " ".join("-" if steps is None else count(steps) for steps in row["more"]["steps_to_goal"])


def horizons(name: str) -> Cell:
    """Shares of wrong cells after a few dreamed steps, in percent."""
    return lambda row: " ".join(f"{100 * share:.2f}" for share in row["more"][name])


def between(row: Row) -> str:
    return "" if row["more"]["range"] is None else " to ".join(map(count, row["more"]["range"]))


def record(row: Row) -> str:
    path = Path(row["more"]["record"])
    return f"`{path.name}`"


RETURN = {
    "environment": field("environment"),
    "goal": field("goal"),
    "worst seed (all)": score,
    "random": field("random"),
    "steps": counted("steps"),
    "updates": counted("updates"),
    "episodes": field("episodes"),
    "wall time": field("wall"),
    "date": date,
}
BRIEF = {title: RETURN[title] for title in ("environment", "worst seed (all)", "random", "steps", "date")}
MEASURED = ("dreamer-v3", "lineage", "search", "minatar", "sequence", "policy")
"""Tables of trained systems with returns of several seeds."""

TABLES = {
    "dreamer-v3": Table(("dreamer-v3",), RETURN),
    "lineage": Table(("lineage",), {"system": system} | RETURN),
    "search": Table(("search",), {"system": system} | RETURN),
    "sequence": Table(("sequence",), {"system": system} | RETURN | {"note": field("note")}),
    "policy": Table(("policy",), {"system": system} | RETURN | {"note": field("note")}),
    "mbpo-baselines": Table(
        ("mbpo-baselines",),
        {title: RETURN[title] for title in ("environment", "worst seed (all)", "random")} | {"run": field("note")}
        | {"steps": counted("steps"), "steps until the goal": needed, "wall time": field("wall"), "date": date},
    ),
    "minatar": Table(("minatar",), RETURN | {"note": field("note")}),
    "dreamer-v3-variants": Table(("dreamer-v3-variants",), BRIEF | {"what differs": field("note")}),
    "offline": Table(
        ("offline",),
        {"run": field("note"), "goal": field("goal"), "worst seed (all)": score, "random": field("random")}
        | {"updates": counted("updates"), "steps": counted("steps"), "wall time": field("wall"), "date": date},
    ),
    "gpu": Table(("gpu",), RETURN | {"device": field("device"), "note": field("note")}),
    "atari-pilot": Table(("atari-pilot",), BRIEF | {"episodes": field("episodes"), "wall time": field("wall")}),
    "pets-baselines": Table(
        ("pets-baselines",),
        {"environment": field("environment")}
        | {name: field(name) for name in ("ensemble", "single", "untrained", "random")}
        | {"date": date},
    ),
    "planet-untrained": Table(
        ("planet-untrained",),
        {name: field(name) for name in ("environment", "trained", "untrained", "random")} | {"date": date},
    ),
    "temperature": Table(
        ("temperature",),
        {"temperature": field("temperature"), "in dreams": mean("dream"), "in the game": mean("real"), "date": date},
    ),
    "dyna-maze": Table(
        ("dyna-maze",), {"planning updates per step": field("planning"), "episode": field("score"), "date": date}
    ),
    "dyna-change": Table(
        ("dyna-change",),
        {"environment": field("environment"), "Dyna-Q+": field("dyna_q_plus"), "Dyna-Q": field("dyna_q"), "date": date},
    ),
    "dyna-steps": Table(
        ("dyna-steps",),
        {"environment": field("environment"), "goal": field("goal"), "steps": counted("steps")}
        | {"without planning": reached, "date": date},
    ),
    "efficientzero-ablation": Table(
        ("efficientzero-ablation",),
        {"variant": field("variant"), "steps of each seed": needed, "median": counted("median")}
        | {"slowest": counted("last"), "worst evaluation": field("score"), "random": field("random"), "date": date},
    ),
    "efficientzero-ablation-ratio": Table(
        ("efficientzero-ablation-ratio",),
        {"variant": field("variant"), "slowest of three seeds": counted("last"), "date": date},
    ),
    "efficientzero-ablation-cartpole": Table(("efficientzero-ablation-cartpole",), {"system": system} | BRIEF),
    "breakout-comparison": Table(
        ("breakout-comparison",),
        {"system": system, "compared at": field("compared_at")}
        | {title: cell for title, cell in BRIEF.items() if title != "environment"},
    ),
    "connect-four-growth": Table(
        ("connect-four-growth",), {"moves": counted("steps"), "worst seed (all)": score, "date": date}
    ),
    "alphazero-variants": Table(("alphazero-variants",), {"variant": field("variant")} | BRIEF),
    "speed-suites": Table(
        ("speed-suites",),
        {"environment": field("environment"), "steps per second": counted("score"), "with": field("envs")}
        | {"per CPU second": counted("cpu"), "one environment": counted("one"), "date": date},
    ),
    "speed-update": Table(
        ("speed-update",),
        {"setting": field("setting"), "time / official JAX": ratio("official"), "time / PyTorch twin": ratio("torch")}
        | {name: field(name) for name in ("scratch", "compile", "cached")}
        | {"record": record, "date": date},
    ),
    "speed-policy": Table(
        ("speed-policy",), {"call, ms": field("score"), "of which the network, ms": field("network"), "date": date}
    ),
    "speed-search": Table(
        ("speed-search",),
        {"model": field("model"), "actions/s": counted("score"), "range": between, "inside mctx": field("mctx_share")}
        | {"record": record, "date": date},
    ),
    "dream": Table(
        ("dream",),
        BRIEF
        | {"dream": horizons("dream"), "actions of another sequence": horizons("other_actions")}
        | {"last value, kept": horizons("last_value_kept")},
    ),
    "long-run": Table(
        ("long-run",),
        {"wall time": field("wall"), "GB after ten minutes": field("after_ten_minutes"), "GB at the end":
         field("at_the_end"), "later compilations": field("compilations_after_the_first_round"), "record": record,
         "date": date},
    ),
}  # fmt: skip
"""Name -> table."""


def rows(root: Path = ROOT) -> list[Row]:
    """All results, by table, system, environment and steps."""
    found = [json.loads(path.read_text(), parse_float=Decimal) for path in sorted((root / "results").glob("*.json"))]
    order = [*SYSTEMS, None]
    return sorted(
        found, key=lambda r: (r["table"], order.index(r["system"]), r["environment"] or "", r["steps"] or 0, r["name"])
    )


def draw(columns: dict[str, Cell], chosen: Iterable[Row]) -> str:
    """A Markdown table, without columns that would be empty; a line below explains the dagger."""
    chosen = list(chosen)
    if not chosen:
        return "Nothing has been measured yet."
    filled = {title: cells for title, cell in columns.items() if any(cells := [cell(row) for row in chosen])}
    lines = [list(filled), ["---"] * len(filled), *map(list, zip(*filled.values(), strict=True))]
    sources = {row["source"] for row in chosen if transcribed(row)}
    return "\n".join([f"| {' | '.join(line)} |" for line in lines] + footnote(sources))


def footnote(sources: Iterable[str]) -> list[str]:
    """The line that explains the dagger, where there is one."""
    return [f"\n{DAGGER} copied from {', '.join(sorted(sources))}, not measured again"] if sources else []


def best(name: str, every: list[Row]) -> Row | None:
    """The best row of a system on its task; None where there is none yet."""
    task = SYSTEMS[name].task
    fitting = [row for row in every if (row["system"], row["environment"]) == (name, task)]
    measured = [row for row in fitting if row["table"] in MEASURED] or fitting
    return max(measured, key=lambda row: row["score"] if row["score"] is not None else row["goal"], default=None)


def best_score(row: Row | None) -> str:
    """A score with its environment; for a row of steps to a goal, that goal and the steps."""
    if row is None:
        return "not measured yet"
    if row["score"] is None:
        return f"{row['environment']} {number(row['goal'])} in {count(row['steps'])} steps"
    return f"{row['environment']} {number(row['score'])} (random {number(row['random'])})"


def systems(every: list[Row]) -> str:
    """The table of systems in README.md."""
    lines = ["| system | observations | actions | best score, worst seed |", "| --- | --- | --- | --- |"]
    sources = set()
    for name, one in SYSTEMS.items():
        row = best(name, every)
        mark = f" {DAGGER}" if row and transcribed(row) else ""
        sources |= {row["source"]} if row and mark else set()
        page = f"[{one.title}](docs/systems/{name}.md)"
        lines.append(f"| {page} | {one.observations} | {one.actions} | {best_score(row)}{mark} |")
    return "\n".join(lines + footnote(sources))


def commands(name: str, every: list[Row]) -> str:
    """The commands behind the rows of a table or of a system, once each."""
    chosen = [row for row in every if row["table"] == name or (row["system"] == name and row["table"] in MEASURED)]
    lines = dict.fromkeys(row["command"] for row in chosen if row["command"])
    return "\n".join(["```bash", *lines, "```"]) if lines else ""


def block(name: str, every: list[Row]) -> str:
    """The text between the markers of `name`; ValueError for an unknown name."""
    kind, _, rest = name.partition(" ")
    if name == "systems":
        return systems(every)
    if kind == "commands" and (rest in TABLES or rest in SYSTEMS):
        return commands(rest, every)
    if kind == "system" and rest in SYSTEMS:
        return draw(RETURN, [row for row in every if row["system"] == rest and row["table"] in MEASURED])
    if name not in TABLES:
        raise ValueError(f"unknown table {name!r}")
    table = TABLES[name]
    return draw(table.columns, [row for row in every if row["table"] in table.of])


BLOCK = re.compile(r"(<!-- table: (.+?) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)


def renewed(text: str, every: list[Row]) -> str:
    """The text of a page with fresh blocks; ValueError where a block is not closed."""
    if text.count("<!-- table: ") != text.count("<!-- /table -->"):
        raise ValueError("a table without its closing <!-- /table -->")
    return BLOCK.sub(lambda match: f"{match[1]}\n{block(match[2], every)}\n\n{match[4]}", text)


@cache
def pages(root: Path = ROOT) -> tuple[Path, ...]:
    return (root / "README.md", *sorted((root / "docs").rglob("*.md")))


def main(arguments: list[str]) -> int:
    every, stale = rows(), 0
    for page in pages():
        old = page.read_text()
        try:
            new = renewed(old, every)
        except ValueError as error:
            print(f"{page.relative_to(ROOT)}: {error}")
            return 2
        if new == old:
            continue
        if "--check" in arguments:
            print(f"{page.relative_to(ROOT)}: a table is out of date, renew it with: python -m docs.tables")
            stale = 1
        else:
            page.write_text(new)
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
