"""Write docs/lineage.md and the table behind `jaxwm list`: what each system sees, predicts and does, in which order.

python -m docs.lineage
"""

from __future__ import annotations

from docs.tables import ROOT
from jaxwm import agents
from jaxwm.agents import registry
from jaxwm.report.document import code, table
from jaxwm.report.lineage import command, schedule
from jaxwm.schedule import in_words

PAGE = ROOT / "docs" / "lineage.md"
COMMAND = "python -m docs.lineage"

INTRO = f"""# Lineage

Every system here is four choices: how it *sees* (what becomes of an observation), how it *predicts* (its model of the
world), how it *acts*, and in *which order* collecting and learning alternate. The table gives the first three; the
order below it is generated from the schedule that the trainer runs, for the system's default preset.
`jaxwm list NAME` prints the same and the presets of one system. This page is written by `{COMMAND}`.
"""


def page() -> str:
    """docs/lineage.md, oldest system first."""
    systems = sorted(agents.AGENTS.items(), key=lambda item: item[1].year)
    header = ["system", "year", "sees", "predicts", "acts"]
    rows = [[code(name), entry.year, entry.sees, entry.predicts, entry.acts] for name, entry in systems]
    lines = [INTRO, table(header, rows).markdown, "", "## In which order", ""]
    for name, entry in systems:
        title = f"**{name}** ({entry.paper}, {entry.year}): `{command(name)}`"
        lines += [title, "", "```text", *in_words(schedule(name)), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    (ROOT / "jaxwm" / "agents" / registry.TABLE).write_text(registry.printed())
    registry.table.cache_clear()
    PAGE.write_text(page())
    print(PAGE.relative_to(ROOT))
