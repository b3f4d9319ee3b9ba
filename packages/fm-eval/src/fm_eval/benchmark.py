"""How do several backbones do on several tasks?

Each backbone is built once and run on each task; data that is not on disk is skipped, and said to be. A task that
fails does not stop the others; what failed is said again at the end. `benchmark.csv` sums the folder up. After: cli.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from fm_eval.atomic import replace_file
from fm_eval.errors import DatasetNotFoundError, FmEvalError, ResultError
from fm_eval.result import read_result
from fm_eval.task import BackboneSettings, MachineSettings, Task, default_name, run_task


def run_tasks(
    tasks: Sequence[Task],
    backbones: Sequence[str],
    model: BackboneSettings,
    machine: MachineSettings,
    *,
    data_root: Path,
    output: Path,
    name: str | None = None,
) -> Iterator[str]:
    """Run every backbone on every task.

    Args:
        tasks: at least one.
        backbones: names for `load_backbone`, at least one.
        model: what belongs to the backbones.
        machine: what belongs to the machine.
        data_root: folder that relative data is below.
        output: folder; the results of a backbone are in `output/BACKBONE/TASK.json`.
        name: of the only backbone.

    Yields:
        A line for each thing that is worth saying, when it is known.

    Raises:
        FmEvalError: nothing was on disk, or a task or backbone failed.
    """
    if not tasks or not backbones:
        raise ResultError(f"run: got {len(tasks)} tasks and {len(backbones)} backbones, at least one of each needed")
    if output.suffix:
        raise ResultError(f"output {output}: with tasks it is a folder, not a file")
    if name is not None and len(backbones) > 1:
        raise ResultError("run: got a name for several backbones; leave it out")
    skipped: dict[str, str] = {}
    failed: list[str] = []
    done = 0
    for backbone in backbones:
        shown = name or default_name(backbone)
        try:
            loaded = model.load(backbone)
        except FmEvalError as error:
            failed.append(str(error))
            yield f"failed  {shown}: {error}"
            continue
        for task in (task for task in tasks if task.name not in skipped):
            path = output / shown / f"{task.name}.json"
            try:
                for line in run_task(task, loaded, model, machine, data_root=data_root, output=path, name=shown):
                    yield f"{task.name:8} {line}"
                done += task.folds or 1
            except DatasetNotFoundError as error:
                skipped[task.name] = str(error)
                yield f"skipped {task.name}: {error}"
            except FmEvalError as error:
                failed.append(f"{task.name}: {error}")
                yield f"failed  {task.name}: {error}"
    if done:
        _write_summary(output)
    yield f"{done} results -> {output}; skipped: {', '.join(skipped) or 'none'}; failed: {len(failed)}"
    if failed:
        raise ResultError(f"run: {len(failed)} failed, the first: {failed[0]}")
    if not done:
        raise DatasetNotFoundError(f"run: no task has its data on disk; the first: {next(iter(skipped.values()))}")


def _write_summary(output: Path) -> None:
    """One row for each result in the folder, earlier ones too: enough to plot the models against one another."""
    rows = []
    for file in sorted(output.glob("*/*.json")):
        try:
            result = read_result(file)
        except ResultError:  # of another version or program: what was just computed matters more
            continue
        scores = result.probes[0].scores[result.reported_split]
        rows.append(
            {
                "backbone": result.name,
                "task": file.stem,
                "split": result.reported_split,
                "protocol": result.probes[0].protocol["name"],
                "balanced_accuracy": scores.mean,
                "std": scores.std,
                "accuracy": sum(scores.accuracy) / len(scores.accuracy),
                "odcorr": result.unsupervised.odcorr,
                "rankme": result.unsupervised.rankme,
                "seconds": sum(result.seconds.values()),
                "weights_sha256": result.backbone["weights_sha256"],
            }
        )
    try:
        with replace_file(output / "benchmark.csv") as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)
    except OSError as error:
        raise ResultError(f"output {output}: cannot be written ({error.strerror or error})") from error
