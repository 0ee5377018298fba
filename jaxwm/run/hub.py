"""Models for others: weights with a card that says what they are, in a folder or on the Hugging Face hub.

A model is a folder of plain files. `push` makes it out of a run, `pull` fetches it, `jaxwm.load` reads it; all three
know the files of `FILES` only, and none of them holds code. What a plan says of this machine (paths, sinks, files to
import) stays here: a model that was pulled never imports anything."""

import contextlib
import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxwm
from jaxwm.run import directory, export
from jaxwm.run.json_files import read_json, to_plain, write_json
from jaxwm.run.load import WEIGHTS, Loaded, load, plan_of
from jaxwm.run.plan import Plan
from jaxwm.run.sinks import brief

CARD, PLAN = "README.md", "plan.json"
MARK = "library_name: jaxwm"  # by which a folder is known to hold a model of ours
PICTURES = ("watch.gif", "dream.gif")
FILES = (CARD, WEIGHTS, PLAN, directory.EVALUATION, *PICTURES)
"""All that a model may consist of."""

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push(run: Path, name: str, which: str = "newest", private: bool = False) -> str:
    """Make a model of a run's checkpoint, in the folder `name` or on the hub; where it is.

    A folder that holds a model already is replaced, file by file; FileExistsError where it holds anything else.
    Other errors as in `run.load.load`; ImportError and ConnectionError where the hub cannot be used."""
    hub: Any = _api() if (target := _folder(name)) is None else None
    if target is not None:
        _check_free(target, replacing=True)
    loaded = load(run, which)
    with tempfile.TemporaryDirectory(prefix="jaxwm-") as temporary:
        stage = Path(temporary)
        source = name if target is None else f"./{target.absolute().name}"
        _write(stage, run if run.is_dir() else run.parent, loaded, source)
        if target is not None:
            _move(stage, target)
            return str(target)
        with _online(f"push to {name}"):
            hub.HfApi().create_repo(name, private=private, exist_ok=True)
            said = f"jaxwm push: {loaded.plan.agent} on {loaded.plan.env}"
            hub.HfApi().upload_folder(repo_id=name, folder_path=stage, commit_message=said, allow_patterns=list(FILES))
    return f"https://huggingface.co/{name}"


def pull(name: str, folder: Path | None = None) -> Path:
    """Fetch a model from the hub or a folder into `folder` (models/NAME by default), which must be new or empty.

    The weights are read before anything is kept: FileNotFoundError where there are none, ValueError where they are
    damaged or not ours, FileExistsError for a folder that holds something, ImportError and ConnectionError where the
    hub cannot be used."""
    source = _folder(name)
    target = folder or Path("models") / name.rstrip("/").split("/")[-1]
    _check_free(target, replacing=False)
    hub: Any = _api() if source is None else None
    with tempfile.TemporaryDirectory(prefix="jaxwm-") as temporary:
        stage = Path(temporary)
        if source is None:
            with _online(f"pull {name}"):
                hub.snapshot_download(name, local_dir=stage, allow_patterns=list(FILES))
        else:
            for file in FILES:
                if (source / file).is_file():
                    shutil.copyfile(source / file, stage / file)
        if not (stage / WEIGHTS).is_file():
            raise FileNotFoundError(f"{name} is no model of jaxwm: there is no {WEIGHTS} in it")
        _check_harmless(name, plan_of(stage))
        _move(stage, target)
    return target


def _folder(name: str) -> Path | None:
    """The folder that `name` means; None for a name on the hub."""
    if name.startswith((".", "/", "~")):
        return Path(name).expanduser()
    if not _HUB.fullmatch(name):
        raise ValueError(f"{name!r} is neither USER/MODEL on the Hugging Face hub nor a folder (./{name})")
    return None


def _check_free(folder: Path, replacing: bool) -> None:
    """FileExistsError where a model would overwrite, or lie among, other files."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    card = folder / CARD
    ours = card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
    if not (replacing and ours):
        what = "holds a model already" if ours else "is not empty" if folder.is_dir() else "is a file"
        raise FileExistsError(f"{folder} {what}: choose another folder, or empty it")


def _move(stage: Path, target: Path) -> None:
    """The files of a model into their folder; one that has no successor is removed."""
    target.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        if (stage / file).is_file():
            shutil.copyfile(stage / file, partial := target / f".{file}.part")
            partial.replace(target / file)
        else:
            (target / file).unlink(missing_ok=True)


# --- The hub ------------------------------------------------------------------------------------------------------


def _api() -> Any:
    """The module `huggingface_hub`; ImportError tells how to install it."""
    try:
        import huggingface_hub  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError("the Hugging Face hub needs huggingface_hub: pip install 'jaxwm[hub]'") from error
    return huggingface_hub


@contextlib.contextmanager
def _online(what: str) -> Iterator[None]:
    """Errors of the hub, of many kinds, as a ConnectionError of one line."""
    try:
        yield
    except Exception as error:
        way = "check the name and the network; `hf auth login` or HF_TOKEN says who you are"
        raise ConnectionError(f"cannot {what} ({type(error).__name__}: {brief(error)}): {way}") from error


# --- What a model says of itself ----------------------------------------------------------------------------------


def _write(stage: Path, run: Path, loaded: Loaded, source: str) -> None:
    """All files of a model into the empty folder `stage`; `source` is where it will be."""
    plan = portable(loaded.plan)
    about = {"plan": plan.to_json(), "steps": loaded.steps}
    export.write(stage / WEIGHTS, loaded.state.params, about)
    write_json(stage / PLAN, to_plain(plan.to_json()))
    if result := _evaluation(run, loaded):
        write_json(stage / directory.EVALUATION, result)
    for file in (run / "watch.gif", run / "dreams" / "dream.gif", run / "dream.gif"):
        if file.is_file():
            shutil.copyfile(file, stage / file.name)
    pictures = [name for name in PICTURES if (stage / name).exists()]
    (stage / CARD).write_text(card(loaded, result, pictures, source), encoding="utf-8")


def portable(plan: Plan) -> Plan:
    """The plan without what belongs to one machine: paths, sinks, files to import, the host of a remote environment."""
    env = plan.env and re.sub(r"^remote/.*:", "remote/127.0.0.1:", plan.env)
    data = plan.data and Path(plan.data).name
    return replace(plan, env=env, data=data, imports=(), log=(), start=None, start_parts=())


def _check_harmless(name: str, plan: Plan) -> None:
    """ValueError where loading a model would run code or reach for another machine, which `push` never writes."""
    if plan != portable(plan):
        raise ValueError(f"{name} names files, modules or hosts of another machine: refused, as loading would use them")


def _evaluation(run: Path, loaded: Loaded) -> dict[str, Any] | None:
    """The evaluation of the run, where it is one of these weights."""
    file = run / directory.EVALUATION
    result = read_json(file) if file.is_file() else None
    return result if result and result.get("env_steps", result.get("updates")) == loaded.steps else None


def card(loaded: Loaded, result: dict[str, Any] | None, pictures: list[str], source: str) -> str:
    """A model card: front matter for the hub, scores, pictures, how to use it from `source`, command."""
    plan = loaded.plan
    title = f"{plan.agent} on {plan.env or plan.task}"
    parts = [_front(plan, title, result), f"# {title}", _what(loaded), *_scores(plan, result)]
    parts += [f"![{name.split('.')[0]}]({name})" for name in pictures]
    parts += ["## Use", _use(plan, source), "## Training", f"```bash\n{_command(plan)}\n```", _versions(plan)]
    return "\n\n".join(parts) + "\n"


def _front(plan: Plan, title: str, result: dict[str, Any] | None) -> str:
    """YAML front matter; JSON strings are YAML strings."""
    tags = ["jaxwm", "jax", "reinforcement-learning", "world-model", plan.agent, *([plan.env] if plan.env else [])]
    lines = [MARK, "pipeline_tag: reinforcement-learning", "tags:", *(f"- {json.dumps(tag)}" for tag in tags)]
    if result and "trained" in result:
        scores, env = np.array(result["trained"]), json.dumps(plan.env)
        value = json.dumps(f"{scores.mean():.2f} +/- {scores.std():.2f}")
        lines += ["model-index:", f"- name: {json.dumps(title)}", "  results:", "  - task:"]
        lines += ["      type: reinforcement-learning", "    dataset:", f"      name: {env}", f"      type: {env}"]
        lines += ["    metrics:", "    - type: mean_reward", f"      value: {value}"]
    return "\n".join(["---", *lines, "---"])


def _what(loaded: Loaded) -> str:
    plan = loaded.plan
    count = sum(x.size for x in jax.tree.leaves(loaded.state.params)) // plan.members
    length = f"{loaded.steps:,} {'environment steps' if plan.data is None else 'updates on recordings'}"
    members = f"{plan.members} members of " if plan.members > 1 else ""
    size = f"{members}{count:,} parameters{' each' if members else ''}"
    return f"Weights of {size}, after {length}, made with jaxwm."


def _scores(plan: Plan, result: dict[str, Any] | None) -> list[str]:
    if not result:
        return ["These weights have not been evaluated."]
    scores = result.get("scores", {})
    columns = {"trained": result["trained"], "random": result["random"]} if "trained" in result else {}
    columns |= {name: found["trained"] for name, found in scores.items() if name != "return"}
    rows = [["member", *columns], ["---"] * (1 + len(columns))]
    rows += [[str(m), *(f"{column[m]:.2f}" for column in columns.values())] for m in range(plan.members)]
    if "trained" in result:
        rows.append(["**minimum**", *(f"**{min(column):.2f}**" for column in columns.values())])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    episodes = f"Mean return of {result.get('episodes')} episodes per member, greedy policy next to random play"
    what = episodes if "trained" in result else "On held-out recordings"
    return ["## Evaluation", f"{what}:", table]


def _use(plan: Plan, source: str) -> str:
    needs, folder = "", f"models/{source.split('/')[-1]}"
    place = shlex.quote(folder)
    if plan.imports:
        names = ", ".join(Path(name).name for name in plan.imports)
        needs = f"The environment is registered by `{names}`, which is not part of the model: import it first.\n\n"
    if plan.env is None:
        needs = f"Loading it needs the recordings that it learned from, the folder `{Path(str(plan.data)).name}`.\n\n"
    return f"""{needs}```bash
jaxwm pull {shlex.quote(source)} {place}
jaxwm eval {place}
jaxwm watch {place}
```

```python
import jaxwm

plan, agent, state, steps = jaxwm.load({json.dumps(folder)})  # members are the leading axis of the leaves of `state`
```"""


def _command(plan: Plan) -> str:
    """The command that trains it again, without this machine's paths."""
    imports = tuple(Path(name).name if name.endswith(".py") else name for name in plan.imports)
    start = plan.start and Path(plan.start).name
    return replace(portable(plan), imports=imports, start=start, start_parts=plan.start_parts).command()


def _versions(plan: Plan) -> str:
    return f"jaxwm {jaxwm.__version__}, jax {jax.__version__}; seed {plan.seed}. All settings are in `plan.json`."
