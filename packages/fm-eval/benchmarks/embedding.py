"""What does embedding cost beyond the forward passes?

    python packages/fm-eval/benchmarks/embedding.py [--data INDEX.CSV] [--output RESULT.json]

Embeds patches with a ViT-S16 through the store (reading, decoding, resizing, forward passes, rows to the disk)
and, in turns on the same batches, by bare forward passes on pixels that are in memory. Wall time is what a user waits;
CPU time is what other work on the machine cannot blur. Target: at most 10 % slower than the bare passes.
Without --data, JPEG patches of noise are made.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
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
        seconds = _measure(dataset, backbone, chosen, settings, arguments.rounds, Path(folder) / "store")
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
    print(json.dumps(result, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def _measure(
    dataset: PatchDataset,
    backbone: LoadedBackbone,
    chosen: np.ndarray,
    settings: EmbedSettings,
    rounds: int,
    store: Path,
) -> dict[str, float]:
    seconds = dict.fromkeys(("bare_wall", "bare_cpu", "store_wall", "store_cpu"), 0.0)
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
