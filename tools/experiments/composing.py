"""How does an experiment come together? Its commands, then what they found.

What needs no training is evaluated first, so that a mistake in the data shows within seconds; then every run is trained
and evaluated, and its exports are watched where curves are asked for. The three kinds of experiment differ in what
stands at the end: a table of probes, a table of decoders, or a cloud of all checkpoints.

Before: definition, material, planning, working, outcome. After: writing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiments.definition import RANDOM, Experiment, Model, read_experiment
from experiments.errors import ExperimentError
from experiments.material import Material
from experiments.missing import missing_task, missing_weights
from experiments.outcome import (
    Cell,
    Point,
    cell_of,
    judge,
    read_curve,
    read_dice,
    read_label_free,
    read_scores,
)
from experiments.planning import (
    Evaluation,
    Fit,
    Places,
    Step,
    Task,
    plan_curves,
    plan_fits,
    plan_initial,
    plan_initial_evaluation,
    plan_model,
    plan_segmentation,
    plan_trained_evaluation,
)
from experiments.tp53 import TP53, plan_tp53
from experiments.working import do_steps, is_done
from experiments.writing import Outcome


@dataclass(slots=True)
class _Seed:
    """The commands of one training seed.

    Attributes:
        fits: trainings by run.
        steps: everything, in order.
        evaluations: by row.
        curves: table of `fm-eval watch` by row.
        segmentations: result by row.
    """

    fits: dict[str, Fit]
    steps: list[Step] = field(default_factory=list)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    curves: dict[str, Path] = field(default_factory=dict)
    segmentations: dict[str, Path] = field(default_factory=dict)


def run_experiment(experiment: Experiment, material: Material, places: Places, *, seeds: int, lock: int) -> Outcome:
    """Do what is missing of an experiment and collect what it found.

    Args:
        experiment: what to do.
        material: slides and labelled images.
        places: of this machine.
        seeds: training seeds, 0 to seeds - 1.
        lock: descriptor of the folder's lock.

    Raises:
        ExperimentError: data, slides or weights are missing and nothing can be done without them.
        StepFailedError: a command failed.
    """
    if experiment.kind == "segmentation":
        return _segmentation(experiment, material, places, seeds=seeds, lock=lock)
    models, missing = _usable_models(experiment, places)
    tasks, missing_tasks = _tasks(experiment, material, places, lock)
    missing += missing_tasks
    if not any(name in tasks for name in experiment.tasks):
        raise ExperimentError(f"{experiment.name}: no task has its data on disk. " + " ".join(missing_tasks))
    if not models and not experiment.runs:
        raise ExperimentError(f"{experiment.name}: no model has its weights on disk. " + " ".join(missing))
    by_seed = [_plan(experiment, models, tasks, places, seed) for seed in range(seeds)]
    also = _at_hand(experiment, places, tasks, seeds)
    _check_machines(experiment, by_seed)
    do_steps([step for plan in [*by_seed, *also] for step in plan.steps], material, lock)
    return _collect(experiment, by_seed, also, tasks, missing)


def _plan(
    experiment: Experiment, models: Iterable[Model], tasks: Mapping[str, Task], places: Places, seed: int
) -> _Seed:
    """All commands of one seed."""
    plan = _Seed(plan_fits(experiment, places, seed))
    table = [tasks[name] for name in experiment.tasks if name in tasks]
    watched = [tasks[name] for name in experiment.curves if name in tasks]
    is_table = experiment.kind == "table"
    for model in models:
        plan.evaluations[model.name] = plan_model(model, tasks=table, places=places, seed=seed)
    if plan.fits and (is_table or experiment.tasks):
        first = next(iter(plan.fits.values()))
        plan.steps.append(plan_initial(first))
        plan.evaluations[RANDOM] = plan_initial_evaluation(first, tasks=table, places=places, seed=seed)
    plan.steps += [evaluation.step for evaluation in plan.evaluations.values()]
    for run in experiment.runs:
        fit = plan.fits[run.name]
        plan.steps.append(fit.step)
        if not run.row:
            continue
        if is_table:
            plan.evaluations[run.name] = plan_trained_evaluation(fit, tasks=table, places=places, seed=seed)
            plan.steps.append(plan.evaluations[run.name].step)
        if watched:
            step, plan.curves[run.name] = plan_curves(fit, tasks=watched, places=places, seed=seed)
            plan.steps.append(step)
    return plan


def _check_machines(experiment: Experiment, plans: Iterable[_Seed]) -> None:
    """A training on several machines is started on each of them, which is not done from here."""
    for plan in plans:
        for run in experiment.runs:
            fit = plan.fits[run.name]
            if fit.machines > 1 and not is_done(fit.step):
                raise ExperimentError(
                    f"run {run.name!r}: asks for {fit.machines} machines; write its config with --plan, start it on "
                    f"each as the head of configs/{run.recipe} shows, and run this again when it is done"
                )


def _at_hand(experiment: Experiment, places: Places, tasks: Mapping[str, Task], seeds: int) -> list[_Seed]:
    """Curves of other experiments' runs that are finished; nothing is trained for it."""
    known = {fit.key for seed in range(seeds) for fit in plan_fits(experiment, places, seed).values()}
    watched = [tasks[name] for name in experiment.curves if name in tasks]
    plans = []
    for name in experiment.also:
        other = read_experiment(name, experiment.scale)
        for seed in range(seeds):
            plan = _Seed(plan_fits(other, places, seed))
            for run in other.runs:
                fit = plan.fits[run.name]
                if fit.key not in known and is_done(fit.step) and run.row:
                    row = f"{name}: {run.name}"
                    step, plan.curves[row] = plan_curves(fit, tasks=watched, places=places, seed=seed)
                    plan.steps.append(step)
                    known.add(fit.key)
            plans.append(plan)
    return plans


def _tasks(experiment: Experiment, material: Material, places: Places, lock: int) -> tuple[dict[str, Task], list[str]]:
    """The tasks whose data is on disk, made where they are painted, and what is said of the others."""
    names = dict.fromkeys([*experiment.tasks, *experiment.curves])
    found: dict[str, Task] = {}
    missing = []
    for name in names:
        if name == TP53:
            steps, task, lacks = plan_tp53(material, places)
            missing += [lacks] if lacks else []
            if task is not None:
                do_steps(steps, material, lock)
                found[name] = task
        elif experiment.scale == "pocket":
            material.make_tissue()
            found[name] = material.sample_task(name)
        else:
            task = material.paper_task(name)
            if task is None:
                missing.append(missing_task(name, material.data))
            else:
                found[name] = task
    return found, missing


def _usable_models(experiment: Experiment, places: Places) -> tuple[list[Model], list[str]]:
    usable, missing = [], []
    for model in experiment.models:
        if model.file is None or (places.weights is not None and (places.weights / model.file).exists()):
            usable.append(model)
        else:
            missing.append(missing_weights(model, places.weights))
    return usable, missing


def _collect(
    experiment: Experiment, by_seed: list[_Seed], also: list[_Seed], tasks: Mapping[str, Task], missing: list[str]
) -> Outcome:
    rows = list(by_seed[0].evaluations)
    names = [name for name in experiment.tasks if name in tasks]
    cells: dict[tuple[str, str], Cell] = {}
    for row in rows:
        for task in names:
            scores = [read_scores(plan.evaluations[row].results[task]) for plan in by_seed]
            inner = "probe runs" if tasks[task].content.get("folds") is None else "folds"
            cells[row, task] = cell_of(scores, inner=inner)
    points = [
        point
        for number, plan in enumerate([*by_seed, *also])
        for row, path in plan.curves.items()
        for point in read_curve(path, row=row, seed=number % len(by_seed))
    ]
    if experiment.kind == "relation":
        points += [
            _point(row, seed, task, evaluation)
            for seed, plan in enumerate(by_seed)
            for row, evaluation in plan.evaluations.items()
            for task in names
        ]
    runs = [run.name for run in experiment.runs if run.row]
    judged_tasks = names or list(dict.fromkeys(point.task for point in points))
    judgements = judge(experiment.expected, cells, points, rows=runs, tasks=judged_tasks)
    return Outcome(
        experiment=experiment,
        seeds=len(by_seed),
        rows=rows,
        tasks=names,
        cells=cells,
        points=points,
        judgements=judgements,
        missing=missing,
        results=_shown_in_report(by_seed, tasks, names),
    )


def _shown_in_report(by_seed: list[_Seed], tasks: Mapping[str, Task], names: list[str]) -> list[tuple[str, Path]]:
    """Result files of the headline task; folds are data sets of their own, which one page does not average."""
    if not names or tasks[names[0]].content.get("folds") is not None:
        return []
    return [
        (row, path)
        for plan in by_seed
        for row, evaluation in plan.evaluations.items()
        for path in evaluation.results[names[0]]
    ]


def _point(row: str, seed: int, task: str, evaluation: Evaluation) -> Point:
    paths = evaluation.results[task]
    mean, _ = read_scores(paths)
    odcorr, rankme = read_label_free(paths)
    return Point(row=row, seed=seed, step=0, task=task, balanced_accuracy=mean, std=None, odcorr=odcorr, rankme=rankme)


def _segmentation(experiment: Experiment, material: Material, places: Places, *, seeds: int, lock: int) -> Outcome:
    """Decoders on the tokens of every run and of its weights before the first step."""
    (name,) = experiment.tasks
    if experiment.scale == "pocket":
        data, data_key = material.make_nuclei(), material.sample_folder.name
    else:
        task = material.paper_task(name)
        if task is None:
            raise ExperimentError(f"{experiment.name}: no data. {missing_task(name, material.data)}")
        data, data_key = Path(task.content["data"]), task.data_key
    plans = [_plan_segmentation(experiment, places, data, data_key, seed) for seed in range(seeds)]
    _check_machines(experiment, plans)
    do_steps([step for plan in plans for step in plan.steps], material, lock)
    return _collect_segmentation(experiment, plans, name)


def _plan_segmentation(experiment: Experiment, places: Places, data: Path, data_key: str, seed: int) -> _Seed:
    """All commands of one seed."""
    plan = _Seed(plan_fits(experiment, places, seed))
    for run in experiment.runs:
        fit = plan.fits[run.name]
        plan.steps.append(fit.step)
        if not run.row:
            continue
        plan.steps.append(plan_initial(fit))
        backbones = {RANDOM: (fit.folder / "initial", f"{fit.key} initial"), run.name: (fit.export_at(1), fit.key)}
        for row, (backbone, key) in backbones.items():
            step, plan.segmentations[row] = plan_segmentation(
                backbone,
                key=key,
                data=data,
                data_key=data_key,
                name=row,
                places=places,
                options=experiment.options,
                seed=seed,
            )
            plan.steps.append(step)
    return plan


def _collect_segmentation(experiment: Experiment, plans: list[_Seed], name: str) -> Outcome:
    cells: dict[tuple[str, str], Cell] = {}
    missing = []
    for row in plans[0].segmentations:
        dice = [read_dice(plan.segmentations[row]) for plan in plans]
        known = [(mean, values) for mean, values in dice if mean is not None]
        if known:
            cells[row, name] = cell_of(known, inner="decoders that converged")
        missing += [f"{row}, seed {seed}: no decoder converged" for seed, one in enumerate(dice) if one[0] is None]
    runs = [run.name for run in experiment.runs if run.row]
    return Outcome(
        experiment=experiment,
        seeds=len(plans),
        rows=list(plans[0].segmentations),
        tasks=[name],
        cells=cells,
        points=[],
        judgements=judge(experiment.expected, cells, [], rows=runs, tasks=[name]),
        metric="DICE without background, pixels pooled",
        missing=missing,
        results=[pair for plan in plans for pair in plan.segmentations.items()],
    )
