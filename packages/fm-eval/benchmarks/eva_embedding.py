"""The embedding stage of kaiko-eva on image files; run by the interpreter that has it, see embedding.py.

    EVA_PYTHON eva_embedding.py '{"model": ..., "size_px": ..., "batch_size": ..., "workers": ..., "threads": ...}'

Each line of the input is a JSON list of image files; it is answered by a line of JSON: seconds of the clock and of the
CPU (data workers and writer included), embeddings written and their bytes on the disk.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from eva.core.callbacks import ClassificationEmbeddingsWriter
from eva.core.data import dataloaders, datamodules
from eva.core.models.modules import InferenceModule
from eva.core.trainers import Trainer
from eva.vision.data.datasets.vision import VisionDataset
from eva.vision.data.transforms import ResizeAndCrop
from eva.vision.models.wrappers import TimmModel
from eva.vision.utils import io


class Files(VisionDataset):
    """Image files, read as eva's own datasets of patches do."""

    def __init__(self, paths: list[str], size_px: int) -> None:
        super().__init__()
        self._paths, self._resize = paths, ResizeAndCrop(size=size_px)

    def __len__(self) -> int:
        return len(self._paths)

    def load_data(self, index: int) -> Any:
        """Pixels."""
        return io.read_image_as_tensor(self._paths[index])

    def load_target(self, index: int) -> torch.Tensor:  # noqa: ARG002 (eva names it)
        """A label, which takes no part."""
        return torch.tensor(0.0)

    def filename(self, index: int) -> str:
        """What its embedding is named after."""
        return f"{index}.jpg"

    def _apply_transforms(self, image: Any, target: Any) -> tuple[Any, Any]:
        return self._resize(image), target


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def embed(paths: list[str], module: InferenceModule, settings: dict[str, Any]) -> dict[str, float]:
    """One embedding stage."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loader: dict[str, Any] = {"batch_size": settings["batch_size"], "num_workers": settings["workers"]}
        loader |= {"persistent_workers": False, "pin_memory": False}
        loader |= {"prefetch_factor": 2 if settings["workers"] else None}
        data = datamodules.DataModule(
            datasets=datamodules.DatasetsSchema(predict=[Files(paths, settings["size_px"])]),
            dataloaders=datamodules.DataloadersSchema(predict=dataloaders.DataLoader(**loader)),
        )
        # The interval of eva's own configurations.
        writer = ClassificationEmbeddingsWriter(str(folder / "embeddings"), save_every_n=10_000)
        trainer = Trainer(
            default_root_dir=str(folder / "logs"),
            callbacks=[writer],
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        wall, cpu = time.perf_counter(), cpu_seconds()
        trainer.predict(module, datamodule=data, return_predictions=False)
        seconds = {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}
        written = list((folder / "embeddings").rglob("*.pt"))
        return {**seconds, "embeddings": len(written), "bytes": sum(file.stat().st_blocks * 512 for file in written)}


def main() -> None:
    """Answer line by line."""
    warnings.filterwarnings("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    module = InferenceModule(TimmModel(settings["model"], pretrained=False, model_kwargs={"num_classes": 0}))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(embed(json.loads(line), module, settings)), file=answers, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    main()
