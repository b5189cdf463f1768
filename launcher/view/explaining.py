"""Why the rules of a run's policy have fired, or have not."""

from __future__ import annotations

from launcher.advance import advance
from launcher.events import Decision
from launcher.journal import read_journal
from launcher.paths import RunPaths
from launcher.run import Run
from launcher.view.incidents import incident_of, incidents_text
from policies.amended import policy_now
from policies.engine import decide, initial
from policies.load import read_policy
from policies.why_not import explain_budget, explain_rule


def explanation_of_incident(paths: RunPaths, number: int) -> str:
    """The story of one incident. Raises LaunchError if there is none of this number."""
    return incidents_text([incident_of(paths, number)])


def explanation_of_rules(paths: RunPaths) -> str:
    """Every rule as it stands after the newest event: what it has done, and what it sees. Raises ConfigError."""
    policy, run, decisions = read_policy(paths.policy), Run(), []
    state = initial(policy)
    for event in read_journal(paths).events:
        run = advance(run, event)
        state, _, _ = decide(policy, state, event)
        decisions += [event] if isinstance(event, Decision) else []
    policy = policy_now(policy, state)
    stories = [
        explain_rule(policy, rule, state, run.metrics, [one for one in decisions if one.rule == rule.name])
        for rule in policy.rules
    ]
    return "\n\n".join([*stories, explain_budget(policy, state)])
