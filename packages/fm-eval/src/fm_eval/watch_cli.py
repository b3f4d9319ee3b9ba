"""The command `fm-eval watch`: a folder of checkpoints in, learning curves out."""

from __future__ import annotations

from pathlib import Path

from jsonargparse.typing import Path_fr

from fm_eval.backbone import Pooling
from fm_eval.cache import cache_folder
from fm_eval.datasets import SplitChoice
from fm_eval.embed import Precision
from fm_eval.errors import ResultError
from fm_eval.run_heads import HeadName
from fm_eval.task import BackboneSettings, MachineSettings, Task, listed_tasks
from fm_eval.watch import Until, Watch

_INTERRUPTED = 130


def watch(
    folder: str,
    *,
    data: str | None = None,
    tasks: list[Path_fr] | None = None,
    data_root: str = ".",
    output: str = "watch",
    name: str | None = None,
    role: str = "trained",
    layout: str = "auto",
    split: SplitChoice = "given",
    split_seed: int = 0,
    folds: int | None = None,
    protocol: str | list[str] | None = None,
    pooling: Pooling | None = None,
    input_size_px: int | None = None,
    seed: int = 0,
    heads: list[HeadName] | None = None,
    resamples: int = 1000,
    k: int = 20,
    batch_size: int = 64,
    device: str = "cpu",
    threads: int = 4,
    precision: Precision = "fp32",
    cache: str = "auto",
    progress: bool = False,
    once: bool = False,
    until_step: int | None = None,
    max_checkpoints: int | None = None,
    budget_seconds: float | None = None,
    idle_seconds: float | None = None,
    poll_seconds: float = 10.0,
) -> int:
    """Evaluate each checkpoint folder as it appears and keep learning curves.

    Args:
        folder: where checkpoint folders appear, for example by `exports: {folder: ...}` of a training; may come later.
        data: folder of a dataset in its public layout, or an index CSV (path,label,group_id[,split]).
        tasks: instead of data, YAML files of tasks.
        data_root: folder that a relative `data` of a task is below.
        output: folder of results and curves; the same command goes on there.
        name: of the curve; the folder's by default.
        role: of the results.
        layout: auto, index, bach, crc, mhist, pcam, cifar10, cifar100 or food101.
        split: given (or else made), group (made, groups whole), image (made by image: leaks).
        split_seed: of a split or folds that are made.
        folds: cross-validation over groups with this many folds instead of one split.
        protocol: paper-standardized (default), paper, eva-0.0.2, eva-0.4, or a list (the first is the curve's).
        pooling: cls, cls+mean or mean.
        input_size_px: another input size than the model's own.
        seed: of probe heads and orders.
        heads: beside the linear probe and k-NN: simpleshot (the default), few-shot, logistic.
        resamples: of the bootstrap behind the intervals; 0 leaves them out.
        k: neighbours of k-NN.
        batch_size: images a forward pass.
        device: cpu, cuda, ...
        threads: threads that decode images.
        precision: of the backbone.
        cache: folder that keeps digests of images, auto (below ~/.cache) or none.
        progress: show progress bars.
        once: evaluate what is there now and end.
        until_step: end when a checkpoint of at least so many steps is evaluated.
        max_checkpoints: end when so many are evaluated.
        budget_seconds: begin no evaluation when so much time was spent on evaluating.
        idle_seconds: end when nothing new was seen for so long.
        poll_seconds: between two looks at the folder.
    """
    if (data is None) == (tasks is None):
        raise ResultError("watch: give either data or tasks")
    path = Path(data or "")
    task = Task(
        name=(path.parent if path.suffix else path).resolve().name,
        data=data or "",
        layout=layout,
        split=split,
        split_seed=split_seed,
        folds=folds,
        protocol=protocol,
        heads=heads,
        resamples=resamples,
        k=k,
    )
    listed = [task] if tasks is None else listed_tasks([Path(str(path.absolute)) for path in tasks], task)
    one = Watch(
        folder=Path(folder),
        output=Path(output),
        name=name or Path(folder).resolve().name,
        tasks=listed,
        model=BackboneSettings(pooling=pooling, input_size_px=input_size_px, seed=seed, role=role),
        machine=MachineSettings(
            batch_size=batch_size,
            device=device,
            threads=threads,
            precision=precision,
            cache=cache_folder(cache),
            progress=progress,
        ),
        data_root=Path(data_root) if tasks is not None else Path(),
        until=Until(
            once=once,
            step=until_step,
            checkpoints=max_checkpoints,
            budget_seconds=budget_seconds,
            idle_seconds=idle_seconds,
            poll_seconds=poll_seconds,
        ),
    )
    try:
        for line in one.run():
            print(line, flush=True)
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on where it was -> {output}")
        return _INTERRUPTED
    for checkpoint, reason in one.failed.items():
        print(f"failed  {checkpoint}: {reason}")
    return 1 if one.failed else 0
