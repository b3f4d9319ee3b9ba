"""What does one task of a benchmark ask, and what becomes of one backbone on it?

A task is a YAML file with what belongs to the dataset: where it is, in which layout, how it is divided, by which
protocols. What belongs to the backbone and to the machine comes from whoever runs the task, so that the same file
serves every model. Before: datasets, loading, evaluate. After: benchmark, cli.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import yaml

from fm_eval.atomic import replace_file
from fm_eval.backbone import LoadedBackbone, Pooling
from fm_eval.datasets import PatchDataset, SplitChoice, load_dataset, load_folds
from fm_eval.embed import Precision
from fm_eval.errors import BackboneError, DatasetError, ResultError
from fm_eval.evaluate import EvalSettings, evaluate
from fm_eval.loading import load_backbone
from fm_eval.protocol import ProbeProtocol, get_protocol
from fm_eval.result import EvalResult, write_result
from fm_eval.run_heads import HeadName

DEFAULT_PROTOCOL = "paper-standardized"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What belongs to the dataset.

    Attributes:
        name: of the result file.
        data: folder or index CSV.
        layout: see `load_dataset`.
        split: see `load_dataset`.
        split_seed: of a split or folds that are made.
        folds: cross-validate over groups with this many folds; None uses the split.
        protocol: name or names; None is the default one.
        heads: beside the linear probe and k-NN; None is the default of `EvalSettings`.
        resamples: of the bootstrap intervals.
        k: neighbours of k-NN.
    """

    name: str
    data: str
    layout: str = "auto"
    split: SplitChoice = "given"
    split_seed: int = 0
    folds: int | None = None
    protocol: str | list[str] | None = None
    heads: list[HeadName] | None = None
    resamples: int = 1000
    k: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSettings:
    """What belongs to the backbone beside its name: see `load_backbone`."""

    weights: str | None = None
    random_weights: bool = False
    pooling: Pooling | None = None
    input_size_px: int | None = None
    args: dict[str, Any] | None = None
    seed: int = 0
    role: str = "trained"

    def load(self, name: str) -> LoadedBackbone:
        """Build the backbone of this name.

        Raises:
            BackboneError: see `load_backbone`; or a folder of weights that has none of this name.
        """
        weights = None if self.weights is None else Path(self.weights)
        if weights is not None and weights.is_dir():
            files = [weights / f"{name}{suffix}" for suffix in (".safetensors", ".pth")]
            weights = next((file for file in files if file.is_file()), None)
            if weights is None:
                raise BackboneError(f"weights {self.weights}: neither {files[0].name} nor {files[1].name} in it")
        return load_backbone(
            name,
            weights=weights,
            random_weights=self.random_weights,
            seed=self.seed,
            pooling=self.pooling,
            input_size_px=self.input_size_px,
            args=self.args,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """What belongs to the machine: see `EmbedSettings`; and where embeddings are kept."""

    batch_size: int = 64
    device: str = "cpu"
    devices: int = 1
    threads: int = 4
    precision: Precision = "fp32"
    cache: Path | None = None
    progress: bool = False


def read_task(path: Path, *, protocol: str | list[str] | None = None) -> Task:
    """Read a task's YAML file.

    Args:
        path: YAML file; the task is named after it.
        protocol: instead of the file's own.

    Raises:
        ResultError: not such a file.
    """
    allowed = {field.name for field in fields(Task)} - {"name"}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ResultError(f"task {path}: not a readable YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), str):
        raise ResultError(f"task {path}: says no data")
    other = sorted(set(map(str, content)) - allowed - {"output"})
    if other:
        raise ResultError(
            f"task {path}: {other[0]!r} does not belong to a task; allowed are {', '.join(sorted(allowed))}; "
            "backbone and machine are given to the run"
        )
    given = {key: value for key, value in content.items() if key in allowed}
    return Task(name=path.stem, **given | ({} if protocol is None else {"protocol": protocol}))


def listed_tasks(files: Sequence[Path], options: Task) -> list[Task]:
    """Read the tasks of a command line that lists their files.

    Args:
        files: YAML files.
        options: what the command line says beside them; only its protocol is for the tasks.

    Raises:
        ResultError: an option that the files would overrule without a word; or a file that is no task.
    """
    plain = Task(name=options.name, data=options.data, protocol=options.protocol)
    names = [field.name for field in fields(Task)]
    idle = [name for name in names if getattr(options, name) != getattr(plain, name)]
    if idle:
        raise ResultError(f"{', '.join(idle)}: given beside tasks, but belong into the files of the tasks")
    return [read_task(path, protocol=options.protocol) for path in files]


def run_task(
    task: Task,
    backbone: str | LoadedBackbone,
    model: BackboneSettings,
    machine: MachineSettings,
    *,
    data_root: Path,
    output: Path,
    name: str | None,
) -> Iterator[str]:
    """Evaluate a backbone on a task and write its results.

    Args:
        task: what to evaluate.
        backbone: name for `load_backbone`, or one that was built already.
        model: what belongs to the backbone.
        machine: what belongs to the machine.
        data_root: folder that relative data is below.
        output: result JSON; with folds, `.foldK` is put before its suffix.
        name: shown in reports; the backbone's by default.

    Yields:
        A line for each thing that is worth saying, when it is known.

    Raises:
        FmEvalError: data, backbone or probe are not usable.
    """
    protocols_of(task)  # a mistake there is said before the data is read
    views = load_views(task, machine, data_root=data_root)
    yield from remarks(views[0])
    loaded = model.load(backbone) if isinstance(backbone, str) else backbone
    shown = name or (default_name(backbone) if isinstance(backbone, str) else "backbone")
    yield from evaluate_views(task, views, loaded, model, machine, output=output, name=shown)


def evaluate_views(
    task: Task,
    views: Sequence[PatchDataset],
    loaded: LoadedBackbone,
    model: BackboneSettings,
    machine: MachineSettings,
    *,
    output: Path,
    name: str,
) -> Iterator[str]:
    """`run_task` on data that was loaded before (`load_views`)."""
    settings = EvalSettings(
        seed=model.seed,
        heads=EvalSettings().heads if task.heads is None else tuple(task.heads),
        resamples=task.resamples,
        k=task.k,
        batch_size=machine.batch_size,
        device=machine.device,
        devices=machine.devices,
        threads=machine.threads,
        precision=machine.precision,
        store=None if machine.cache is None else str(machine.cache),
        progress=machine.progress,
    )
    means = []
    for fold, view in enumerate(views):
        path = output if task.folds is None else fold_path(output, fold)
        result = evaluate(view, loaded, name=name, role=model.role, protocols=protocols_of(task), settings=settings)
        write_result(result, path)
        if view.split_source != "given":
            _write_split(view, path.with_suffix(".split.csv"))
        means.append(result.probes[0].scores[result.reported_split].mean)
        yield _line(result, path)
    if len(means) > 1:
        yield f"{name}: balanced accuracy {fmean(means):.3f} ± {stdev(means):.3f} over {len(means)} folds"


def protocols_of(task: Task) -> list[ProbeProtocol]:
    """The protocols that a task names, the first of which gives the headline.

    Raises:
        ProbeError: an unknown name.
    """
    names = [task.protocol] if isinstance(task.protocol, str) else task.protocol
    return [get_protocol(one) for one in ([DEFAULT_PROTOCOL] if names is None else names)]


def fold_path(output: Path, fold: int) -> Path:
    """Result file of one fold: `.foldK` before the suffix."""
    return output.with_suffix(f".fold{fold}{output.suffix}")


def default_name(backbone: str) -> str:
    """Folder name, timm name, or the class at the end of a class path."""
    last = backbone.split(".")[-1]
    return Path(backbone).name if "/" in backbone or not last[:1].isupper() else last


def load_views(task: Task, machine: MachineSettings, *, data_root: Path) -> list[PatchDataset]:
    """The dataset of a task, once for each fold.

    Raises:
        DatasetError: see `load_dataset` and `load_folds`.
    """
    data = data_root / task.data
    layout, seed, cache, threads = task.layout, task.split_seed, machine.cache, machine.threads
    if task.folds is not None:
        return load_folds(data, layout=layout, folds=task.folds, seed=seed, cache=cache, threads=threads)
    return [load_dataset(data, layout=layout, split=task.split, split_seed=seed, cache=cache, threads=threads)]


def remarks(dataset: PatchDataset) -> Iterator[str]:
    """What is not an error of a dataset, but worth saying."""
    if dataset.published is not None:
        counts = dataset.table["split"].value_counts()
        off = [
            f"{counts.get(split, 0)} images in {split}, published are {count}"
            for split, count in dataset.published.images.items()
            if counts.get(split, 0) != count
        ]
        if off and dataset.split_source == "given":
            yield f"note: {dataset.name} is not the published dataset: {'; '.join(off)}"
    if dataset.groups_across_splits:
        yield f"note: {len(dataset.groups_across_splits)} groups are in more than one split: the numbers flatter"


def _line(result: EvalResult, path: Path) -> str:
    scores = result.probes[0].scores[result.reported_split]
    spread = "" if scores.std is None else f" ± {scores.std:.3f} over {len(scores.balanced_accuracy)} runs"
    return f"{result.name}: {result.reported_split} balanced accuracy {scores.mean:.3f}{spread} -> {path}"


def _write_split(dataset: PatchDataset, path: Path) -> None:
    columns = [name for name in ("path", "label", "group_id", "fold", "split") if name in dataset.table]
    try:
        with replace_file(path) as temporary:
            pd.DataFrame(dataset.table[columns]).to_csv(temporary, index=False)
    except OSError as error:
        raise DatasetError(f"split {path}: cannot be written ({error.strerror or error})") from error
