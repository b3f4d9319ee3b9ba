"""The fit stage of kaiko-eva on arrays that are handed over; run by the interpreter that has it, see probe_fit.py.

    EVA_PYTHON eva_fit.py JOB.npz RESULT.npz

The rows of each epoch and the initial heads come from the job, so that both sides train the same heads on the same
batches. Everything that only costs time is off: progress bar, logger, training metrics, sanity check.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eva.core.data import dataloaders, datamodules, datasets
from eva.core.losses import CrossEntropyLoss
from eva.core.metrics import BinaryBalancedAccuracy, MetricsSchema
from eva.core.models.modules import HeadModule
from eva.core.trainers import Trainer
from eva.core.trainers.functional import run_evaluation
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import SGD, AdamW, lr_scheduler
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy

Arrays = dict[str, Any]


class InMemory(datasets.TorchDataset):
    """Rows that are in memory already."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        self._features, self._labels = features, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._features[index], self._labels[index]


class Given(torch.utils.data.Sampler[int]):
    """The order of rows of each epoch, as the job has it."""

    def __init__(self, orders: np.ndarray) -> None:
        self._orders, self._epoch = orders, 0

    def __len__(self) -> int:
        return self._orders.shape[1]

    def __iter__(self) -> Iterator[int]:
        order = self._orders[self._epoch % len(self._orders)]
        self._epoch += 1
        return iter(order.tolist())


def stock_datasets(folder: Path, job: Arrays) -> dict[str, datasets.TorchDataset]:
    """What eva keeps of embeddings: a file a row, and a manifest."""
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["embeddings", "target", "split"])
        for split in ("train", "val"):
            for row, (features, label) in enumerate(zip(job[f"x_{split}"], job[f"y_{split}"], strict=True)):
                torch.save(torch.from_numpy(features.copy()), folder / f"{split}{row}.pt")
                writer.writerow([f"{split}{row}.pt", int(label), split])
    return {
        split: datasets.EmbeddingsClassificationDataset(root=str(folder), manifest_file="manifest.csv", split=split)
        for split in ("train", "val")
    }


def module_of(job: Arrays, settings: Arrays, run: int) -> HeadModule:
    """The head of a run with the optimizer, schedule and metric of the job."""
    classes, outputs = settings["classes"], job["weights"].shape[1]
    head = nn.Linear(job["weights"].shape[2], outputs)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(job["weights"][run]))
        head.bias.copy_(torch.from_numpy(job["biases"][run]))
    binary = outputs == 1
    plain = settings["monitor"] == "accuracy"
    metric = (
        (BinaryAccuracy() if plain else BinaryBalancedAccuracy())
        if binary
        else MulticlassAccuracy(num_classes=classes, average="macro")
    )

    def binary_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.float())

    if settings["optimizer"] == "adamw":
        optimizer = lambda p: AdamW(p, lr=settings["lr"], weight_decay=0.0)  # noqa: E731
        schedule: Any = lr_scheduler.ConstantLR
    else:
        optimizer = lambda p: SGD(p, lr=settings["lr"], momentum=0.9, nesterov=True)  # noqa: E731
        schedule = lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=settings["cosine_epochs"])  # noqa: E731
    return HeadModule(
        head=head,
        criterion=binary_loss if binary else CrossEntropyLoss(),
        optimizer=optimizer,
        lr_scheduler=schedule,
        metrics=MetricsSchema(evaluation=[metric]),
    )


def main() -> None:
    """Fit every run of the job."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    job = dict(np.load(sys.argv[1]))
    settings: Arrays = json.loads(str(job["settings"]))
    seconds, cpu, best, weights, biases, written = [], [], [], [], [], 0
    for warm, run in ((False, 0), *((True, run) for run in range(len(job["weights"])))):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if settings["stock"]:
                sets = stock_datasets(folder, job)
                written = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
            else:
                sets = {
                    split: InMemory(torch.from_numpy(job[f"x_{split}"]), torch.from_numpy(job[f"y_{split}"]))
                    for split in ("train", "val")
                }
            loader = {"batch_size": settings["batch"], "num_workers": 0, "persistent_workers": False}
            loader |= {"prefetch_factor": None, "pin_memory": False}
            data = datamodules.DataModule(
                datasets=datamodules.DatasetsSchema(train=sets["train"], val=sets["val"]),
                dataloaders=datamodules.DataloadersSchema(
                    train=dataloaders.DataLoader(sampler=Given(job["orders"][run]), **loader),
                    val=dataloaders.DataLoader(**loader),
                ),
            )
            module = module_of(job, settings, run)
            checkpoint = ModelCheckpoint(
                dirpath=folder / "checkpoints", monitor=settings["metric"], mode="max", save_top_k=1, filename="best"
            )
            trainer = Trainer(
                default_root_dir=str(folder / "logs"),
                max_steps=settings["steps"] if warm else 1,
                callbacks=[checkpoint],
                accelerator="cpu",
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
            start, start_cpu = time.perf_counter(), time.process_time()
            run_evaluation(trainer, module, data, run_id=run, stages=["fit"], verbose=False)
            if not warm:
                continue
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
            (file,) = (folder / "checkpoints").glob("best*.ckpt")
            state = torch.load(file, weights_only=False)
            scores = [c["best_model_score"] for c in state["callbacks"].values() if "best_model_score" in c]
            best.append(float(scores[0]))
            weights.append(state["state_dict"]["head.weight"].numpy())
            biases.append(state["state_dict"]["head.bias"].numpy())
    np.savez(
        sys.argv[2], seconds=seconds, cpu=cpu, best=best, weights=weights, biases=biases, written=np.array(written)
    )


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    main()
