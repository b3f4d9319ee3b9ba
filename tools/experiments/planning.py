"""Which commands make an experiment, and where do their results lie?

Nothing is read or run here. A run's folder is named by a digest of all that decides its weights (config, seed, slides,
versions of the packages), an evaluation's folder by the model, the tasks and the seed: experiments that need the same
run share it, and what is there is never made again.

1. ``plan_fit``: `run.yaml` and `ssl-train fit`, which exports the teacher as it goes; `plan_initial`: its weights
   before the first step.
2. ``plan_evaluation``: `fm-eval run` on all tasks; ``plan_curves``: `fm-eval watch` over a run's exports;
   ``plan_segmentation``: `fm-eval segment`.

Before: definition. After: working, which carries steps out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from job_steps import COLOUR_PROBE

from experiments.definition import COLOUR, RANDOM, Experiment, Model, Run, with_overrides
from experiments.errors import ExperimentError

_STREAM = "data.stream.init_args"
_MODEL = "model.init_args"
# Of the JSON files that `fm-eval run` writes: the folder of a backbone and, with folds, one file each.
_RESULTS = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task of `fm-eval run` on this machine.

    Attributes:
        name: of its YAML file.
        content: of that file, with the place of the data.
        data_key: of what decides the data's pixels and labels.
    """

    name: str
    content: dict[str, Any]
    data_key: str

    @property
    def result_names(self) -> list[str]:
        """The result files of one backbone."""
        folds = self.content.get("folds")
        return [f"{self.name}.json"] if folds is None else [f"{self.name}.fold{n}.json" for n in range(folds)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where things lie, and what decides their content.

    Attributes:
        root: folder of the scale; everything below is made.
        catalog: path or URL of the slides' catalog.
        catalog_key: of what decides its patches.
        versions: of the packages.
        weights: folder with the weights of others; None if there is none.
        device: of the evaluations.
    """

    root: Path
    catalog: str
    catalog_key: str
    versions: Mapping[str, str] = field(default_factory=dict)
    weights: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command.

    Attributes:
        words: the command line.
        done: files that exist when it is done; each is written whole or not at all.
        mark: a further one, empty, that is made when the command has ended well: for a command of whose own files none
            is only ever written at its end.
        files: written before it starts.
        resume: a checkpoint that it goes on from, where that exists.
        otherwise: a command that writes what the first one has no more reason to; a training that was stopped between
            its last checkpoint and its last export has no step left.
        reads_slides: whether the slides have to be within reach.
    """

    words: tuple[str, ...]
    done: tuple[Path, ...]
    files: Mapping[Path, str] = field(default_factory=dict)
    resume: Path | None = None
    otherwise: tuple[str, ...] = ()
    reads_slides: bool = False
    mark: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A pre-training of one seed.

    Attributes:
        key: digest of all that decides its weights.
        folder: of the run.
        step: that does it.
        max_steps: optimizer steps.
        machines: that it asks for.
    """

    key: str
    folder: Path
    step: Step
    max_steps: int
    machines: int

    @property
    def exports(self) -> Path:
        """The folder of its checkpoint folders."""
        return self.folder / "exports"

    def export_at(self, share: float) -> Path:
        """The checkpoint folder after a share of the steps."""
        return self.exports / f"step-{round(self.max_steps * share):08d}"

    @property
    def checkpoint(self) -> Path:
        """The last training checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One backbone on all tasks.

    Attributes:
        step: that does it.
        results: result files by task.
    """

    step: Step
    results: Mapping[str, tuple[Path, ...]]


def digest(content: Any) -> str:
    """Twelve hexadecimal digits of a JSON-able value."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plan_fits(experiment: Experiment, places: Places, seed: int) -> dict[str, Fit]:
    """The pre-trainings of an experiment by run, in an order in which they can be done.

    Raises:
        ExperimentError: a run starts from one that does not come before it.
    """
    fits: dict[str, Fit] = {}
    for run in experiment.runs:
        if run.start is not None and run.start.run not in fits:
            raise ExperimentError(f"{experiment.name}: run {run.name!r} starts from {run.start.run!r}, not before it")
        fits[run.name] = plan_fit(run, places, seed, None if run.start is None else fits[run.start.run])
    return fits


def run_config(run: Run, *, seed: int, catalog: str) -> dict[str, Any]:
    """The config of a run with its seed and catalog, but no place that it writes to."""
    return with_overrides(run.config, {"seed_everything": seed, f"{_STREAM}.seed": seed, f"{_STREAM}.catalog": catalog})


def plan_fit(run: Run, places: Places, seed: int, before: Fit | None) -> Fit:
    """One pre-training.

    Args:
        run: what is trained.
        places: of this machine.
        seed: of weights, crops and patches.
        before: the run that it starts from.
    """
    max_steps = int(run.config["trainer"]["max_steps"])
    assert (run.start is None) == (before is None), "who plans the runs passes what one starts from"
    origin = None if run.start is None or before is None else [before.key, run.start.share]
    content = run_config(run, seed=seed, catalog=places.catalog_key)
    key = digest(["fit", content, origin, dict(places.versions)])
    folder = places.root / "runs" / key
    given: dict[str, Any] = {
        "trainer.default_root_dir": str(folder),
        "exports.folder": str(folder / "exports"),
    }
    if run.start is not None and before is not None:
        whole = run.start.share == 1
        given[f"{_MODEL}.init_weights"] = str(before.checkpoint if whole else before.export_at(run.start.share))
    if "cache" in content["data"]["stream"]["init_args"]:
        given[f"{_STREAM}.cache"] = str(places.root / "patch_cache")
    config = with_overrides(run_config(run, seed=seed, catalog=places.catalog), given)
    text = f"# {run.name}: {run.recipe} with what an experiment changes\n" + yaml.safe_dump(config, sort_keys=False)
    checkpoint, last = folder / "checkpoints" / "last.ckpt", folder / "exports" / f"step-{max_steps:08d}"
    given_config = ("--config", str(folder / "run.yaml"))
    step = Step(
        words=("ssl-train", "fit", *given_config),
        done=(last / "backbone.json",),
        files={folder / "run.yaml": text},
        resume=checkpoint,
        otherwise=("ssl-train", "export", *given_config, "--ckpt_path", str(checkpoint), "--output", str(last)),
        reads_slides=True,
    )
    machines = int(run.config["trainer"].get("num_nodes", 1))
    return Fit(key=key, folder=folder, step=step, max_steps=max_steps, machines=machines)


def plan_initial(fit: Fit) -> Step:
    """The weights of a run before its first step."""
    output = fit.folder / "initial"
    words = ("ssl-train", "export", "--config", str(fit.folder / "run.yaml"), "--output", str(output))
    return Step(words=words, done=(output / "backbone.json",), files=fit.step.files)


def plan_evaluation(
    backbone: str,
    *,
    key: str,
    tasks: Sequence[Task],
    places: Places,
    seed: int,
    role: str,
    options: Sequence[str] = (),
) -> Evaluation:
    """One backbone on all tasks, in one command.

    Args:
        backbone: for `fm-eval --backbone`.
        key: of what decides its weights.
        tasks: at least one.
        places: of this machine.
        seed: of probes, and of random weights.
        role: `random` and `colour` are what others are held against.
        options: further words.
    """
    identity = ["run", key, [[task.content, task.data_key] for task in tasks], seed, list(options)]
    folder = places.root / "evaluations" / digest([*identity, dict(places.versions)])
    results = {task.name: tuple(folder / _RESULTS / name for name in task.result_names) for task in tasks}
    files = {folder / "tasks" / f"{task.name}.yaml": yaml.safe_dump(task.content) for task in tasks}
    words = (
        *("fm-eval", "run", "--tasks", json.dumps([str(path) for path in files]), "--backbone", backbone),
        *("--name", _RESULTS, "--role", role, f"--seed={seed}", "--device", places.device, *options),
        *("--cache", str(places.root / "embeddings"), "--output", str(folder)),
    )
    done = tuple(path for paths in results.values() for path in paths)
    return Evaluation(step=Step(words=words, done=done, files=files), results=results)


def plan_model(model: Model, *, tasks: Sequence[Task], places: Places, seed: int) -> Evaluation:
    """The evaluation of a backbone that is not trained here."""
    options = list(model.options)
    backbone = model.backbone
    if model.file is not None:
        assert places.weights is not None, "models whose weights are missing are left out before"
        file = places.weights / model.file
        if file.is_dir():
            backbone = str(file)
        else:
            options += ["--weights", str(file)]
    role = {COLOUR_PROBE: COLOUR}.get(model.backbone, model.name)
    return plan_evaluation(
        backbone, key=digest([backbone, options]), tasks=tasks, places=places, seed=seed, role=role, options=options
    )


def plan_initial_evaluation(fit: Fit, *, tasks: Sequence[Task], places: Places, seed: int) -> Evaluation:
    """The evaluation of a run's weights before its first step."""
    initial = str(fit.folder / "initial")
    return plan_evaluation(initial, key=f"{fit.key} initial", tasks=tasks, places=places, seed=seed, role=RANDOM)


def plan_trained_evaluation(fit: Fit, *, tasks: Sequence[Task], places: Places, seed: int) -> Evaluation:
    """The evaluation of a run's weights after its last step."""
    last = str(fit.export_at(1))
    return plan_evaluation(last, key=fit.key, tasks=tasks, places=places, seed=seed, role="trained")


def plan_curves(fit: Fit, *, tasks: Sequence[Task], places: Places, seed: int) -> tuple[Step, Path]:
    """The evaluation of all exports of a run, and the table of learning curves that it writes."""
    identity = ["watch", fit.key, [[task.content, task.data_key] for task in tasks], seed, dict(places.versions)]
    folder = places.root / "evaluations" / digest(identity)
    files = {folder / "tasks" / f"{task.name}.yaml": yaml.safe_dump(task.content) for task in tasks}
    words = (
        *("fm-eval", "watch", str(fit.exports), "--tasks", json.dumps([str(path) for path in files])),
        *("--once", "true", "--name", fit.key, f"--seed={seed}", "--device", places.device),
        *("--cache", str(places.root / "embeddings"), "--output", str(folder / "curves")),
    )
    last = folder / "curves" / "results" / fit.export_at(1).name
    done = (*(last / name for task in tasks for name in task.result_names), folder / "curves" / "curves.csv")
    # The table is there from the start and rewritten after each checkpoint; nothing in a name tells the last one.
    return Step(words=words, done=done, files=files, mark=folder / "finished"), folder / "curves" / "curves.csv"


def plan_segmentation(
    backbone: Path, *, key: str, data: Path, data_key: str, name: str, places: Places, options: Sequence[str], seed: int
) -> tuple[Step, Path]:
    """A light decoder on a backbone's tokens, and its result file."""
    identity = ["segment", key, data_key, list(options), seed, dict(places.versions)]
    folder = places.root / "evaluations" / digest(identity)
    words = (
        # A config among the options comes first: what is given after it counts.
        *("fm-eval", "segment", *options, "--data", str(data), "--backbone", str(backbone), "--name", name),
        *("--role", name, f"--seed={seed}", "--device", places.device, "--output", str(folder)),
    )
    return Step(words=words, done=(folder / "result.json",)), folder / "result.json"
