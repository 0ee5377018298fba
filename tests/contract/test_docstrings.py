"""Every public name says what it does, and every field of a Config what it sets."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from house import TREES

from jaxwm import agents

UNDOCUMENTED_NAMES = set(
    """
    agents.dreamer_v1:Learner.value
    agents.dreamer_v2:Learner.actor
    agents.dreamer_v3:Learner.actor
    agents.dreamer_v3:Learner.world
    agents.world_models:Networks.memory
    agents.world_models:Networks.predict
    agents.world_models:Networks.vision
    agents.world_models:Vision.encode
    control.actor_critic:ReturnRange.update
    control.actor_critic:initial_range
    control.policy:Actor.mode
    control.policy:Actor.sample
    models.ensemble:Scale.back
    models.ensemble:Scale.forward
    models.latent_world:World.encode
    models.latent_world:World.images
    models.latent_world:World.reset
    models.mdn_rnn:MDNRNN.initial
    nets.encoders:Encoder.convolve
    report.markdown:bullets
    report.markdown:cell
    report.markdown:code
    report.markdown:number
    report.markdown:table
    report.page:Story.env
    report.page:Story.members
    run.cluster:Task.open
    run.json_files:parses
    run.plan:Plan.to_json
    run.session:Run.save
    run.writer:Silent.close
    run.writer:Silent.metrics
    run.writer:Silent.offsets
    run.writer:Silent.scores
    run.writer:Silent.truncate
    studio.dream:Study.context
    studio.pictures:font
    training.host:Pool.close
    training.host:Pool.reset
    """.split()
)
UNDOCUMENTED_FIELDS = {
    "dreamer-v3": {"con_scale", "dyn_scale", "policy_scale", "rec_scale", "rep_scale", "rew_scale", "value_scale"},
    "dreamer-v2": {"actor_lr", "kl_scale", "model_lr", "value_lr"},
    "dreamer-v1": {"actor_lr", "model_lr", "value_lr"},
    "planet": {"rew_scale"},
    "muzero": {"discount"},
    "efficientzero": {"discount"},
}
"""What is still missing; both lists must shrink to nothing."""


def public(body: list[ast.stmt], prefix: str) -> list[tuple[str, ast.AST]]:
    """Public functions, classes and methods with their dotted names; a flax module's `setup` is none."""
    found = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and node.name != "setup":
            found.append((f"{prefix}{node.name}", node))
            if isinstance(node, ast.ClassDef):
                found += public(node.body, f"{prefix}{node.name}.")
    return found


def undocumented() -> set[str]:
    names = set()
    for module, tree in TREES.items():
        if not ast.get_docstring(tree):
            names.add(module)
        names |= {name for name, node in public(tree.body, f"{module}:") if not ast.get_docstring(node)}  # type: ignore[arg-type]
    return names


def test_public_names_have_docstrings():
    assert undocumented() <= UNDOCUMENTED_NAMES, sorted(undocumented() - UNDOCUMENTED_NAMES)


def test_documented_names_are_struck_out():
    assert UNDOCUMENTED_NAMES <= undocumented(), sorted(UNDOCUMENTED_NAMES - undocumented())


def bare_fields(config: type) -> set[str]:
    """Fields of a dataclass that no docstring follows."""
    module = config.__module__.removeprefix("jaxwm.")
    (node,) = [n for n in TREES[module].body if isinstance(n, ast.ClassDef) and n.name == config.__name__]
    bare = set()
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            if not (isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value.strip()):
                bare.add(field.target.id)
    return bare


@pytest.mark.parametrize("name", agents.AGENTS)
def test_settings_are_explained(name):
    bare = bare_fields(agents.find(name).config)
    assert bare == UNDOCUMENTED_FIELDS.get(name, set()), f"{name}: document {sorted(bare)}, or strike out what is"


def test_tests_say_what_they_are_about():
    """A module docstring for each file of tests."""
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path.name} begins without a docstring"
