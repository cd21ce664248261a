"""The tab of the plan: verdicts, members, what becomes of each part, and what it costs."""

from nicegui import ui

from fuse.studio.parts import live, said, sheet, state_of, table
from fuse.studio.planned import EYES, MEMBERS, PARTS, Planned
from fuse.studio.state import Studio


def build(studio: Studio) -> None:
    """The tab."""
    live(lambda: (studio.mistake, *state_of(studio.planning)), lambda: _plan(studio))


def _plan(studio: Studio) -> None:
    plan, job = studio.plan(), studio.planning
    if plan:
        _told(plan)
    elif problem := studio.mistake or (job.problem if job else ""):
        with sheet("This recipe is refused"):
            said(problem, "bad")
    else:
        with sheet("No plan yet"):
            ui.label("It is made from configs, tokenizers and headers as soon as there is a recipe.").classes("quiet")


def _told(plan: Planned) -> None:
    with sheet("Plan"):
        said(plan.headline, "good")
        for agrees, topic, text in plan.verdicts:
            with ui.element("div").classes("verdict"):
                ui.label("fits" if agrees else "mind").classes(f"mark {'good' if agrees else 'bad'}")
                ui.label(f"{topic}: {text}").classes("words")
    with sheet("Members"):
        table(MEMBERS, plan.members)
    with sheet("What becomes of the tensors"):
        table(PARTS, plan.parts)
    if plan.eyes:
        with sheet("Visual tokens", "Of a photograph; what a budget leaves stands last."):
            table(EYES, plan.eyes)
    with sheet("Cost"):
        table(("what", "how much"), plan.costs)
    with ui.expansion("As `fuse plan` prints it").classes("w-full sheet"):
        ui.label(plan.text).classes("plain")
