"""What a training process sees of the launcher: nothing, or one page and one socket."""

from __future__ import annotations

import math
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import reporter
from launcher.reporter import PAGE_BYTES, SAVE, SET, STOP, Reporter, connect, read_page, receive_frame, send_frame

FILE = Path(reporter.__file__)


class Agent:
    """The other end of a reporter."""

    def __init__(self, folder: Path) -> None:
        self.page_path, self.socket_path = folder / "page", folder / "socket"
        self.page_path.write_bytes(bytes(PAGE_BYTES))
        with self.page_path.open("r+b") as file:
            self.page = mmap.mmap(file.fileno(), PAGE_BYTES)
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(str(self.socket_path))
        self.server.listen()

    @property
    def env(self) -> dict[str, str]:
        return {"OPT_LAUNCH_PAGE": str(self.page_path), "OPT_LAUNCH_SOCKET": str(self.socket_path), "RANK": "3"}

    def accept(self) -> None:
        self.peer, _ = self.server.accept()
        self.stream = self.peer.makefile("rb")

    def hear(self) -> Any:
        return receive_frame(self.stream)


@pytest.fixture
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    agent = Agent(tmp_path_factory.mktemp("a"))
    yield agent
    agent.server.close()


@pytest.fixture
def attached(agent: Agent) -> Reporter:
    attached = connect(agent.env)
    agent.accept()
    assert agent.hear() == {"type": "hello", "rank": 3, "pid": os.getpid()}
    return attached


# ---------------------------------------------------------------- without a launcher


def test_without_a_launcher_every_call_does_nothing() -> None:
    alone = connect({})

    assert not alone.attached
    alone.step(0, {"loss": 1.0}, samples=(0, 8))
    alone.section()
    with alone.phase("eval"):
        alone.section()
    alone.save_part(0, "nowhere", [])
    alone.save_failed(0, OSError("no"))
    alone.error("ValueError", "no")
    alone.done(1)
    alone.close()
    assert alone.wanted() == 0
    assert alone.finish_requests.empty()


@pytest.mark.parametrize("missing", ["OPT_LAUNCH_PAGE", "OPT_LAUNCH_SOCKET"])
def test_half_an_environment_is_none(agent: Agent, missing: str) -> None:
    env = {key: value for key, value in agent.env.items() if key != missing}

    assert not connect(env).attached


def test_of_ranks_that_one_process_has_started_the_first_speaks_for_their_node(agent: Agent) -> None:
    env = {**agent.env, "OPT_LAUNCH_RANKS_PER_NODE": "4", "OPT_LAUNCH_RANK": "1"}

    assert not connect({**env, "RANK": "5", "LOCAL_RANK": "1"}).attached
    connect({**env, "RANK": "4", "LOCAL_RANK": "0"})
    agent.accept()

    assert agent.hear()["rank"] == 1


def test_it_can_be_loaded_by_path_by_any_python() -> None:
    program = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('r', sys.argv[1]); "
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); "
        "r = module.connect(); r.step(0, {'loss': 1}); print(r.attached, 'launcher' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(FILE)], capture_output=True, text=True, check=False
    )

    assert done.stdout == "False False\n", done.stderr


# ---------------------------------------------------------------- progress


def test_the_page_tells_step_section_and_phase(agent: Agent, attached: Reporter) -> None:
    assert read_page(agent.page)[::4] == (-1, "start")  # type: ignore[index]

    attached.section()
    assert read_page(agent.page)[1] == 1  # type: ignore[index]
    attached.step(7)
    seen = read_page(agent.page)
    assert seen is not None
    assert (seen[0], seen[1], seen[4]) == (7, 2, "")
    assert seen[2] <= time.monotonic()
    with attached.phase("eval"):
        assert read_page(agent.page)[4] == "eval"  # type: ignore[index]
        with attached.phase("save"):
            assert read_page(agent.page)[4] == "save"  # type: ignore[index]
        assert read_page(agent.page)[4] == "eval"  # type: ignore[index]
    assert read_page(agent.page)[4] == ""  # type: ignore[index]


def test_a_page_is_read_whole_or_not_at_all(agent: Agent) -> None:
    program = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('r', sys.argv[1]); "
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); "
        "r = module.connect(); step = 0\n"
        "while True: r.step(step); step += 1"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(FILE)], env={**os.environ, **agent.env})
    seen: list[tuple[int, int]] = []
    try:
        agent.accept()
        while len(set(seen[-10_000:])) < 100 and writer.poll() is None:
            place = read_page(agent.page)
            if place is not None:
                seen.append(place[:2])
    finally:
        writer.kill()
        writer.wait()

    torn = [place for place in seen if place[1] != place[0] + 1 and place != (0, 0)]  # all zero: not yet written
    assert torn == []
    assert [step for step, section in seen if section] == sorted(step for step, section in seen if section)


def test_a_page_that_is_being_written_says_nothing(agent: Agent, attached: Reporter) -> None:
    agent.page[0] |= 1

    assert read_page(agent.page) is None


# ---------------------------------------------------------------- words


def test_a_step_carries_its_numbers_its_samples_and_its_time(agent: Agent, attached: Reporter) -> None:
    metrics = {"loss": math.nan, "norm": math.inf, "lr": 1}
    attached.step(4, metrics, (32, 40), step_s=0.5, blocked_s=0.1, compute_s=(0.2, 0.3), checksums={"w": {0: 7}})

    told = agent.hear()

    assert told.pop("at") <= time.time()
    assert told == {
        "type": "step_done",
        "step": 4,
        "metrics": {"loss": "nan", "norm": "inf", "lr": 1.0},
        "samples": [32, 40],
        "step_s": 0.5,
        "blocked_s": 0.1,
        "compute_s": [0.2, 0.3],
        "checksums": {"w": {"0": 7}},
    }


def test_a_rank_without_metrics_tells_its_page_only(agent: Agent, attached: Reporter) -> None:
    attached.step(4)
    attached.done(5, final_digest="d", loss=2)

    assert agent.hear() == {"type": "done", "step": 5, "final_digest": "d", "result": {"loss": 2.0}}


def test_last_words_are_out_before_the_process_ends(agent: Agent, attached: Reporter) -> None:
    for step in range(100):
        attached.step(step, {"loss": 1.0})
    attached.error("ValueError", "x" * 9000)
    attached.close()
    agent.peer.shutdown(socket.SHUT_WR)

    told = [agent.hear() for _ in range(101)]

    assert [one["step"] for one in told[:100]] == list(range(100))
    assert told[100] == {"type": "error", "kind": "ValueError", "message": "x" * 4000}


def test_a_wish_said_again_is_not_another_wish(agent: Agent, attached: Reporter) -> None:
    heard = []
    for wish in (1.5, 1.5, 2.5):
        send_frame(agent.peer, {"type": "wanted", "bits": SAVE, "wish": wish})
        send_frame(agent.peer, {"type": "finish", "step": 5, "directory": "d", "results": {}})
        attached.finish_requests.get(timeout=5)
        heard.append(attached.wanted())
        attached.acted(SAVE)

    assert heard == [SAVE, 0, SAVE]


def test_wishes_are_heard_until_they_are_fulfilled(agent: Agent, attached: Reporter) -> None:
    send_frame(agent.peer, {"type": "wanted", "bits": SAVE})
    send_frame(agent.peer, {"type": "wanted", "bits": STOP})
    send_frame(agent.peer, {"type": "finish", "step": 5, "directory": "d", "results": {}})
    assert attached.finish_requests.get(timeout=5)["step"] == 5

    assert attached.wanted() == SAVE | STOP
    attached.acted(SAVE)
    assert attached.wanted() == STOP


def test_settings_wait_in_their_order_until_they_are_applied_and_are_answered_once_more_when_asked_again(
    agent: Agent, attached: Reporter
) -> None:
    first = {"type": "set", "id": "d1", "settings": {"lr": "x0.5"}}
    send_frame(agent.peer, first)
    send_frame(agent.peer, first)
    send_frame(agent.peer, {"type": "set", "id": "d2", "settings": {"clip": 0.3}})
    send_frame(agent.peer, {"type": "finish", "step": 5, "directory": "d", "results": {}})
    attached.finish_requests.get(timeout=5)  # so all before it was heard
    assert attached.settings() == {"d1": {"lr": "x0.5"}, "d2": {"clip": 0.3}}
    assert attached.wanted() == SET

    attached.applied("d1", 8, {"lr": 3e-4, "clip": 1.0})
    attached.applied("another rank's", 8, {})
    answer = {"type": "settings_applied", "id": "d1", "step": 8, "effective": {"lr": 3e-4, "clip": 1.0}, "problem": ""}
    assert agent.hear() == answer
    assert attached.settings() == {"d2": {"clip": 0.3}}

    send_frame(agent.peer, first)  # a new supervisor has not seen the answer
    assert agent.hear() == answer
    attached.applied("d2", 9, {}, problem="clip: no")
    assert agent.hear()["problem"] == "clip: no"
    assert attached.wanted() == 0


def test_an_attempt_begins_with_the_settings_and_skips_of_its_environment(agent: Agent) -> None:
    asked = {"OPT_LAUNCH_SETTINGS": '{"lr": "x0.9"}', "OPT_LAUNCH_SKIPS": "[[64, 128]]"}
    ours = connect({**agent.env, **asked, "RANK": "0"})
    agent.accept()
    assert agent.hear()["type"] == "hello"
    assert (ours.asked, ours.skips) == ({"lr": "x0.9"}, [[64, 128]])
    ours.applied(None, 4, {"lr": 1e-4})
    assert agent.hear() == {"type": "settings_applied", "id": None, "step": 4, "effective": {"lr": 1e-4}, "problem": ""}
    silent = connect({**asked, "OPT_LAUNCH_RANKS_PER_NODE": "2", "LOCAL_RANK": "1"})
    assert silent.asked == {"lr": "x0.9"}
    assert connect({}).asked == {}


def test_an_agent_that_goes_away_does_not_hurt_the_trainer(agent: Agent, attached: Reporter) -> None:
    agent.stream.close()
    agent.peer.close()

    for step in range(50):
        attached.step(step, {"loss": 1.0})
    attached.close(1.0)

    assert read_page(agent.page)[0] == 49  # type: ignore[index]
