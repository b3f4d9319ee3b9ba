"""The fit stage of the linear probe: this package beside kaiko-eva, on the same rows, heads, steps and precision.

    python packages/fm-eval/benchmarks/probe_fit.py --eva EVA_PYTHON [--data FOLDER] [--runs 5] [--quick]
    python packages/fm-eval/benchmarks/probe_fit.py --pcam

EVA_PYTHON is the interpreter of an environment with kaiko-eva 0.4.5. Every set is trained by both for the same whole
epochs without early stopping, from the same initial heads, on the same rows batch by batch, on one thread, after one
step to warm up; the epoch is selected by the same metric. Then the best heads are compared: seconds only count at equal
result. eva is measured twice: on embeddings in memory, its best case, and, on the small sets and for two epochs
of one run, in its own layout of a file a row. Seconds are CPU seconds, which a busy machine changes less than those of
the clock.

--data: a folder of NPZ files with x_train, y_train, x_val, y_val; without it sets of similar shapes are drawn.
--pcam: five runs of the protocol `paper` at the size of PCam (262,144 x 384 train, 32,768 val) on drawn rows, once as
it is and once without early stopping, all 12,500 steps of every run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fm_eval import LinearProbe, ProbeProtocol, get_protocol
from fm_eval.linear_heads import outputs_for
from fm_eval.probe import keyed_generator
from numpy.typing import NDArray

Json = dict[str, Any]
WORKER = Path(__file__).with_name("eva_fit.py")
FEATURES = 384
# name: classes, training rows, selection rows
SHAPES = {"four": (4, 268, 132), "three": (3, 1908, 672), "nine": (9, 8000, 2000), "two": (2, 20_000, 4000)}
PCAM = (2, 262_144, 32_768)
STEPS = {"eva-0.4": 600, "eva-0.0.2": 160}
STOCK_EPOCHS, STOCK_ROWS = 2, 2000
TARGET = 20.0


@dataclass(frozen=True, slots=True)
class Set:
    """A labelled set: (N, K) training rows and (V, K) selection rows with their classes."""

    name: str
    classes: int
    train: NDArray[np.float32]
    labels: NDArray[np.int64]
    selection: NDArray[np.float32]
    selection_labels: NDArray[np.int64]


def main() -> None:
    """Measure what the arguments ask for and print a line each."""
    arguments = _arguments()
    torch.set_num_threads(2 if arguments.pcam else 1)
    results: list[Json] = []
    for row in pcam(arguments.runs) if arguments.pcam else peers(arguments):
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        results.append(row)
    if arguments.output:
        content = {"format_version": 1, "benchmark": "probe_fit", "torch": torch.__version__, "results": results}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def sets(folder: Path | None) -> Iterator[Set]:
    """The sets of a folder, or drawn ones."""
    if folder is None:
        for name, shape in SHAPES.items():
            yield drawn(name, *shape)
        return
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            if "x_train" in file and "x_val" in file:
                train, selection = (file[f"x_{split}"].astype(np.float32) for split in ("train", "val"))
                labels, selection_labels = file["y_train"], file["y_val"]
                yield Set(path.stem, int(labels.max()) + 1, train, labels, selection, selection_labels)


def drawn(name: str, classes: int, rows: int, selection_rows: int) -> Set:
    """Rows around a centre for each class, hard enough that epochs differ."""
    random = np.random.default_rng(classes)
    centres = (0.25 * random.normal(size=(classes, FEATURES))).astype(np.float32)
    parts = []
    for count in (rows, selection_rows):
        labels = random.integers(0, classes, count)
        parts += [random.standard_normal((count, FEATURES), np.float32) + centres[labels], labels]
    return Set(name, classes, *parts)


def peers(arguments: argparse.Namespace) -> Iterator[Json]:
    """Every set under every preset."""
    for one in sets(arguments.data):
        for name, steps in STEPS.items():
            an_epoch = get_protocol(name).steps_per_epoch(len(one.train))
            steps = an_epoch if arguments.quick else -(-steps // an_epoch) * an_epoch
            yield side_by_side(one, name, steps, arguments)


def side_by_side(data: Set, name: str, steps: int, arguments: argparse.Namespace) -> Json:
    """Train one set by both tools under one preset."""
    preset = get_protocol(name)
    protocol = replace(preset, name=f"{name}, {steps} steps", max_steps=steps, patience=steps, runs=arguments.runs)
    rows = data.train, data.labels, data.selection, data.selection_labels
    LinearProbe(replace(protocol, max_steps=1), classes=data.classes).fit(*rows)
    probe = LinearProbe(protocol, classes=data.classes)
    start = time.process_time()
    probe.fit(*rows)
    ours = time.process_time() - start
    job = _job(data, protocol, probe)
    theirs = eva(arguments.eva, job, runs=arguments.runs, steps=steps, stock=False)
    difference = max(
        max(float(np.abs(head.weight.numpy() - weight).max()), float(np.abs(head.bias.numpy() - bias).max()))
        for head, weight, bias in zip(probe.heads_, theirs["weights"], theirs["biases"], strict=True)
    )
    per_step = ours / (arguments.runs * steps)
    ratio = float(theirs["cpu"].sum()) / ours
    found: Json = {
        "set": data.name,
        "protocol": protocol.name,
        "runs": arguments.runs,
        "fm_eval_s": round(ours, 3),
        "eva_in_memory_s": round(float(theirs["cpu"].sum()), 2),
        "times_faster": round(ratio, 1),
        "holds": ratio >= TARGET,
        "best_scores_fm_eval": [round(run.best_score, 4) for run in probe.runs_],
        "best_scores_eva": [round(float(score), 4) for score in theirs["best"]],
        "best_heads_max_difference": difference,
        "fm_eval_bytes": data.train.nbytes + data.selection.nbytes,
    }
    if len(data.train) <= STOCK_ROWS:
        few = min(steps, STOCK_EPOCHS * protocol.steps_per_epoch(len(data.train)))
        stock = eva(arguments.eva, job, runs=1, steps=few, stock=True)
        stock_per_step = float(stock["cpu"].sum()) / few
        found |= {
            "eva_files_ms_per_step": round(1e3 * stock_per_step, 2),
            "times_faster_than_files": round(stock_per_step / per_step, 1),
            "eva_files_bytes": int(stock["written"]),
        }
    return found


def _job(data: Set, protocol: ProbeProtocol, probe: LinearProbe) -> Json:
    """What eva is handed: rows, their order in every epoch, initial heads, settings."""
    rows, binary = len(data.train), data.classes == 2
    epochs = -(-protocol.max_steps // protocol.steps_per_epoch(rows))
    orders = []
    for run in range(protocol.runs):
        generator = keyed_generator(0, run, 1)
        orders.append(np.stack([torch.randperm(rows, generator=generator).numpy() for _ in range(epochs)]))
    heads = [probe.initial_head(run, data.train.shape[1]) for run in range(protocol.runs)]
    plain = protocol.monitor == "eva_accuracy" and binary
    settings = {
        "classes": data.classes,
        "batch": protocol.batch_size(rows),
        "lr": protocol.peak_lr(rows),
        "optimizer": protocol.optimizer,
        "cosine_epochs": protocol.max_steps,
        "monitor": "accuracy" if plain else "balanced_accuracy",
        "metric": "val/BinaryAccuracy"
        if plain
        else ("val/BinaryBalancedAccuracy" if binary else "val/MulticlassAccuracy"),
    }
    assert heads[0].weight.shape == (outputs_for(data.classes), data.train.shape[1])
    return {
        "x_train": data.train,
        "y_train": data.labels,
        "x_val": data.selection,
        "y_val": data.selection_labels,
        "orders": np.stack(orders),
        "weights": np.stack([head.weight.numpy() for head in heads]),
        "biases": np.stack([head.bias.numpy() for head in heads]),
        "settings": settings,
    }


def eva(python: str, job: Json, *, runs: int, steps: int, stock: bool) -> Json:
    """What eva's fit stage takes and gives on a job."""
    with tempfile.TemporaryDirectory() as name:
        path, result = Path(name) / "job.npz", Path(name) / "result.npz"
        settings = {**job["settings"], "steps": steps, "stock": stock}
        arrays = {key: value[:runs] if key in ("orders", "weights", "biases") else value for key, value in job.items()}
        np.savez(path, **{**arrays, "settings": json.dumps(settings)})
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [python, WORKER, path, result], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"eva failed on {settings}:\n{done.stderr[-3000:]}")
        with np.load(result) as file:
            return dict(file)


def pcam(runs: int) -> Iterator[Json]:
    """The whole protocol of the paper at the size of PCam."""
    data = drawn("PCam size", *PCAM)
    for patience in (None, get_protocol("paper").max_steps):
        protocol = replace(get_protocol("paper"), runs=runs, patience=patience)
        start, cpu = time.perf_counter(), time.process_time()
        probe = LinearProbe(protocol, classes=2)
        probe.fit(data.train, data.labels, data.selection, data.selection_labels)
        yield {
            "set": data.name,
            "early_stopping": patience is None,
            "runs": runs,
            "steps": [run.steps for run in probe.runs_],
            "seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eva", help="interpreter of an environment with kaiko-eva 0.4.5")
    parser.add_argument("--data", type=Path, help="folder of NPZ files to use instead of drawn sets")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pcam", action="store_true", help="the paper's protocol at the size of PCam, no peer")
    parser.add_argument("--quick", action="store_true", help="few steps: shows that it runs, the figures mean nothing")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    if not arguments.pcam and not arguments.eva:
        parser.error("--eva: give the interpreter of an environment with kaiko-eva, or --pcam")
    return arguments


if __name__ == "__main__":
    main()
