"""The commands `opt-launch policy ...`. Used by `cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli_shared import RUNS, AsJson, Policies, Root, RunName, command, print_json, print_text, seconds_of

policy_app = typer.Typer(no_args_is_help=True, help="Check policies, and see what they decide and why.")


@policy_app.command()
def validate(files: Annotated[list[str], typer.Argument(metavar="FILES", help="Files, or shipped names.")]) -> None:
    """Check policies, each by itself, and show every mistake with its place."""
    from launcher.view.check import check_policies

    print_text("\n".join(check_policies(files)))


@policy_app.command()
def explain(
    run: RunName,
    incident: Annotated[int | None, typer.Argument(metavar="ID", help="The number of an incident.")] = None,
    root: Root = RUNS,
) -> None:
    """Why a rule fired: of an incident. Or why each rule did not: what it sees now, and what its ladder has left."""
    from launcher.view.explaining import explanation_of_incident, explanation_of_rules
    from launcher.view.locate import find_run

    paths = find_run(root, run)
    print_text(explanation_of_rules(paths) if incident is None else explanation_of_incident(paths, incident))


@policy_app.command(name="set")
def set_(
    run: RunName,
    change: Annotated[str, typer.Argument(metavar="KEY=VALUE", help="hang.mode=advise, budget.restarts='20 per run'")],
    how_long: Annotated[str | None, typer.Option("--for", metavar="12h", help="Then as it was.")] = None,
    root: Root = RUNS,
) -> None:
    """Change the policy of a run that goes on: a key of a rule, or of the budget. Checked as at submit."""
    from launcher import policy_set

    try:
        asked = policy_set.asked(change)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="KEY=VALUE") from None
    if how_long is not None:
        asked["for_s"] = seconds_of(how_long, "--for")
    command(root, run, policy_set.SET, **asked)


@policy_app.command()
def schema() -> None:
    """The grammar of policies as JSON Schema, for editors."""
    from policies.load import json_schema

    print_json(json_schema())


@policy_app.command("replay")
def policy_replay(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A run, a .csv or .jsonl, a TensorBoard file, a folder of them.")
    ],
    policy: Policies = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of the run, where the record does not say.")] = None,
    step_time: Annotated[str | None, typer.Option(help="Of one step, where the record does not say: 20s.")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints, likewise.")] = 250,
    as_json: AsJson = False,
    root: Root = RUNS,
) -> None:
    """What a policy would have seen and decided in old runs, and at what cost. Nothing is done."""
    from launcher.curves import SUFFIXES
    from launcher.replay import Costs, sources
    from launcher.view.locate import find_run
    from launcher.view.replay import lines_of, replays, text_of
    from policies.load import load_policy

    costs = Costs(gpus, seconds_of(step_time, "--step-time") if step_time else None, save_every)
    rules = load_policy(policy or ["default"])
    path = Path(source)
    is_file = path.exists() or path.name != source or path.suffix in SUFFIXES
    for one in replays(rules, sources(path if is_file else find_run(root, source).root), costs):
        if as_json:
            print_text("".join(f"{line}\n" for line in lines_of(one, costs)), end="")
        else:
            print_text("\n".join(text_of(one, costs)))
