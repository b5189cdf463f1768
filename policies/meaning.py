"""What is wrong with a rule that is well formed: it asks for what does not exist yet, or can never do its work.

Pure. Each mistake is a path inside the rule and a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policies.patterns import pattern_flaw
from policies.schema import BY_CHECKS, FACTS, INFRASTRUCTURE, Rule, Rung

Flaw = tuple[tuple[str | int, ...], str]

# What our own trainer reports of its steps. None of it is ever negative; of a foreign trainer, whose loss may be,
# that is known for some names only.
TRAINER_METRICS = (
    *("loss", "grad_norm", "clip_fraction", "activation_norm", "param_norm", "lr", "tokens", "tokens_per_s"),
    *("loss_scale", "loss_scale_window", "skipped", "val_loss"),
)
NEVER_NEGATIVE = frozenset({"grad_norm", "tokens", "tokens_per_s", "activation_norm"})
SCALE_METRICS = ("loss_scale", "skipped")  # with either of them a loss scale can be followed
JOB_STATES = (
    *("PREEMPTED", "REQUEUED", "SUSPENDED", "NODE_FAIL", "TIMEOUT", "DEADLINE", "COMPLETING", "CONFIGURING", "FAILED"),
    *("CANCELLED", "COMPLETED", "OUT_OF_MEMORY", "PENDING", "RUNNING", "REQUEUE_HOLD", "RESIZING", "REVOKED"),
    *("SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "BOOT_FAIL", "RESV_DEL_HOLD", "REQUEUE_FED"),
)
REJECTED_CHECKPOINT = 79  # the exit status of a rank that refused its checkpoint; always handled by the engine


@dataclass(frozen=True)
class RunFacts:
    """What a policy must fit: the run it is for, and what a trainer that is not ours can do.

    `goes_back`: it can begin from any checkpoint; `saves`: it can be told to, and goes on; `settings`, `skips`: what it
    lets itself be told; `metrics`: what it tells of its steps, None when that is not known; `least_hang_s`: it may
    stand still for so long without a word.
    """

    channels: frozenset[str] = frozenset()
    own_trainer: bool = True
    first_step_s: float | None = None
    goes_back: bool = False
    saves: bool = False
    settings: frozenset[str] = frozenset({"lr", "clip", "loss_scale"})
    skips: bool = True
    metrics: frozenset[str] | None = None
    least_hang_s: float | None = None
    checksum_every: int | None = None  # steps; 0: the trainer takes none; None: not known
    requeues: bool = True  # whether a scheduler can begin the job anew
    has_scheduler: bool = True  # whether there may be one that says what becomes of the job
    shrinks: bool = True  # whether the run may go on with fewer nodes

    @property
    def compares(self) -> bool:
        """Whether the trainer may tell checksums: lines that it prints hold none."""
        return self.checksum_every != 0 and self.metrics is None


def rule_flaws(rule: Rule, before: Sequence[Rule], facts: RunFacts | None) -> Iterator[Flaw]:
    """Everything wrong with one rule, given those before it."""
    unbuilt = [*not_built(rule)]
    yield from unbuilt
    if not unbuilt:
        yield from _never(rule, before)
        yield from _below_zero(rule, facts)
        yield from _ladder(rule)
        for index, rung in enumerate(rule.do):
            yield from ((("do", index, *path), message) for path, message in _rung(rule, rung))
    if facts:
        yield from _unfit(rule, facts)


def not_built(rule: Rule) -> Iterator[Flaw]:
    """What a rule asks for that does not exist yet."""
    for index, rung in enumerate(rule.do):
        yield from ((("do", index, *path), message) for path, message in _unbuilt(rung, f"rule '{rule.name}'"))


def _unbuilt(rung: Rung, whose: str = "") -> Iterator[Flaw]:
    in_ = f" ({whose})" if whose else ""
    for kind in rung.collect or ():
        if kind != "stacks":
            yield ("collect",), f"to collect '{kind}'{in_} is not built yet"
    if rung.set and rung.set.optimizer:
        yield ("set", "optimizer"), f"to set the optimizer{in_} is not built yet"


def deed_flaws(rung: Rung, channels: frozenset[str]) -> Iterator[Flaw]:
    """Everything wrong with a rung that a person wants done now: no rule, no finding, no ladder."""
    unbuilt = [*_unbuilt(rung)]
    yield from unbuilt
    if not unbuilt:
        yield from _contradictions(rung)
    if rung.exclude == "blamed":
        yield ("exclude",), "'exclude: blamed' needs a finding that blames a node, and here is none"
    if rung.replace:
        yield ("replace",), "here is no finding that blames a node: opt-launch replace RUN NODE names one"
    if rung.requeue:
        yield ("requeue",), "only a rule gives a job back when it lacks nodes; a person does it by scontrol requeue"
    if rung.restart and rung.restart.from_ == "before_incident":
        yield ("restart", "from"), "here is no incident to go back before: latest, last_good or step N"
    if rung.times or rung.per:
        yield (
            ("times" if rung.times else "per",),
            "this is done once, now: 'times' and 'per' are for the ladders of rules",
        )
    yield from _unknown_channel(rung, channels)


def _never(rule: Rule, before: Sequence[Rule]) -> Iterator[Flaw]:
    """Why a rule can never fire."""
    detector, span = rule.when.detector, rule.for_
    if span and not (span.steps or span.seconds):
        yield ("for",), "'for' is nothing: leave it out"
    if span and detector in (*FACTS, "sdc") and detector != "hang":
        yield ("for",), f"'for' has no meaning with '{detector}': remove it"
    if span and detector == "hang" and span.steps is not None:
        yield ("for",), "'for' counts steps, but in a hang none are done: the rule can never fire"
    if codes := rule.when.exit and rule.when.exit.codes:
        if not set(codes) - {0, REJECTED_CHECKPOINT}:
            yield ("when", "exit", "codes"), "0 is no failure, and 79 is handled always: the rule can never fire"
        if any(not -64 <= code <= 255 for code in codes):
            yield ("when", "exit", "codes"), "exit codes go up to 255, and a signal is its number with a minus"
    yield from _surroundings(rule)
    for other in before:
        if other.mode != "advise" and other.when.detector == detector and _takes_all(other):
            yield ("when",), f"the rule can never fire: rule '{other.name}' before it takes every {detector}"
            break


def _surroundings(rule: Rule) -> Iterator[Flaw]:
    when = rule.when
    for index, state in enumerate(when.scheduler.states if when.scheduler else ()):
        if state not in JOB_STATES:
            known = ", ".join(JOB_STATES[:4])
            message = f"{state!r} is no state of a Slurm job: write it as squeue does, {known}, ..."
            yield ("when", "scheduler", "states", index), message
    if when.log and (wrong := pattern_flaw(when.log.match)):
        yield ("when", "log", "match"), wrong
    for index, rung in enumerate(rule.do):
        if when.storage_stall and rung.hold and rung.hold.retry:
            message = "a stall of the storage is waited for, and its ranks stay: 'retry' would begin them anew"
            yield ("do", index, "hold", "retry"), message


def _below_zero(rule: Rule, facts: RunFacts | None) -> Iterator[Flaw]:
    limit = rule.when.threshold
    known = TRAINER_METRICS if facts and facts.own_trainer else NEVER_NEGATIVE
    if limit and limit.below is not None and limit.below <= 0 and limit.metric in known:
        yield ("when", "threshold", "below"), f"{limit.metric} is never negative: the rule can never fire"


def watched_metrics(rule: Rule) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The metrics a rule looks at, each with its place in the rule."""
    if rule.when.threshold:
        yield ("when", "threshold", "metric"), rule.when.threshold.metric
    for name in ("spike", "plateau"):
        if detector := getattr(rule.when, name):
            yield ("when", name, "metric"), detector.metric
    if rule.when.non_finite:
        for index, name in enumerate(rule.when.non_finite.metrics):
            yield ("when", "non_finite", "metrics", index), name


def any_of(rule: Rule) -> tuple[str, ...]:
    """Metrics of which a rule needs one, whichever it is; empty where it needs none or those of `watched_metrics`."""
    return rule.when.drift.metrics if rule.when.drift else SCALE_METRICS if rule.when.scale_collapse else ()


def _takes_all(rule: Rule) -> bool:
    """Whether a rule matches every finding of its detector and always has an answer to it."""
    if rule.when.exit:
        return not rule.when.exit.model_dump(exclude_none=True)
    if rule.when.detector in BY_CHECKS:
        return not getattr(rule.when, rule.when.detector).model_dump(exclude_none=True)
    return rule.when.detector in ("node_lost", "hang", "draining")


def _ladder(rule: Rule) -> Iterator[Flaw]:
    for index, rung in enumerate(rule.do):
        if rung.per and rung.times is None:
            yield ("do", index, "per"), "'per' needs 'times': how often in that window?"
        # An exit can go past a rung that has uses left: the same error at the same step is not tried again.
        last = index == len(rule.do) - 1
        if rung.times is None and not last and rule.when.detector != "exit":
            message = f"rung {index + 2} can never be reached: rung {index + 1} has no 'times'"
            yield ("do", index + 1), message
            break


def _endings(rung: Rung) -> list[str]:
    return [name for name in ("restart", "hold", "stop") if name in rung.actions]


def _contradictions(rung: Rung) -> Iterator[Flaw]:
    ends = _endings(rung)
    if not rung.actions:
        yield (), "a rung without an action"
    if len(ends) > 1:
        yield (ends[1],), f"'{ends[0]}' and '{ends[1]}' in one rung contradict each other"
    if rung.replace and ends:
        yield ("replace",), f"'replace' and '{ends[0]}' in one rung contradict each other"
    for name in ("shrink", "requeue"):
        if name in rung.actions and not rung.restart:
            yield (name,), f"'{name}' says how a restart goes on without enough nodes: it needs 'restart'"
    if rung.hold and rung.hold.at_most and not rung.hold.retry:
        yield ("hold", "at_most"), "'at_most' says how long to retry: it needs 'retry'"
    elif rung.hold and rung.hold.at_most and rung.hold.retry and rung.hold.at_most < rung.hold.retry:
        yield ("hold", "at_most"), "'at_most' is less than one 'retry': it would never be tried"
    if rung.check == "deep" and not ends:
        yield ("check",), "'check: deep' needs the nodes for itself: it goes with 'restart', 'hold' or 'stop'"
    if rung.exclude == "failed" and not rung.check:
        yield ("exclude",), "'exclude: failed' needs a 'check' in the same rung"
    if rung.skip and not rung.restart:
        yield ("skip",), "'skip' leaves out of a restart what it would go over again: it needs 'restart'"
    if rung.set and not rung.set.model_dump(exclude_none=True):
        yield ("set",), "'set' changes nothing: lr, clip or loss_scale"


def _rung(rule: Rule, rung: Rung) -> Iterator[Flaw]:
    detector, actions, ends = rule.when.detector, rung.actions, _endings(rung)
    yield from _contradictions(rung)
    if detector in INFRASTRUCTURE and rule.mode != "advise" and actions and not ends:
        yield (), f"after '{detector}' the run must be restarted, held or stopped: this rung does none of it"
    if detector in INFRASTRUCTURE and rung.save:
        yield ("save",), f"after '{detector}' there is nothing left that could save"
    if detector == "sdc" and (rung.save or (rung.restart and rung.restart.save_first)):
        yield ("save",) if rung.save else ("restart", "save_first"), "after 'sdc' the weights are damaged: save nothing"
    if detector in INFRASTRUCTURE and rung.restart and rung.restart.save_first:
        yield ("restart", "save_first"), f"after '{detector}' there is nothing left that could save"
    yield from _blamed(rung, detector)


def _blamed(rung: Rung, detector: str) -> Iterator[Flaw]:
    """What is wrong with the actions about the nodes that a detector blames."""
    blames = detector in (*INFRASTRUCTURE, *BY_CHECKS, "draining", "log", "sdc", "straggler")
    if rung.exclude == "blamed" and not blames:
        yield ("exclude",), f"'{detector}' blames no node: nothing would be excluded"
    elif rung.exclude == "blamed" and detector == "draining":
        yield ("exclude",), "a draining node works: use 'replace'"
    if rung.replace and not blames:
        yield ("replace",), f"'{detector}' blames no node: nothing would be replaced"
    elif rung.replace and detector == "sdc":
        yield (
            ("replace",),
            "'replace' saves first, and after 'sdc' the weights are damaged: use 'exclude'",
        )
    elif rung.replace and detector not in (*BY_CHECKS, "draining", "log", "straggler"):
        yield ("replace",), f"after '{detector}' there is nothing left that could save: use 'exclude'"


def _unfit(rule: Rule, facts: RunFacts) -> Iterator[Flaw]:
    if rule.when.detector in ("scheduler", "time_left") and not facts.has_scheduler:
        yield ("when", rule.when.detector), f"no scheduler ends the job of a local run: '{rule.name}' can never fire"
    if (sdc := rule.when.sdc) and facts.checksum_every is not None:
        if not facts.checksum_every:
            yield ("when", "sdc"), "trainer.checksum_every is 0, so nothing is compared: the rule can never fire"
        elif sdc.every % facts.checksum_every:
            message = f"every {sdc.every} is no multiple of trainer.checksum_every = {facts.checksum_every}"
            yield ("when", "sdc", "every"), message
    elif sdc and not facts.compares:
        yield ("when", "sdc"), f"the telemetry of this run tells no checksums: '{rule.name}' can never fire"
    for index, rung in enumerate(rule.do):
        yield from ((("do", index, *path), message) for path, message in _unknown_channel(rung, facts.channels))
        if rung.requeue and not facts.requeues:
            message = f"'requeue' of rule '{rule.name}' needs backend slurm, and a 'continue_by' other than none"
            yield ("do", index, "requeue"), message
        if facts.own_trainer and rung.set and rung.set.loss_scale and "loss_scale" not in facts.settings:
            message = f"'set: loss_scale' of rule '{rule.name}' needs trainer.dtype: fp16, which alone has one"
            yield ("do", index, "set", "loss_scale"), message
        if not facts.own_trainer and rule.mode != "advise":
            lacking = _lacking(rung, facts)
            yield from ((("do", index), f"{what} of rule '{rule.name}' needs {how}") for what, how in lacking)


def _unknown_channel(rung: Rung, channels: frozenset[str]) -> Iterator[Flaw]:
    if rung.notify and rung.notify not in channels:
        known = f" (known: {', '.join(sorted(channels))})" if channels else ""
        yield ("notify",), f"channel '{rung.notify}' is not in 'notify' of RUN.yaml{known}"


def _lacking(rung: Rung, facts: RunFacts) -> Iterator[tuple[str, str]]:
    """What a rung does that the command cannot, and what it would have to declare for that."""
    if not facts.goes_back and rung.restart and rung.restart.from_ != "latest":
        yield f"'restart from {rung.restart.from_}'", "'checkpoints' and 'capabilities.resume' of the command"
    if not facts.saves and (rung.save or rung.replace or (rung.restart and rung.restart.save_first)):
        what = "'save'" if rung.save else "'replace'" if rung.replace else "'restart' with 'save_first'"
        yield what, "a command that goes on after 'capabilities.save_now', or 'telemetry: {preset: reporter}'"
    if rung.skip and not facts.skips:
        yield "'skip'", "a command that hears of it: 'capabilities.skip: reporter'"
    for name in rung.set.model_dump(exclude_none=True) if rung.set else ():
        if name not in facts.settings:
            yield f"'set: {name}'", f"a command that hears of it: 'capabilities.{name}: reporter'"
