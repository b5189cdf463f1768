"""`decide`: what the policy says to each event. A pure fold: no clock, no files; time is `event.at`.

The same policy and events always give the same decisions, live, in a replay or in a simulation. The
shell journals what is returned, feeds that back like any event, and sends a Tick when the deadline has
come. Infrastructure is judged before numerics, rules in order; of those that act, the first match decides.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.events import Decision, Event, Judgement, StepDone
from launcher.evolve import evolve
from policies.amended import policy_now, with_amendments
from policies.answer import Outcome, answer
from policies.built_in import early_end, hold_retry, rejected_checkpoint, settings_differ
from policies.detectors import look
from policies.examined import failed_checks
from policies.exits import failed_rank
from policies.finding import Word
from policies.infrastructure import ORDER, infrastructure
from policies.numerics import finding_of, with_streaks
from policies.observe import observe
from policies.person import person
from policies.questions import answered, overtaken, vetoed
from policies.schema import Policy
from policies.silence import lost_nodes
from policies.state import EngineState, RuleState
from policies.watch import told, watched
from policies.when import NodeLost

Answers = tuple[EngineState, tuple[Judgement, ...], float | None]


def initial(policy: Policy) -> EngineState:
    """The state before the first event of a run."""
    return EngineState(rules={rule.name: RuleState() for rule in policy.rules})


def decide(policy: Policy, state: EngineState, event: Event) -> Answers:
    """The new state, what is found and decided, and the time (Unix seconds) by which a Tick is wanted at the latest."""
    state = with_amendments(observe(state, event), event)
    policy = policy_now(policy, state)
    state, words = watched(policy, state, event)
    state = with_streaks(policy, state, event, words)
    judgements: list[Judgement] = []
    # Most events are steps of a run that is well: what is judged of them has to be fast.
    is_sound = isinstance(event, StepDone) and state.is_sound
    for judge in () if is_sound else JUDGES:
        state, more = judge(policy, state, event)
        judgements += more
    state, of_trouble = told(policy, state, event, words)
    state, decisions = _numerics(policy, state, event, words)
    judgements += (*of_trouble, *decisions)
    if is_sound and not judgements:
        return state, (), None
    state, idle = overtaken(policy, state, event)
    judgements += idle
    if state.story:
        state = evolve(state, story=0)
    return state, tuple(judgements), None if state.is_sound else next_deadline(policy, state)


def next_deadline(policy: Policy, state: EngineState) -> float | None:
    """When an answer may change though no event comes; always later than now."""
    policy = policy_now(policy, state)
    answers = [look(rule, state)[1] for rule in policy.rules if rule.when.detector in ORDER]
    answers += [lost_nodes(state, NodeLost())[1], failed_rank(state)[1]]
    answers += [question.due for question in state.questions.values()]
    answers += [state.retry.due] if state.retry else []
    answers += [one.until for one in state.amendments]
    return min((time for time in answers if time is not None and time > state.now), default=None)


def _numerics(policy: Policy, state: EngineState, event: Event, words: Mapping[str, Word]) -> Outcome:
    """Metrics of a step that was just done."""
    if not isinstance(event, StepDone) or not (state.streaks or event.checksums):
        return state, ()
    attempt = state.judged
    if attempt is None or event.attempt != attempt.number:
        return state, ()
    decisions: tuple[Decision, ...] = ()
    for rule in policy.rules:
        # Failed ranks that are still being sorted out come first.
        if state.pending or attempt.ended or attempt.exits:
            break
        if finding := finding_of(rule, state, event, words.get(rule.name)):
            state, more = answer(policy, rule, state, event, finding)
            decisions += more
    return state, decisions


# In this order: what people say, what no rule need decide, what was asked, infrastructure before numerics.
JUDGES = (
    person,
    vetoed,
    rejected_checkpoint,
    settings_differ,
    early_end,
    hold_retry,
    failed_checks,
    answered,
    infrastructure,
)
