"""What is seen once is a warning; what is seen three times of five is a fault, told with its reading and its limit."""

from __future__ import annotations

from launcher.events import CheckFinding
from launcher.health.lasting import Lasting
from launcher.terms import Verdict


def look(verdict: Verdict, gpu: str = "GPU-0", celsius: int = 91, reasons: str = "0x40") -> list[CheckFinding]:
    hot = celsius >= 87
    return [
        CheckFinding(
            code="gpu-temperature", subject=gpu, verdict="warn" if hot else "ok", summary=f"{celsius} C",
            evidence={"celsius": celsius}, limit=87, limit_source="device",
        ),
        CheckFinding(
            code="gpu-clocks", subject=gpu, verdict=verdict, summary="thermal slowdown by the hardware",
            evidence={"reasons": reasons},
        ),
    ]  # fmt: skip


def clocks(findings: list[CheckFinding]) -> CheckFinding:
    return next(one for one in findings if one.code == "gpu-clocks")


def test_a_hot_gpu_is_a_fault_at_its_third_look_and_says_how_hot() -> None:
    lasting = Lasting()
    assert [clocks(lasting.judged(look("warn"))).verdict for _ in range(2)] == ["warn", "warn"]
    fault = clocks(lasting.judged(look("warn")))
    assert (fault.verdict, fault.remedy, fault.evidence["celsius"]) == ("fail", "drain", 91)
    assert fault.told == (
        "gpu-clocks GPU-0: 91 C, thermal slowdown by the hardware at 3 of the last 5 looks (limit 87, from the device)"
    )


def test_three_of_five_need_not_be_in_a_row_and_three_of_six_are_too_few() -> None:
    lasting = Lasting()
    seen: list[Verdict] = ["warn", "ok", "warn", "ok", "warn", "ok", "ok", "warn"]
    assert [clocks(lasting.judged(look(one))).verdict for one in seen] == [
        "warn", "ok", "warn", "ok", "fail", "ok", "ok", "warn",
    ]  # fmt: skip


def test_a_gpu_that_is_slowed_down_while_it_is_cool_is_judged_by_how_often() -> None:
    lasting = Lasting()
    fault = [clocks(lasting.judged(look("warn", celsius=50))) for _ in range(3)][-1]
    assert (fault.verdict, fault.limit, fault.limit_source) == ("fail", 3, "table")


def test_each_gpu_is_judged_for_itself_and_unknown_counts_for_nothing() -> None:
    lasting = Lasting()
    lasting.judged(look("warn", "GPU-0"))
    lasting.judged(look("warn", "GPU-1"))
    lasting.judged(look("unknown", "GPU-0"))
    assert clocks(lasting.judged(look("warn", "GPU-0"))).verdict == "warn"


def test_it_is_in_doubt_between_the_first_look_and_the_verdict() -> None:
    lasting, seen = Lasting(), []
    for verdict in ("ok", "warn", "warn", "warn", "ok"):
        lasting.judged(look(verdict))
        seen.append(lasting.is_in_doubt())
    assert seen == [False, True, True, False, False]


def test_the_temperature_alone_is_no_fault_however_long() -> None:
    lasting = Lasting()
    assert {one.verdict for _ in range(6) for one in lasting.judged(look("ok"))} == {"warn", "ok"}


def test_what_the_driver_does_by_itself_to_stay_cool_stays_a_warning() -> None:
    lasting = Lasting()
    assert {clocks(lasting.judged(look("warn", reasons="0x24"))).verdict for _ in range(6)} == {"warn"}
