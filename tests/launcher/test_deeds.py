"""What a person has done at once: mistakes are told with their place, and what is not there is not begun."""

# ruff: noqa: E501  messages are compared whole
from __future__ import annotations

from typing import Any

import pytest
from tale import Tale

from launcher.abilities import Abilities
from launcher.deeds import checked, parsed
from launcher.errors import ConfigError
from launcher.events import CommandReceived, JobEnding

CHANNELS = frozenset({"oncall"})
OURS = Abilities()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{restart: {from: yesterday}}", ["1:18: 'yesterday' is not one of latest, last_good, before_incident, step N"]),
        ("{restart: {from: lastgood}}", ["1:18: 'lastgood' is not one of latest, last_good, before_incident, step N (did you mean 'last_good'?)"]),
        ("{restart: {from: 1000}}", ["1:18: 1000 is not one of latest, last_good, before_incident, step N (did you mean 'step 1000'?)"]),
        ("{restart: {from: step_1000}}", ["1:18: 'step_1000' is not one of latest, last_good, before_incident, step N (did you mean 'step 1000'?)"]),
        ("{restart: {from: true}}", ["1:18: true is not one of latest, last_good, before_incident, step N"]),
        ("{restart: {from: before_incident}}", ["1:18: here is no incident to go back before: latest, last_good or step N"]),
        ("{skip: 64 batches, run: [a]}", ["1:8: 'skip' leaves out of a restart what it would go over again: it needs 'restart'"]),
        ("{shrink: true}", ["1:10: 'shrink' says how a restart goes on without enough nodes: it needs 'restart'"]),
        ("{requeue: true, restart: {from: latest}}", ["1:11: only a rule gives a job back when it lacks nodes; a person does it by scontrol requeue"]),
        ("{replace: blamed}", ["1:11: here is no finding that blames a node: opt-launch replace RUN NODE names one"]),
        ("{restrat: {from: latest}, notify: nobody}", ["1:2: unknown key 'restrat' (did you mean 'restart'?)", "1:35: channel 'nobody' is not in 'notify' of RUN.yaml (known: oncall)"]),
        ("{hold: {}, stop: enough}", ["1:18: 'hold' and 'stop' in one rung contradict each other"]),
        ("{exclude: blamed, save: now}", ["1:11: 'exclude: blamed' needs a finding that blames a node, and here is none"]),
        ("{save: now, times: 3}", ["1:20: this is done once, now: 'times' and 'per' are for the ladders of rules"]),
        ("{hold: {at_most: 6h}}", ["1:18: 'at_most' says how long to retry: it needs 'retry'"]),
        ("{}", ["1:1: a rung without an action"]),
        ("save", ["1:1: the top level is a single value: a mapping of keys to values is expected"]),
    ],
)  # fmt: skip
def test_every_mistake_is_told_with_its_place(text: str, told: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        parsed(text, CHANNELS)
    assert [f"{one.line}:{one.column}: {one.message}" for one in raised.value.mistakes] == told


def outcome(tale: Tale, trainer: Abilities = OURS, **actions: Any) -> dict[str, Any]:
    asked = CommandReceived(at=tale.at, id="c", verb="do", author="ann", args={"actions": actions, "why": "odd"})
    return dict(checked(asked, tale.run, trainer, CHANNELS, "ann").args)


def training() -> Tale:
    """Of the checkpoints of steps 5 and 10 the first is good."""
    return Tale().train(5).save().verify().steps(5).save()


def test_what_can_be_done_is_journaled_in_full() -> None:
    done = outcome(training(), hold={}, save="now", collect=["stacks"])
    assert done == {
        "why": "odd",
        "actions": {"collect": ["stacks"], "save": {"when": "now"}, "hold": {"reason": "ann: odd"}},
    }
    assert list(done["actions"]) == ["collect", "save", "hold"]


REFUSED = [
    (training(), {"restart": {"from": "step 7"}}, "no usable checkpoint at step 7"),
    (Tale().train(5), {"restart": {"from": "step 7"}}, "no checkpoint was ever committed"),
    (Tale().train(5).save(), {"restart": {"from": "last_good"}}, "no checkpoint is known to be good: complete are those of step 5"),
    (Tale().train(5), {"restart": {"from": "last_good"}}, "no checkpoint is known to be good"),
    (Tale(), {"save": "now"}, "no ranks train that could save or be looked at: the run is PENDING"),
    (training().end_attempt().hold(), {"restart": {"from": "latest", "save_first": True}}, "no ranks train that could save or be looked at: the run is HELD"),
    (training().end_attempt().hold(), {"hold": {}}, "held already: told to hold"),
    (training().end(), {"restart": {"from": "latest"}}, "the run is STOPPED"),
    (training().tell(CommandReceived(at=1.0, id="s", verb="stop", author="bob")), {"save": "now"}, "the run is being stopped, as bob asked"),
    (training().tell(CommandReceived(at=1.0, id="s", verb="hold", author="bob")), {"save": "now"}, "the run is being held: bob: no reason given"),
    (training().tell(JobEnding(at=1.0, reason="the limit")), {"save": "now"}, "the job is ending: the limit"),
    (training(), {"check": "deep"}, "'check: deep' needs the nodes for itself: it goes with 'restart', 'hold' or 'stop'"),
    (training(), {}, "a rung without an action"),
]  # fmt: skip


@pytest.mark.parametrize(("tale", "actions", "why_not"), REFUSED)
def test_what_is_not_there_is_not_begun(tale: Tale, actions: dict[str, Any], why_not: str) -> None:
    assert outcome(tale, **actions) == {"why": "odd", "refused": why_not}


@pytest.mark.parametrize("actions", [{"save": "now"}, {"restart": {"from": "latest", "save_first": True}}])
def test_a_trainer_that_cannot_save_is_not_asked_to(actions: dict[str, Any]) -> None:
    refused = outcome(training(), Abilities(saves="never", refusal="it cannot"), **actions)
    assert refused == {"why": "odd", "refused": "it cannot"}


@pytest.mark.parametrize("origin", ["latest", "last_good", "step 5", "step 10"])
def test_a_held_run_can_be_begun_from_each_of_its_checkpoints(origin: str) -> None:
    held = training().end_attempt().hold()
    assert outcome(held, restart={"from": origin})["actions"] == {"restart": {"from": origin, "save_first": False}}
