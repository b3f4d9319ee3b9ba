"""How does a training's learning curve come about beside it, through a folder alone?

1. look at the folder: checkpoint folders that say they are whole, by step (watch_folder);
2. evaluate each one that has no result of the same weights yet, on a private copy;
3. rewrite the curves after each;
4. end where the user asked for it, else wait and look again.

Everything that was learnt lies in the output folder as results; nothing is kept in memory that a killed watch would
miss. An evaluation that was interrupted is done again from its start: embeddings of a part of it are not kept, since
they would be batched in another way and differ in their last bits. Before: task, curves. After: cli.
"""

from __future__ import annotations

import dataclasses
import fcntl
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fm_eval.backbone import LoadedBackbone
from fm_eval.curves import CurvePoint, points_of, write_curves
from fm_eval.curves_page import write_curves_page
from fm_eval.datasets import PatchDataset
from fm_eval.errors import BackboneError, FmEvalError, ResultError
from fm_eval.result import EvalResult, read_result
from fm_eval.task import BackboneSettings, MachineSettings, Task, evaluate_views, fold_path, load_views, protocols_of
from fm_eval.watch_folder import Listed, list_checkpoints, private_copy
from fm_eval.watch_settings import keep_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """When a watch ends: as soon as one of these holds; with none of them it goes on until it is interrupted.

    Attributes:
        once: what is there now is evaluated.
        step: a checkpoint of at least so many optimizer steps is evaluated, and all others that are whole.
        checkpoints: so many are evaluated, those of earlier sessions too.
        budget_seconds: so much time was spent on evaluating, that of earlier sessions too; the last evaluation is
            not cut short.
        idle_seconds: nothing new was seen for so long.
        poll_seconds: between two looks at the folder.
    """

    once: bool = False
    step: int | None = None
    checkpoints: int | None = None
    budget_seconds: float | None = None
    idle_seconds: float | None = None
    poll_seconds: float = 10.0

    def __post_init__(self) -> None:
        least = {"step": 0, "checkpoints": 1, "budget_seconds": 0, "idle_seconds": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ResultError(f"watch: got {name} {value}, at least {lowest} needed")
        if not self.poll_seconds > 0:
            raise ResultError(f"watch: got poll_seconds {self.poll_seconds}, above 0 needed")


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """What the results of one checkpoint on one task come to."""

    sha256: str
    step: int
    seconds: float
    points: list[CurvePoint]


@dataclass(slots=True, kw_only=True)
class Watch:
    """One curve in the making.

    Args:
        folder: where checkpoint folders appear; it need not exist yet.
        output: results, curves and settings go there.
        name: of the curve.
        tasks: what is evaluated; names are file names.
        model: pooling, input size, seed and role.
        machine: batch size, device and the like; its cache holds digests of images.
        data_root: folder that relative data is below.
        until: when it ends.

    Attributes:
        failed: reason by checkpoint that could not be evaluated.
    """

    folder: Path
    output: Path
    name: str
    tasks: Sequence[Task]
    model: BackboneSettings
    machine: MachineSettings
    data_root: Path
    until: Until
    failed: dict[str, str] = field(default_factory=dict, init=False)
    _views: dict[str, list[PatchDataset]] = field(default_factory=dict, init=False)
    _done: dict[tuple[str, str], _Evaluated] = field(default_factory=dict, init=False)
    # what was found wanting or wrong, as it was then: looked at again when it changes
    _passed_over: dict[str, Listed] = field(default_factory=dict, init=False)

    def run(self) -> Iterator[str]:
        """Watch until it ends.

        Yields:
            A line for each thing that is worth saying, when it is known.

        Raises:
            FmEvalError: settings, data or output are not usable, another watch writes the same output, or the
                output is of other settings.
        """
        for task in self.tasks:
            protocols_of(task)
        if self.until.once and not self.folder.is_dir():
            raise BackboneError(f"watch {self.folder}: no such folder; without --once it is waited for")
        for task in self.tasks:
            self._views[task.name] = load_views(task, self.machine, data_root=self.data_root)
        try:
            with self._alone():
                self._keep_settings()
                self._read_results()
                self._write_curves()
                yield from self._watch()
        except OSError as error:
            raise ResultError(
                f"watch {self.folder}: cannot read it, or write output {self.output} ({error})"
            ) from error

    def _watch(self) -> Iterator[str]:
        last_news = time.monotonic()
        if not self.folder.is_dir():
            yield f"{self.folder}: not there yet, waiting"
        while True:
            listed, news = list_checkpoints(self.folder), False
            for checkpoint in listed:
                if self._is_done(checkpoint) or self._passed_over.get(checkpoint.name) == checkpoint:
                    continue
                spent = self._spent_seconds()
                if self.until.budget_seconds is not None and spent >= self.until.budget_seconds:
                    yield f"ended: {spent:.0f} s of evaluating are spent, {checkpoint.name} was not evaluated"
                    return
                news = (yield from self._evaluate(checkpoint)) or news
                last_news = time.monotonic()
                if self._enough():
                    break
            # What came, or was replaced, meanwhile is seen before it is decided whether this is the end.
            if news and not self.until.once and not self._enough():
                continue
            reason = self._end(listed, idle_seconds=time.monotonic() - last_news)
            if reason is not None:
                yield f"ended: {reason}; {self._evaluated()} checkpoints -> {self.output / 'curves.html'}"
                return
            time.sleep(self.until.poll_seconds)

    def _enough(self) -> bool:
        return self.until.checkpoints is not None and self._evaluated() >= self.until.checkpoints

    def _end(self, listed: Sequence[Listed], *, idle_seconds: float) -> str | None:
        """Why it is over, or None."""
        if self._enough():
            return f"{self._evaluated()} checkpoints are evaluated"
        last = self.until.step
        reached = [one for one in listed if last is not None and one.step >= last and self._is_settled(one)]
        if reached:
            return f"step {reached[0].step} is reached"
        if self.until.once:
            return "all that was there is seen"
        if self.until.idle_seconds is not None and idle_seconds >= self.until.idle_seconds:
            return f"nothing new for {idle_seconds:.0f} s"
        return None

    def _evaluate(self, checkpoint: Listed) -> Generator[str, None, bool]:
        """Evaluate one checkpoint on all tasks; returns whether there are new numbers."""
        reasons = []
        with private_copy(self.folder, checkpoint, into=self.output / ".checkpoint") as copy:
            if copy is None:
                self._passed_over[checkpoint.name] = checkpoint
                yield f"waiting {checkpoint.name}: its weights are not yet those that backbone.json states"
                return False
            tasks = [task for task in self.tasks if not self._is_done_on(checkpoint, task)]
            for task in tasks:  # what was measured of weights that were replaced
                self._done.pop((checkpoint.name, task.name), None)
            try:
                loaded = self.model.load(str(copy))
            except FmEvalError as error:
                reasons.append(str(error))
                yield f"failed  {checkpoint.name}: {error}"
                tasks = []
            for task in tasks:
                try:
                    yield from self._evaluate_on(task, checkpoint, loaded)
                except FmEvalError as error:
                    reasons.append(f"{task.name}: {error}")
                    yield f"failed  {checkpoint.name} on {task.name}: {error}"
        self._write_curves()
        if reasons:
            self.failed[checkpoint.name], self._passed_over[checkpoint.name] = reasons[0], checkpoint
        else:
            self.failed.pop(checkpoint.name, None)
        return True

    def _evaluate_on(self, task: Task, checkpoint: Listed, loaded: LoadedBackbone) -> Iterator[str]:
        path = self._path(checkpoint.name, task)
        for old in self._files(checkpoint.name, task):  # of weights that were replaced
            old.unlink(missing_ok=True)
        lines = evaluate_views(
            task,
            self._views[task.name],
            loaded,
            self.model,
            dataclasses.replace(self.machine, cache=None),
            output=path,
            name=f"{self.name} {checkpoint.name}",
        )
        for line in lines:
            yield f"{task.name:8} {line}"
        self._take_up(checkpoint.name, task, [read_result(file) for file in self._files(checkpoint.name, task)])

    def _read_results(self) -> None:
        """What earlier sessions evaluated; results that are not whole are evaluated again."""
        for folder in sorted((self.output / "results").glob("*/")):
            for task in self.tasks:
                try:
                    results = [read_result(file) for file in self._files(folder.name, task)]
                    self._take_up(folder.name, task, results)
                except (ResultError, KeyError, TypeError):
                    continue

    def _take_up(self, checkpoint: str, task: Task, results: Sequence[EvalResult]) -> None:
        step = int(results[0].backbone["step"])
        points = points_of(results, name=self.name, checkpoint=checkpoint, step=step, task=task.name)
        seconds = sum(sum(result.seconds.values()) for result in results)
        sha256 = results[0].backbone["weights_sha256"]
        if {result.backbone["weights_sha256"] for result in results} == {sha256}:
            self._done[checkpoint, task.name] = _Evaluated(sha256, step, seconds, points)

    def _path(self, checkpoint: str, task: Task) -> Path:
        return self.output / "results" / checkpoint / f"{task.name}.json"

    def _files(self, checkpoint: str, task: Task) -> list[Path]:
        path = self._path(checkpoint, task)
        return [path] if task.folds is None else [fold_path(path, fold) for fold in range(task.folds)]

    def _is_done_on(self, checkpoint: Listed, task: Task) -> bool:
        found = self._done.get((checkpoint.name, task.name))
        return found is not None and found.sha256 == checkpoint.sha256

    def _is_done(self, checkpoint: Listed) -> bool:
        return all(self._is_done_on(checkpoint, task) for task in self.tasks)

    def _is_settled(self, checkpoint: Listed) -> bool:
        return self._is_done(checkpoint) or checkpoint.name in self.failed

    def _evaluated(self) -> int:
        names = {checkpoint for checkpoint, _ in self._done}
        return sum(all((name, task.name) in self._done for task in self.tasks) for name in names)

    def _spent_seconds(self) -> float:
        return sum(one.seconds for one in self._done.values())

    def _write_curves(self) -> None:
        order = sorted(self._done, key=lambda key: (self._done[key].step, key))
        points = [point for key in order for point in self._done[key].points]
        write_curves(points, self.output)
        write_curves_page(points, self.output / "curves.html")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep a second watch off the same output; the lock goes with the process, however it ends."""
        self.output.mkdir(parents=True, exist_ok=True)
        with (self.output / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ResultError(f"output {self.output}: another watch writes there; give another --output") from None
            shutil.rmtree(self.output / ".checkpoint", ignore_errors=True)
            yield

    def _keep_settings(self) -> None:
        """Hold what decides the numbers against what is there."""
        model = {key: value for key, value in asdict(self.model).items() if key not in ("weights", "args")}
        settings: dict[str, Any] = {"name": self.name, "precision": self.machine.precision}
        settings |= {f"model.{key}": value for key, value in model.items()}
        for task in self.tasks:
            facts = {key: value for key, value in asdict(task).items() if key not in ("name", "data")}
            facts["protocol"] = [protocol.name for protocol in protocols_of(task)]
            facts["dataset_sha256"] = [view.sha256 for view in self._views[task.name]]
            settings |= {f"{task.name}.{key}": value for key, value in facts.items()}
        keep_settings(self.output, settings)
