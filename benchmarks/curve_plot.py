"""Curves of losses as an SVG: a panel for each fault, a line for each training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, TOP, GAP = 420, 230, 42, 46, 34  # of a panel, in pixels, and around it
COLOURS = {"recommended": "#888888", "default": "#1f6fd0", "off": "#d0342c"}
WORDS = {"recommended": "as recommended", "default": "with the fault, policy default", "off": "with the fault, off"}
SMOOTHED = 9  # rows whose median is drawn: batches are small, and differ
HIGHEST = 8.0  # losses above are drawn at the upper edge


@dataclass(frozen=True)
class Curve:
    """A training: one line of (step, loss) for each attempt."""

    kind: str
    attempts: Sequence[Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Panel:
    title: str
    curves: Sequence[Curve]


def drawn(panels: Sequence[Panel]) -> str:
    """All panels, two in a row, under a legend."""
    across = LEFT + WIDTH + GAP
    rows = (len(panels) + 1) // 2
    parts = [_legend({curve.kind for panel in panels for curve in panel.curves})]
    for number, panel in enumerate(panels):
        x, y = LEFT + number % 2 * across, TOP + GAP + number // 2 * (HEIGHT + 2 * GAP)
        parts.append(f'<g transform="translate({x},{y})">{"".join(_panel(panel))}</g>')
    height = TOP + rows * (HEIGHT + 2 * GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * across}" height="{height}" '
        f'font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _legend(kinds: set[str]) -> str:
    parts, x = [], LEFT
    for kind in (one for one in COLOURS if one in kinds):
        parts.append(f'<path d="M{x},18h24" stroke="{COLOURS[kind]}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 30}" y="22">{WORDS[kind]}</text>')
        x += 50 + 7 * len(WORDS[kind])
    parts.append(f'<text x="{x}" y="22">faint: gone back from; x: not finite from here on</text>')
    return "".join(parts)


def _panel(panel: Panel) -> Iterable[str]:
    last = max(step for curve in panel.curves for part in curve.attempts for step, _ in part)
    finite = [loss for curve in panel.curves for part in curve.attempts for _, loss in part if math.isfinite(loss)]
    low, high = min(finite), min(HIGHEST, max(finite))

    def place(step: int, loss: float) -> tuple[float, float]:
        share = math.log(min(loss, high) / low) / math.log(high / low)
        return WIDTH * step / last, HEIGHT * (1 - share)

    yield f'<text y="-8" font-weight="bold">{escape(panel.title)}</text>'
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbbbbb"/>'
    for loss in (tick for tick in (1, 1.5, 2, 3, 4, 5, 6, 8) if low <= tick <= high):
        y = place(0, loss)[1]
        yield f'<path d="M0,{y:.1f}h{WIDTH}" stroke="#eeeeee"/>'
        yield f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{loss}</text>'
    for step in range(0, last + 1, 100):
        yield f'<text x="{place(step, low)[0]:.1f}" y="{HEIGHT + 14}" text-anchor="middle">{step}</text>'
    for curve in panel.curves:
        yield from _curve(curve, place)


def _curve(curve: Curve, place: Callable[[int, float], tuple[float, float]]) -> Iterable[str]:
    """Each attempt up to where the next began; what it did after that, which was gone back from, is faint."""
    begins = [part[0][0] for part in curve.attempts[1:]] + [10**9]
    for number, part in enumerate(curve.attempts):
        begin = min(begins[number:])
        finite = smoothed([(step, loss) for step, loss in part if math.isfinite(loss)])
        stands = [place(*row) for row in finite if row[0] <= begin]
        left = [place(*row) for row in finite if row[0] >= begin]
        yield _line(stands, COLOURS[curve.kind], "0.8")
        yield _line(left, COLOURS[curve.kind], "0.25")
        if finite and len(finite) < len(part):
            x, y = place(*finite[-1])
            cross = f"M{x - 4:.1f},{y - 4:.1f}l8,8m-8,0l8,-8"
            yield f'<path d="{cross}" stroke="{COLOURS[curve.kind]}" stroke-width="1.5"/>'


def smoothed(rows: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each loss as the median of the losses around it."""
    half = SMOOTHED // 2
    return [
        (step, statistics.median(loss for _, loss in rows[max(0, at - half) : at + half + 1]))
        for at, (step, _) in enumerate(rows)
    ]


def _line(points: Sequence[tuple[float, float]], colour: str, opacity: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity="{opacity}"/>' if points else ""
