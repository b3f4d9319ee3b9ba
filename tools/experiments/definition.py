"""What does one of the paper's experiments consist of, at one scale?

A folder of `configs/experiments` is an experiment: `experiment.yaml` says which runs are compared, on which tasks, and
what is expected of them; `published.csv` holds the paper's numbers. `pocket.yaml` and `paper.yaml` beside the folders
hold what all experiments share at a scale. A run's config is a recipe of `configs/ssl` with overrides, those of the
scale first, then of the experiment, then of the run:

    runs:
      "20x":
        overrides: {data.stream.init_args.mpp: [0.5]}     # at both scales
        paper: {recipe: ssl/dinov2_vits16.yaml}           # at one of them
      "tiny": {only: pocket}                              # a run of one scale

Reading is all that happens here. After: planning.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from experiments.errors import ExperimentError

Scale = Literal["pocket", "paper"]
Kind = Literal["table", "relation", "segmentation"]
Expectation = Literal["above", "not_falling", "faster", "falls_with_odcorr"]

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
EXPERIMENTS = CONFIGS / "experiments"
RANDOM, COLOUR = "random", "colour"

_RUN_KEYS = {"recipe", "overrides", "start", "row", "only", "pocket", "paper"}
_KEYS = {"title", "source", "kind", "pocket", "paper", "runs", "models", "expected"}
_SCALE_KEYS = {"recipe", "overrides", "tasks", "curves", "note", "options", "also"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Weights that a run begins from: what another run had after a share of its steps (1: its last checkpoint)."""

    run: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One pre-training.

    Attributes:
        name: of its row in the table.
        recipe: the config of `configs` that it is made of.
        config: all of its config but the places on this machine and the seed.
        start: which run it begins from, None for the weights that the config says.
        row: whether it is a row of the table; a first phase is none.
        changes: dotted argument to value: what it differs in from the recipe.
    """

    name: str
    recipe: str
    config: dict[str, Any]
    start: Start | None = None
    row: bool = True
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A backbone that is not trained here.

    Attributes:
        name: of its row.
        backbone: for `fm-eval --backbone`.
        options: further words of the command.
        file: what has to lie in the folder of weights: a state dict, or a folder, which then is the backbone; None if
            it needs none.
        where: the public place of that.
    """

    name: str
    backbone: str
    options: tuple[str, ...] = ()
    file: str | None = None
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A direction that the paper, or common sense, expects.

    Attributes:
        text: in words.
        kind: how it is judged; see `outcome`.
        rows: the rows that it is about, in order; empty for all runs.
        than: the row they are held against.
        tasks: the tasks it is expected on; empty for all.
    """

    text: str
    kind: Expectation
    rows: tuple[str, ...] = ()
    than: str | None = None
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One number of the paper."""

    row: str
    task: str
    value: float
    std: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One of the paper's experiments at one scale.

    Attributes:
        name: of its folder.
        title: what it is about.
        source: which table or figure of the paper.
        kind: `table` (probes of all runs), `relation` (numbers of all checkpoints against one another) or
            `segmentation`.
        scale: `pocket` or `paper`.
        runs: that are trained, in order: what one starts from comes before it.
        models: that are evaluated as they are.
        tasks: what is measured on, names of `configs/eval` or of the sample tasks; the first is the headline.
        curves: tasks of the learning curves, if there are any.
        expected: what the report judges.
        published: the paper's numbers.
        options: further words of `fm-eval segment`.
        also: experiments whose finished runs take part too.
        note: what the reader has to know of this scale.
    """

    name: str
    title: str
    source: str
    kind: Kind
    scale: Scale
    runs: tuple[Run, ...]
    models: tuple[Model, ...]
    tasks: tuple[str, ...]
    curves: tuple[str, ...]
    expected: tuple[Expected, ...]
    published: tuple[Published, ...]
    options: tuple[str, ...]
    also: tuple[str, ...]
    note: str


def experiment_names() -> list[str]:
    """The experiments there are."""
    return sorted(path.parent.name for path in EXPERIMENTS.glob("*/experiment.yaml"))


def running_order(scale: Scale) -> list[str]:
    """The same; those that take in what others trained come last, and find as much when all are run again."""
    return sorted(experiment_names(), key=lambda name: bool(read_experiment(name, scale).also))


def read_scale(scale: Scale) -> dict[str, Any]:
    """What all experiments share at a scale."""
    return _mapping(EXPERIMENTS / f"{scale}.yaml")


def read_experiment(name: str, scale: Scale) -> Experiment:
    """Read an experiment as it is at one scale.

    Raises:
        ExperimentError: no such experiment, or a file that does not say what it has to.
    """
    path = EXPERIMENTS / name / "experiment.yaml"
    if not path.is_file():
        raise ExperimentError(f"experiment {name!r}: not known; allowed are {', '.join(experiment_names())}")
    content = _mapping(path)
    _check_keys(path, content, _KEYS, needed=("title", "source"))
    shared, own = read_scale(scale), content.get(scale) or {}
    _check_keys(path, own, _SCALE_KEYS)
    common = {**shared.get("overrides", {}), **own.get("overrides", {})}
    runs = tuple(
        _run(path, str(run), given or {}, scale, recipe=own.get("recipe", shared["recipe"]), common=common)
        for run, given in (content.get("runs") or {}).items()
        if (given or {}).get("only", scale) == scale
    )
    models = _models(path, {**(content.get("models") or {}), **(shared.get("models") or {})}, scale)
    rows = {*(run.name for run in runs), *(model.name for model in models), RANDOM}
    kind = content.get("kind", "table")
    if kind not in get_args(Kind):
        raise ExperimentError(f"{path}: kind {kind!r}, allowed are {', '.join(get_args(Kind))}")
    return Experiment(
        name=name,
        title=str(content["title"]),
        source=str(content["source"]),
        kind=kind,
        scale=scale,
        runs=runs,
        models=models,
        tasks=tuple(own.get("tasks", shared.get("tasks", ()))),
        curves=tuple(own.get("curves", ())),
        # What names a row of the other scale is expected there.
        expected=tuple(
            one
            for one in (_expected(path, each) for each in content.get("expected") or [])
            if {*one.rows, one.than or RANDOM} <= rows
        ),
        published=read_published(path.with_name("published.csv")),
        options=tuple(_option(str(word)) for word in own.get("options", ())),
        also=tuple(own.get("also", ())),
        note=str(own.get("note", "")).strip(),
    )


def read_published(path: Path) -> tuple[Published, ...]:
    """The numbers of a `published.csv`: row,task,value,std."""
    if not path.is_file():
        return ()
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(
            Published(
                row=line["row"],
                task=line["task"],
                value=float(line["value"]),
                std=float(line["std"]) if line["std"] else None,
            )
            for line in csv.DictReader(file)
        )


def with_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config in which dotted arguments have other values.

    Raises:
        ExperimentError: an argument lies below a value that has none.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    for name, value in overrides.items():
        *parents, last = name.split(".")
        place = changed
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ExperimentError(f"override {name}: {parent} is {place!r} in the recipe and has no arguments")
        place[last] = copy.deepcopy(value)
    return changed


def _run(path: Path, name: str, given: dict[str, Any], scale: Scale, *, recipe: str, common: Mapping[str, Any]) -> Run:
    _check_keys(path, given, _RUN_KEYS)
    own = given.get(scale) or {}
    _check_keys(path, own, _RUN_KEYS)
    recipe = own.get("recipe", given.get("recipe", recipe))
    changes = {**common, **(given.get("overrides") or {}), **(own.get("overrides") or {})}
    start = own.get("start", given.get("start"))
    return Run(
        name=name,
        recipe=recipe,
        config=with_overrides(_mapping(CONFIGS / recipe), changes),
        start=None if start is None else Start(run=str(start["run"]), share=float(start["share"])),
        row=bool(given.get("row", True)),
        changes=changes,
    )


def _models(path: Path, given: Mapping[str, Any], scale: Scale) -> tuple[Model, ...]:
    models = []
    for name, content in given.items():
        _check_keys(path, content, {"backbone", "options", "file", "where", "only"}, needed=("backbone",))
        if content.get("only", scale) == scale:
            options = tuple(map(str, content.get("options", ())))
            file, where = content.get("file"), str(content.get("where", ""))
            models.append(Model(name=str(name), backbone=content["backbone"], options=options, file=file, where=where))
    return tuple(models)


def _expected(path: Path, content: Mapping[str, Any]) -> Expected:
    _check_keys(path, content, {"text", "kind", "rows", "than", "tasks"}, needed=("text", "kind"))
    if content["kind"] not in get_args(Expectation):
        raise ExperimentError(f"{path}: expected {content['kind']!r}, allowed are {', '.join(get_args(Expectation))}")
    return Expected(
        text=content["text"],
        kind=content["kind"],
        rows=tuple(map(str, content.get("rows", ()))),
        than=content.get("than"),
        tasks=tuple(content.get("tasks", ())),
    )


def _option(word: str) -> str:
    """A word of a command line; what lies in `configs` is found from wherever the command is started."""
    return str(CONFIGS.parent / word) if word.startswith("configs/") else word


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path}: not a readable YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ExperimentError(f"{path}: holds no mapping")
    return content


def _check_keys(path: Path, content: Mapping[str, Any], allowed: set[str], *, needed: Sequence[str] = ()) -> None:
    other = sorted(set(map(str, content)) - allowed)
    if other:
        raise ExperimentError(f"{path}: {other[0]!r} is not known here; allowed are {', '.join(sorted(allowed))}")
    missing = [name for name in needed if name not in content]
    if missing:
        raise ExperimentError(
            f"{path}: {missing[0]!r} is missing beside {', '.join(sorted(map(str, content)))}; add it"
        )
