"""SWEEP.yaml and flags become runs with their resolved specs, or every mistake with its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from launcher.backends import slurm_array
from launcher.document import Document, Path_, read_document
from launcher.errors import ConfigError, Mistake
from launcher.sections import NAME, Name, Positive, RunSpec, Section
from launcher.sources import Override
from launcher.spec import ResolvedSpec, from_command_line, resolve_asked
from launcher.sweep.plan import combinations, count, label_of, run_name, shares
from launcher.validation import validated

MAX_RUNS = 1000  # Slurm's arrays have at most 1001 elements, unless a site says otherwise


def _a_label(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError(f"{text[:80]!r} cannot be part of a name: letters, digits, '.', '_' and '-'")
    return text


class SweepFile(Section):
    """The grammar of SWEEP.yaml. `run`: the path of a RUN.yaml, or what would be in one."""

    name: Name
    run: Any
    grid: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)] | None = None
    entries: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = Field(default=None, alias="list")
    labels: dict[str, Annotated[str, AfterValidator(_a_label)]] = Field(default_factory=dict)
    max_parallel: Positive | None = None


@dataclass(frozen=True)
class SweepRun:
    """One run, and the values by which it differs from the others: dotted key to value."""

    resolved: ResolvedSpec
    swept: Mapping[str, Any]

    @property
    def spec(self) -> RunSpec:
        return self.resolved.spec


@dataclass(frozen=True)
class Sweep:
    """Runs that belong together; of them at most `max_parallel` at once. `labels`: what the swept keys are called."""

    name: str
    runs: tuple[SweepRun, ...]
    labels: Mapping[str, str]
    max_parallel: int | None


@dataclass(frozen=True)
class _Candidate:
    """What is to become a run: where it is written, and the values swept."""

    place: Path_
    values: tuple[Override, ...]

    @property
    def swept(self) -> dict[str, Any]:
        return {".".join(map(str, one.path)): one.value for one in self.values}


def read_sweep(
    path: Path, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None, max_parallel: int | None = None
) -> Sweep:
    """The sweep of a SWEEP.yaml; overrides and flags are those of `submit`, and apply to every run.

    Raises ConfigError with every mistake found in any run.
    """
    flags = dict(flags or {})
    document, file = _read_file(path, flags.pop("name", None))
    base = _base(document, file, path.parent)
    asked, mistakes = from_command_line(overrides, flags)
    candidates = [*_candidates(document, file)]
    mistakes += _overlaps(document, file, asked)
    mistakes += [
        document.mistake(("labels", key), f"{key!r} is not swept", at_key=True)
        for key in file.labels
        if not any(key == swept or key.startswith(swept + ".") for one in candidates for swept in one.swept)
    ]
    prefix = Override(("name",), file.name, document.place(("name",)), written=(document, ("name",)))
    runs: list[tuple[_Candidate, SweepRun]] = []
    for candidate in candidates:
        try:
            resolved = resolve_asked(base, [prefix, *asked, *candidate.values])
        except ConfigError as error:
            mistakes += error.mistakes
        else:
            name = run_name(file.name, candidate.swept, file.labels, resolved.spec.world_size)
            spec = resolved.spec.model_copy(update={"name": name})
            runs.append((candidate, SweepRun(replace(resolved, spec=spec), candidate.swept)))
    limit = max_parallel or file.max_parallel
    mistakes += _names(document, runs)
    mistakes += _together(document, [run.spec for _, run in runs])
    if not mistakes:
        mistakes += _limit(document, [run.spec for _, run in runs], limit, is_flag=bool(max_parallel))
    if mistakes:
        raise ConfigError(sorted(dict.fromkeys(mistakes), key=lambda one: (one.where != document.name, one.line)))
    keys = dict.fromkeys(key for one in candidates for key in one.swept)
    return Sweep(file.name, tuple(run for _, run in runs), {key: label_of(key, file.labels) for key in keys}, limit)


def name_of(path: Path, name: str | None = None) -> str:
    """The name of the sweep in a SWEEP.yaml, unless another is given. Raises ConfigError."""
    return _read_file(path, name)[1].name


def _read_file(path: Path, name: str | None) -> tuple[Document, SweepFile]:
    document = read_document(path)
    values = document.value if name is None else {**document.value, "name": name}
    file, findings = validated(SweepFile, values)
    mistakes = [
        Mistake(f"--name {name}", message)
        if name is not None and place == ("name",)
        else document.mistake(place, message, at_key=message.startswith("unknown key"))
        for place, message in findings
    ]
    if "grid" in values and "list" in values:
        mistakes.append(document.mistake(("list",), "'grid' and 'list' exclude each other: write one", at_key=True))
    if "grid" not in values and "list" not in values:
        mistakes.append(document.mistake((), "nothing is swept: 'grid' or 'list' is missing"))
    if file is not None and file.grid and count(file.grid) > MAX_RUNS:
        mistakes.append(document.mistake(("grid",), f"{count(file.grid):,} runs, more than {MAX_RUNS}", at_key=True))
    if file is not None and len(file.entries or ()) > MAX_RUNS:
        mistakes.append(document.mistake(("list",), f"more than {MAX_RUNS} runs", at_key=True))
    if mistakes or file is None:
        raise ConfigError(sorted(mistakes, key=lambda one: one.line))
    return document, file


def _base(document: Document, file: SweepFile, folder: Path) -> Document:
    """The RUN.yaml that all runs are made from."""
    if isinstance(file.run, dict):
        return document.part("run")
    if not isinstance(file.run, str):
        message = "the path of a RUN.yaml is expected, or a mapping with what would be in it"
        raise ConfigError([document.mistake(("run",), message)])
    path = folder / Path(file.run).expanduser()
    try:
        return read_document(path)
    except ConfigError as error:
        raise ConfigError(
            [one if one.line else document.mistake(("run",), str(one)) for one in error.mistakes]
        ) from None


def _candidates(document: Document, file: SweepFile) -> Iterator[_Candidate]:
    def override(key: str, value: Any, place: Path_) -> Override:
        return Override(tuple(key.split(".")), value, document.place(place), (document, place))

    grid = file.grid or {}
    for positions in combinations(grid) if grid else ():
        values = [override(key, grid[key][at], ("grid", key, at)) for key, at in positions.items()]
        yield _Candidate(("grid",), tuple(values))
    for index, entry in enumerate(file.entries or ()):
        values = [override(key, value, ("list", index, key)) for key, value in entry.items()]
        yield _Candidate(("list", index), tuple(values))


def _overlaps(document: Document, file: SweepFile, asked: Sequence[Override]) -> Iterator[Mistake]:
    """Values that are asked for twice: which of them counts would be a guess."""
    groups = [[("grid", key) for key in file.grid or ()]]
    groups += [[("list", index, key) for key in entry] for index, entry in enumerate(file.entries or ())]
    for places in groups:
        for place in places:
            key = str(place[-1])
            path = tuple(key.split("."))
            if key == "name":
                yield document.mistake(place, "names are made from 'name' and the swept values", at_key=True)
            for other in places:
                if other != place and path[: len(inner := str(other[-1]).split("."))] == tuple(inner):
                    yield document.mistake(place, f"is a part of {other[-1]!r}, which is swept too", at_key=True)
            for one in asked:
                if one.path == path[: len(one.path)] or path == one.path[: len(path)]:
                    yield Mistake(one.origin, f"'{key}' is swept: leave it to the sweep")


def _names(document: Document, runs: Sequence[tuple[_Candidate, SweepRun]]) -> Iterator[Mistake]:
    known: dict[str, _Candidate] = {}
    longest = max(runs, key=lambda one: len(one[1].spec.name), default=None)
    if longest is not None and not NAME.fullmatch(name := longest[1].spec.name):
        message = f"a run would be called '{name}', {len(name)} characters where 64 are allowed"
        hint = "choose a shorter 'name', or shorter words for the keys with 'labels'"
        yield document.mistake(longest[0].place, f"{message}: {hint}")
    for candidate, run in runs:
        name = run.spec.name
        if name in known:
            pairs = zip(candidate.values, known[name].values, strict=False)
            place = next((one.written[1] for one, other in pairs if one != other and one.written), candidate.place)
            yield document.mistake(place, f"two runs would be called '{name}'")
        known.setdefault(name, candidate)


def _together(document: Document, specs: Sequence[RunSpec]) -> Iterator[Mistake]:
    if len({spec.cluster.backend for spec in specs}) > 1:
        yield document.mistake((), "all runs of a sweep go to one backend: 'cluster.backend' cannot be swept")
    elif any(spec.cluster.backend == "slurm" and spec.cluster.continue_by == "chain" for spec in specs):
        message = "the runs of a sweep are elements of Slurm arrays, which cannot be chains of jobs"
        yield document.mistake(("run",), f"{message}: continue_by: requeue, or none")


def _limit(document: Document, specs: Sequence[RunSpec], limit: int | None, *, is_flag: bool) -> Iterator[Mistake]:
    if specs[0].cluster.backend != "slurm":
        return
    try:
        shares([len(one) for one in slurm_array.by_shape(specs)], limit)
    except ValueError as error:
        if is_flag:
            yield Mistake(f"--max-parallel {limit}", str(error))
        else:
            yield document.mistake(("max_parallel",), str(error))
