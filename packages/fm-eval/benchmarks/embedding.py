"""What does embedding cost beyond the forward passes?

    python packages/fm-eval/benchmarks/embedding.py [--data INDEX.CSV] [--eva PYTHON] [--output RESULT.json]

Embeds patches with a ViT-S16 through the store (reading, decoding, resizing, forward passes, rows to the disk)
and, in turns on the same batches, by bare forward passes on pixels that are in memory and, where an interpreter with
kaiko-eva is named, by the embedding stage of eva (its data workers start anew in each turn; `--rounds 1` makes that
small). Wall time is what a user waits; CPU time is what other work on the machine cannot blur. Target: at most 10 %
slower than the bare passes. Without --data, JPEG patches of noise are made.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fm_eval import EmbedSettings, LoadedBackbone, PatchDataset, embed_dataset, load_backbone, load_dataset
from fm_eval.images import SelectedImages
from fm_eval.transform import resize_and_crop
from PIL import Image


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="index CSV of patches")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--patches", type=int, default=3_000)
    parser.add_argument("--rounds", type=int, default=10, help="the two ways take turns this often")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--eva", help="interpreter of an environment with kaiko-eva[vision] 0.4.5; on the CPU only")
    parser.add_argument("--eva_workers", type=int, default=2, help="data workers of eva")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=4)
    arguments = parser.parse_args()
    settings = EmbedSettings(
        batch_size=arguments.batch_size, device=arguments.device, threads=arguments.threads, precision="fp32"
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset(arguments.data or _noise(Path(folder) / "patches", arguments.patches))
        backbone = load_backbone(arguments.model)
        # each content once: the store would embed its copies for nothing
        different = np.unique(dataset.digests, return_index=True)[1]
        chosen = np.random.default_rng(0).permutation(different)[: arguments.patches]
        eva = None
        if arguments.eva:
            eva = Eva(
                arguments.eva,
                model=arguments.model,
                size_px=backbone.input_size_px,
                batch_size=arguments.batch_size,
                workers=arguments.eva_workers,
                threads=torch.get_num_threads(),
            )
        seconds = _measure(dataset, backbone, chosen, settings, arguments.rounds, Path(folder) / "store", eva)
        stored = sum(path.stat().st_size for path in (Path(folder) / "store").rglob("embeddings.npy"))
    result = {
        "model": arguments.model,
        "patches": len(chosen),
        "device": arguments.device,
        "torch_threads": torch.get_num_threads(),
        "decoding_threads": arguments.threads,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "wall_ratio": round(seconds["store_wall"] / seconds["bare_wall"], 4),
        "cpu_ratio": round(seconds["store_cpu"] / seconds["bare_cpu"], 4),
        "patches_a_second": round(len(chosen) / seconds["store_wall"], 1),
        "bytes": stored,
        "target_ratio": 1.1,
    }
    if eva is not None:
        eva.close()
        result["eva"] = {
            "wall_ratio": round(seconds["eva_wall"] / seconds["bare_wall"], 4),
            "cpu_ratio": round(seconds["eva_cpu"] / seconds["bare_cpu"], 4),
            "bytes": eva.bytes_written,
        }
    print(json.dumps(result, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


class Eva:
    """kaiko-eva in a process of its own.

    Attributes:
        bytes_written: on the disk, by all turns.
    """

    def __init__(self, python: str, **settings: object) -> None:
        worker = Path(__file__).with_name("eva_embedding.py")
        command = [python, str(worker), json.dumps(settings)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.bytes_written = 0
        self._answer()

    def embed(self, paths: list[str]) -> tuple[float, float]:
        """Embeds image files; seconds of the clock and of the CPU."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(paths) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert answer["embeddings"] == len(paths)
        self.bytes_written += int(answer["bytes"])
        return answer["wall"], answer["cpu"]

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"eva ended with code {self._process.wait()}; its error stands above")
        answer: dict[str, float] = json.loads(line)
        return answer


def _measure(
    dataset: PatchDataset,
    backbone: LoadedBackbone,
    chosen: np.ndarray,
    settings: EmbedSettings,
    rounds: int,
    store: Path,
    eva: Eva | None,
) -> dict[str, float]:
    ways = ("bare", "store", "eva")
    seconds = dict.fromkeys(
        [f"{way}_{clock}" for way in ways[: 2 + (eva is not None)] for clock in ("wall", "cpu")], 0.0
    )
    for number, rows in enumerate(np.array_split(chosen, rounds), start=1):
        images = SelectedImages(dataset.images, rows)
        decoded = np.stack([resize_and_crop(images.read(k), size_px=backbone.input_size_px) for k in range(len(rows))])
        wall, cpu = time.perf_counter(), time.process_time()
        bare = _bare(backbone, decoded, settings)
        seconds["bare_wall"] += time.perf_counter() - wall
        seconds["bare_cpu"] += time.process_time() - cpu
        part = dataclasses.replace(
            dataset,
            table=dataset.table.iloc[rows].reset_index(drop=True),
            images=images,
            digests=tuple(dataset.digests[row] for row in rows),
            split_source="all in one part",
        )
        wall, cpu = time.perf_counter(), time.process_time()
        embedded = embed_dataset(part, backbone, store=store, settings=settings)
        seconds["store_wall"] += time.perf_counter() - wall
        seconds["store_cpu"] += time.process_time() - cpu
        assert embedded.computed == len(rows)
        np.testing.assert_allclose(embedded.values, bare, rtol=1e-4, atol=1e-4)
        if eva is not None:
            wall, cpu = eva.embed([images.name(row) for row in range(len(rows))])
            seconds["eva_wall"] += wall
            seconds["eva_cpu"] += cpu
        print(f"round {number} of {rounds}: CPU {seconds['store_cpu'] / seconds['bare_cpu']:.3f}", file=sys.stderr)
    return seconds


def _bare(backbone: LoadedBackbone, pixels: np.ndarray, settings: EmbedSettings) -> np.ndarray:
    model = backbone.model
    if isinstance(model, torch.nn.Module):
        model.to(settings.device)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pixels), settings.batch_size):
            batch = torch.from_numpy(pixels[start : start + settings.batch_size]).to(settings.device)
            rows.append(model(batch).cpu())
    return torch.cat(rows).numpy()


def _noise(folder: Path, count: int) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        coarse = random.integers(90, 230, (28, 28, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.jpg", quality=90)
        split = ("train", "test")[number % 4 == 0]
        rows.append({"path": f"{number}.jpg", "label": str(number // 4 % 2), "group_id": str(number), "split": split})
    pd.DataFrame(rows).to_csv(folder / "index.csv", index=False)
    return folder


if __name__ == "__main__":
    main()
