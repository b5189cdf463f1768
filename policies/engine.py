"""`decide`: what the policy says to each event. A pure fold: no clock, no files; time is `event.at`.

The same policy and events always give the same decisions, live, in a replay or in a simulation. The
shell journals what is returned, feeds that back like any event, and sends a Tick when the deadline has
come. Infrastructure is judged before numerics, rules in order; of those that act, the first match decides.
"""

from __future__ import annotations

from typing import Any

from launcher.events import PERSON, AttemptEnded, CommandReceived, Decision, Event, Json, StepDone
from launcher.evolve import evolve
from policies.corruption import corrupted
from policies.detectors import bad_metrics, look
from policies.exits import failed_rank
from policies.finding import Finding
from policies.ladder import charged, chosen_rung, used, without_progress
from policies.observe import begun_afresh, observe
from policies.schema import INFRASTRUCTURE, Policy, Rule, Rung
from policies.silence import lost_nodes
from policies.state import EngineState, Pending, RuleState, Streak, is_within
from policies.when import NodeLost

# A lost node explains exits and hangs, an exit explains a hang; a node that is wanted back can wait for all of them.
ORDER = ("node_lost", "exit", "hang", "draining")
ENDS = frozenset({"restart", "hold", "stop"})
BUILT_IN = "engine"  # the rule of decisions that no policy has to make

Outcome = tuple[EngineState, tuple[Decision, ...]]


def initial(policy: Policy) -> EngineState:
    """The state before the first event of a run."""
    return EngineState(rules={rule.name: RuleState() for rule in policy.rules})


def decide(policy: Policy, state: EngineState, event: Event) -> tuple[EngineState, tuple[Decision, ...], float | None]:
    """The new state, what is decided, and the time (Unix seconds) by which a Tick is wanted at the latest."""
    state = _with_streaks(policy, observe(state, event), event)
    decisions: list[Decision] = []
    for judge in (_person, _rejected_checkpoint, _early_end, _infrastructure, _numerics):
        state, more = judge(policy, state, event)
        decisions += more
    return state, tuple(decisions), next_deadline(policy, state)


def next_deadline(policy: Policy, state: EngineState) -> float | None:
    """When an answer may change though no event comes; always later than now."""
    answers = [look(rule, state)[1] for rule in policy.rules if rule.when.detector in INFRASTRUCTURE]
    answers += [lost_nodes(state, NodeLost())[1], failed_rank(state)[1]]
    return min((time for time in answers if time is not None and time > state.now), default=None)


# ---------------------------------------------------------------- the judges, in order


def _person(_policy: Policy, state: EngineState, event: Event) -> Outcome:
    """What a person has done by `do` or `replace`: checked before it was journaled, before what is being done."""
    if not isinstance(event, CommandReceived) or event.verb not in ("do", "replace") or "actions" not in event.args:
        return state, ()
    if state.is_over or "stop" in state.commands.values() or (state.commands and not state.is_held):
        return state, ()
    actions = event.args["actions"]
    assert isinstance(actions, dict)
    if state.is_held and "restart" in actions:
        state = evolve(begun_afresh(state), commands={})
    slots = state.attempt.slots if state.attempt else {}
    named = event.args.get("nodes")
    nodes = tuple(str(node) for node in named) if isinstance(named, list) else ()
    finding = Finding(
        PERSON,
        key=event.id,
        why=f"{event.author}: {event.args['why']}",
        nodes=nodes,
        ranks=tuple(rank for node in nodes for rank in slots.get(node, ())),
        onset_at=event.at,
    )
    return _decided(state, event, finding, PERSON, actions, counts=False)


def _rejected_checkpoint(_policy: Policy, state: EngineState, event: Event) -> Outcome:
    """A rank refused its checkpoint: the next one by lineage, at nobody's cost."""
    attempt = state.judged
    if attempt is None or state.pending or attempt.rejected_at is None:
        return state, ()
    finding = Finding(
        "exit",
        key=str(attempt.number),
        why="a rank refused its checkpoint",
        onset_at=attempt.rejected_at,
        onset_step=attempt.step,
    )
    actions: dict[str, Json] = {"restart": {"from": "latest", "save_first": False}}
    return _decided(state, event, finding, "checkpoint-rejected", actions, counts=False)


def _early_end(policy: Policy, state: EngineState, event: Event) -> Outcome:
    """All ranks ended well before the goal: no fault, and on it goes, as long as something comes of it."""
    attempt = state.judged
    if attempt is None or state.pending or not isinstance(event, AttemptEnded) or not event.early:
        return state, ()
    finding = Finding(
        "early_end", key=str(attempt.number), why=event.reason, onset_at=state.now, onset_step=attempt.step
    )
    state, exhausted = without_progress(policy, state)
    if exhausted:
        return _hold(state, event, finding, BUILT_IN, f"{event.reason}; {exhausted}")
    actions: dict[str, Json] = {"restart": {"from": "latest", "save_first": False}}
    return _decided(state, event, finding, "early-end", actions, counts=False)


def _infrastructure(policy: Policy, state: EngineState, event: Event) -> Outcome:
    """Lost nodes, exits, hangs, draining nodes. What has ended and no rule handles is held: nobody else would."""
    if state.pending:
        return _joined(policy, state, event)
    decisions: tuple[Decision, ...] = ()
    for detector in ORDER:
        unhandled: Finding | None = None
        for rule in policy.rules:
            if rule.when.detector != detector or not (finding := look(rule, state)[0]):
                continue
            unhandled = finding
            state, more = _answer(policy, rule, state, event, finding)
            decisions += more
            if state.pending:
                return state, decisions
        if detector == "node_lost":
            unhandled = unhandled or lost_nodes(state, NodeLost())[0]
        if detector == "exit":
            unhandled = unhandled or failed_rank(state)[0]
        if unhandled and detector in ("node_lost", "exit"):
            reason = f"no rule handles this {detector}: {unhandled.why}"
            state, more = _hold(state, event, unhandled, BUILT_IN, reason)
            return state, decisions + more
    return state, decisions


def _joined(policy: Policy, state: EngineState, event: Event) -> Outcome:
    """While an attempt is being ended, a node found lost joins the incident: only who is left out changes."""
    rules = [rule for rule in policy.rules if rule.when.node_lost and rule.mode == "act"]
    detector = (rules[0].when.node_lost if rules else None) or NodeLost()
    finding = lost_nodes(state, detector)[0]
    if finding is None or state.pending is None:
        return state, ()
    incident = state.pending.incident
    pending = evolve(state.pending, lost=state.pending.lost | set(finding.nodes))
    name = rules[0].name if rules else BUILT_IN
    decision = _decision(state, event, finding, name, {"exclude": "blamed"}, incident=incident, counts=False)
    return evolve(state, pending=pending, decisions=state.decisions + 1), (decision,)


def _numerics(policy: Policy, state: EngineState, event: Event) -> Outcome:
    """Metrics of a step that was just done."""
    attempt = state.judged
    if not isinstance(event, StepDone) or attempt is None or event.attempt != attempt.number:
        return state, ()
    decisions: tuple[Decision, ...] = ()
    for rule in policy.rules:
        # Failed ranks that are still being sorted out come first.
        if state.pending or attempt.ended or attempt.exits:
            break
        if finding := _numerics_finding(rule, state, event):
            state, more = _answer(policy, rule, state, event, finding)
            decisions += more
    return state, decisions


def _numerics_finding(rule: Rule, state: EngineState, event: StepDone) -> Finding | None:
    if rule.when.sdc and state.attempt:
        return corrupted(rule.when.sdc, event, state.attempt.slots)
    detector = rule.when.non_finite or rule.when.threshold
    streak = state.streaks.get(rule.name)
    if detector is None or streak is None or not _lasted(rule, state, streak):
        return None
    bad = bad_metrics(detector, event)
    shown = ", ".join(f"{name} is {value:g}" for name, value in bad.items())
    since = f" since step {streak.onset_step}" if streak.onset_step != event.step else ""
    evidence: dict[str, Json] = {"step": event.step, "steps": streak.steps}
    evidence |= {name: f"{value:g}" for name, value in bad.items()}
    return Finding(
        rule.when.detector,
        key=f"{event.attempt}:{streak.onset_step}:{streak.onset_at}",
        why=f"{shown} at step {event.step}{since}",
        evidence=evidence,
        onset_at=streak.onset_at,
        onset_step=streak.onset_step,
    )


def _lasted(rule: Rule, state: EngineState, streak: Streak) -> bool:
    if rule.for_ is None:
        return True
    if rule.for_.steps is not None:
        return streak.steps >= rule.for_.steps
    return state.now - streak.onset_at >= (rule.for_.seconds or 0.0)


def _with_streaks(policy: Policy, state: EngineState, event: Event) -> EngineState:
    """For each rule about numbers, how long its condition has held without a break."""
    if not isinstance(event, StepDone) or state.attempt is None or event.attempt != state.attempt.number:
        return state
    streaks: dict[str, Streak] = {}
    for rule in policy.rules:
        detector = rule.when.non_finite or rule.when.threshold
        if detector and bad_metrics(detector, event):
            before = state.streaks.get(rule.name, Streak(0, state.now, event.step))
            streaks[rule.name] = evolve(before, steps=before.steps + 1)
    return evolve(state, streaks=streaks)


# ---------------------------------------------------------------- from a finding to a decision


def _answer(policy: Policy, rule: Rule, state: EngineState, event: Event, finding: Finding) -> Outcome:
    """What one rule does about a finding: nothing while it is silent, else its rung, advised or done."""
    if _is_silent(rule, state, finding):
        return state, ()
    index, why_not = chosen_rung(policy, rule, state, finding)
    actions: dict[str, Json] = {"hold": {"reason": why_not}}
    if index is not None:
        actions = _actions(rule.do[index], rule, index, finding)
    if rule.mode == "advise":
        did = evolve(state.rules.get(rule.name, RuleState()), last=state.moment, key=finding.key)
        state = evolve(state, rules={**state.rules, rule.name: did})
        rung = 0 if index is None else index + 1
        return _decided(state, event, finding, rule.name, actions, rung=rung, counts=False, mode="advise")
    if index is None:
        # A ladder that only tells people something never holds the run.
        ends = any(ENDS & rung.actions.keys() for rung in rule.do)
        return _hold(state, event, finding, rule.name, why_not) if ends else (state, ())
    delay_s = 0.0
    if "restart" in actions:
        charge = charged(policy, rule, state, finding)
        if charge.exhausted:
            return _hold(state, event, finding, rule.name, charge.exhausted)
        state, delay_s = charge.state, charge.delay_s
        finding = evolve(finding, evidence={**finding.evidence, "budget": charge.budget})
    state = used(policy, rule, state, index, finding)
    return _decided(state, event, finding, rule.name, actions, rung=index + 1, counts=rule.counts, delay_s=delay_s)


def _is_silent(rule: Rule, state: EngineState, finding: Finding) -> bool:
    """Whether a rule has nothing to say: in its cooldown, or it spoke about this finding already."""
    did = state.rules.get(rule.name, RuleState())
    if did.last and rule.cooldown:
        return is_within(did.last, state.moment, rule.cooldown)
    return did.key == finding.key


def _hold(state: EngineState, event: Event, finding: Finding, rule: str, reason: str) -> Outcome:
    actions: dict[str, Json] = {"hold": {"reason": reason}}
    return _decided(state, event, finding, rule, actions, counts=False)


def _decided(
    state: EngineState, event: Event, finding: Finding, rule: str, actions: dict[str, Json], **how: Any
) -> Outcome:
    """Open an incident with this decision. What ends the attempt is pending until another begins."""
    incident = state.incidents + 1
    decision = _decision(state, event, finding, rule, actions, incident=incident, **how)
    pending = state.pending
    if ENDS & actions.keys() and decision.mode == "act":
        lost = frozenset(finding.nodes) if finding.detector == "node_lost" else frozenset()
        lost |= pending.lost if pending else frozenset()
        pending = Pending(incident, state.now, "restart" in actions, lost)
    return evolve(state, incidents=incident, decisions=state.decisions + 1, pending=pending), (decision,)


def _decision(
    state: EngineState, event: Event, finding: Finding, rule: str, actions: dict[str, Json], **how: Any
) -> Decision:
    return Decision(
        at=event.at,
        id=f"d{state.decisions + 1:04d}",
        attempt=state.attempt.number if state.attempt else 0,
        rule=rule,
        detector=finding.detector,
        actions=actions,
        why=finding.why,
        evidence=finding.evidence,
        nodes=finding.nodes,
        ranks=finding.ranks,
        blame=finding.blame,
        onset_at=finding.onset_at,
        onset_step=finding.onset_step,
        **how,
    )


def _actions(rung: Rung, rule: Rule, index: int, finding: Finding) -> dict[str, Json]:
    """The actions of a rung as plain values, in their fixed order."""
    plain = rung.plain(f"rule '{rule.name}': {finding.why}")
    if not _is_blamed(finding, index):
        plain = {name: value for name, value in plain.items() if name not in ("exclude", "replace")}
    return plain


def _is_blamed(finding: Finding, index: int) -> bool:
    """Whether a node is to be left out: never on a guess, and after a first hang only when blame is certain."""
    if finding.detector == "hang" and index == 0:
        return finding.blame == "certain" and bool(finding.nodes)
    return finding.blame in ("certain", "likely") and bool(finding.nodes)
