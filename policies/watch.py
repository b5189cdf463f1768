"""Detectors that watch numbers step by step: what each remembers, and what it says of a step. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from launcher.events import (
    AttemptStarted,
    Event,
    IncidentClosed,
    IncidentOpened,
    Judgement,
    RunReleased,
    RunResumed,
    StepDone,
)
from launcher.evolve import evolve
from policies.finding import Finding, Word
from policies.pace import PaceMemory, PeersMemory, slow, straggler
from policies.scale import ScaleMemory, begun_anew, scale_collapse
from policies.schema import Policy, Rule
from policies.spike import SpikeMemory, gone_back, looked_at, spike
from policies.state import EngineState, Trouble, Watched, is_within
from policies.trend import TrendMemory, drift, plateau

# Each takes (detector, memory, event, learning) and answers (memory, word).
Watch = Callable[..., tuple[Any, Word | None]]
WATCHERS: Mapping[str, tuple[Watch, Any]] = {
    "spike": (spike, SpikeMemory()),
    "scale_collapse": (scale_collapse, ScaleMemory()),
    "drift": (drift, TrendMemory()),
    "plateau": (plateau, TrendMemory()),
    "slow": (slow, PaceMemory()),
    "straggler": (straggler, PeersMemory()),
}

NUMERICS = frozenset({"non_finite", "threshold", "sdc", *WATCHERS})
# Those that say so in each step while there is trouble: it can be told, and told to be over, before it is acted upon.
SEES_ONSETS = ("spike", "scale_collapse")


def watched(policy: Policy, state: EngineState, event: Event) -> tuple[EngineState, dict[str, Word]]:
    """The state with an event taken in by the detectors, and by rule what they say of it."""
    attempt = state.attempt
    if isinstance(event, AttemptStarted):
        return _begun_anew(state, event), {}
    if isinstance(event, (RunReleased, RunResumed)):
        known = {name: looked_at(one) if isinstance(one, SpikeMemory) else one for name, one in state.memories.items()}
        return evolve(state, memories=known), {}
    if not isinstance(event, StepDone) or attempt is None or event.attempt != attempt.number:
        return state, {}
    learning = is_quiet(policy, state)
    memories, words = dict(state.memories), dict[str, Word]()
    for name, watch, detector, nothing in number_rules(policy).watching:
        memories[name], word = watch(detector, memories.get(name, nothing), event, learning=learning)
        if word:
            words[name] = word
    return (evolve(state, memories=memories) if memories else state), words


@dataclass(frozen=True)
class NumberRules:
    """The rules of a policy that look at each step. `watching`: (name, what watches, its parameters, empty memory)."""

    watching: tuple[tuple[str, Watch, Any, Any], ...]
    single: tuple[Rule, ...]  # those that look at the numbers of one step by themselves


def number_rules(policy: Policy) -> NumberRules:
    """Sorted out once for a policy: this is asked for at every step."""
    last = _last[0]
    if last[0] is not policy:
        watching = tuple(
            (rule.name, watch, getattr(rule.when, rule.when.detector), nothing)
            for rule in policy.rules
            if rule.when.detector in WATCHERS
            for watch, nothing in [WATCHERS[rule.when.detector]]
        )
        single = tuple(rule for rule in policy.rules if rule.when.non_finite or rule.when.threshold)
        last = _last[0] = policy, NumberRules(watching, single)
    return last[1]


_last: list[tuple[Policy | None, NumberRules]] = [(None, NumberRules((), ()))]


def is_quiet(policy: Policy, state: EngineState) -> bool:
    """Whether a change that was declared explains whatever numbers do now."""
    quiet = policy.quiet
    return quiet is not None and any(
        kind in state.changes and is_within(state.changes[kind], state.moment, quiet.for_) for kind in quiet.after
    )


def told(
    policy: Policy, state: EngineState, event: Event, words: Mapping[str, Word]
) -> tuple[EngineState, tuple[Judgement, ...]]:
    """Open an incident when trouble begins, join what begins meanwhile, close it when all of it is over."""
    trouble = state.trouble
    if isinstance(event, AttemptStarted) and trouble and _restored(state, event) <= trouble.step:
        return evolve(state, trouble=None), (_closed(state, event, trouble, "left", "the run went back to before it"),)
    attempt = state.attempt
    if not isinstance(event, StepDone) or attempt is None or event.attempt != attempt.number or not (words or trouble):
        return state, ()
    seen = {
        rule.name: rule
        for rule in policy.rules
        if rule.when.detector in SEES_ONSETS and rule.name in words and words[rule.name].kind in ("onset", "finding")
    }
    if trouble and not seen:
        last = next((words[name] for name in sorted(trouble.rules) if name in words), None)
        outcome = "stayed" if last and last.kind == "stayed" else "healed"
        return evolve(state, trouble=None), (_closed(state, event, trouble, outcome, last.why if last else ""),)
    if trouble:
        return evolve(state, trouble=evolve(trouble, rules=frozenset(seen))), ()
    if not seen or state.pending or state.judged is None:
        return state, ()
    rule = min(seen.values(), key=lambda rule: words[rule.name].step)
    word = words[rule.name]
    trouble = Trouble(state.incidents + 1, word.step, word.at, frozenset(seen))
    opened = IncidentOpened(
        at=event.at,
        incident=trouble.incident,
        attempt=event.attempt,
        rule=rule.name,
        detector=rule.when.detector,
        why=word.why,
        evidence=word.evidence,
        onset_at=word.at,
        onset_step=word.step,
    )
    return evolve(state, incidents=trouble.incident, trouble=trouble), (opened,)


def found(rule: Rule, state: EngineState, word: Word) -> Finding:
    """The finding of a detector that says what is to be acted upon."""
    slots = state.attempt.slots if state.attempt else {}
    nodes = tuple(node for node, ranks in slots.items() if set(ranks) & set(word.ranks))
    return Finding(
        rule.when.detector,
        key=f"{word.step}:{word.at}",
        why=word.why,
        evidence=word.evidence,
        nodes=nodes,
        ranks=word.ranks,
        blame="likely" if nodes else "none",
        onset_at=word.at,
        onset_step=word.step,
    )


def _closed(
    state: EngineState, event: Event, trouble: Trouble, outcome: Literal["healed", "stayed", "left"], why: str
) -> IncidentClosed:
    number = state.attempt.number if state.attempt else 0
    return IncidentClosed(at=event.at, incident=trouble.incident, attempt=number, outcome=outcome, why=why)


def _restored(state: EngineState, event: AttemptStarted) -> int:
    """The step an attempt begins from. Of one that resumes by itself that is not known yet: about where it was."""
    return event.restore[0] if event.restore else state.best_step if event.resumes_itself else 0


def _begun_anew(state: EngineState, event: AttemptStarted) -> EngineState:
    """What is remembered across attempts: baselines are, and trouble that began before the restored step."""
    restored, ranks = _restored(state, event), state.attempt.world_size if state.attempt else 0
    memories = {name: _restarted(memory, restored, ranks) for name, memory in state.memories.items()}
    return evolve(state, memories=memories)


def _restarted(memory: Watched, restored: int, ranks: int) -> Watched:
    match memory:
        case SpikeMemory():
            return gone_back(memory, restored)
        case ScaleMemory():
            return begun_anew(memory)
        case PaceMemory():
            return evolve(memory, window=()) if memory.ranks == ranks else PaceMemory(ranks=ranks)
        case PeersMemory():
            return PeersMemory()
        case _:
            return memory
