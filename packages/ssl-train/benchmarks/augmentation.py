"""How many images a second do the batched crops make, and how many the reference's image-by-image pipeline?

    python packages/ssl-train/benchmarks/augmentation.py [--device cuda] [--patches FOLDER] [--output FILE] [--quick]

Both make the crops of the paper's recipe from the same patches: of a 256 px patch 2 global crops of 224 px and 10 local
ones of 96 px. On the CPU both get one core and one thread; on another device the batched path runs there, and the
reference still on one core. Patches are pictures of a folder (JPEG or PNG, cut or enlarged to 256 px) or, without one,
smooth noise. Rounds of the two alternate and the best of each counts. On the CPU seconds are those of the processor,
since other work may share the core; on another device those of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ssl_train import MultiCrop, ReferenceMultiCrop
from torch import Tensor

PATCH_PX = 256
RECIPE = {"n_locals": 10, "global_scale": (0.25, 1.0), "local_scale": (0.05, 0.25)}


def main() -> None:
    """Measures, prints and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--patches", type=Path)
    parser.add_argument("--output", type=Path, default=Path("build/bench/augmentation.json"))
    parser.add_argument("--quick", action="store_true", help="few images, to see that it works")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    batch, rounds = (8, 1) if arguments.quick else (32, 4)
    patches = read_patches(arguments.patches, batch) if arguments.patches else noise(batch)
    paths = {
        "reference": (ReferenceMultiCrop(**RECIPE), patches),
        "batched": (MultiCrop(**RECIPE), patches.to(arguments.device)),
    }
    rates: dict[str, list[float]] = {name: [] for name in paths}
    for round_number in range(rounds + 1):
        for name, (crops, given) in paths.items():
            rate = images_per_second(crops, given, first_index=round_number * batch)
            # The first round warms up.
            if round_number or arguments.quick:
                rates[name].append(rate)
    best = {name: max(measured) for name, measured in rates.items()}
    result = {
        "format_version": 1,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device,
        "patches": str(arguments.patches or "smooth noise"),
        "batch": batch,
        "images_per_second": rates,
        "best": best,
        "ratio": best["batched"] / best["reference"],
        "torch": torch.__version__,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"reference {best['reference']:.1f} images/s, batched on {result['device']} {best['batched']:.1f}: "
        f"{result['ratio']:.2f}x"
    )


def images_per_second(crops: MultiCrop, patches: Tensor, *, first_index: int) -> float:
    """Of all crops of one batch."""
    indices = torch.arange(first_index, first_index + len(patches))
    clock = time.process_time if patches.device.type == "cpu" else time.perf_counter
    started = clock()
    made, _ = crops(patches, indices, seed=0)
    if made.device.type == "cuda":
        torch.cuda.synchronize()
    return len(patches) / (clock() - started)


def noise(n: int) -> Tensor:
    """Smooth pictures, uint8 (n, 256, 256, 3)."""
    generator = np.random.default_rng(0)
    coarse = [Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]
    resized = [np.asarray(image.resize((PATCH_PX, PATCH_PX), Image.Resampling.BICUBIC)) for image in coarse]
    return torch.from_numpy(np.stack(resized))


def read_patches(folder: Path, n: int) -> Tensor:
    """The first pictures under a folder, uint8 (n, 256, 256, 3)."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpeg", ".jpg", ".png"})
    if not paths:
        raise SystemExit(f"{folder}: no JPEG or PNG in it")
    images = []
    for number in range(n):
        with Image.open(paths[number % len(paths)]) as image:
            side = min(image.size)
            square = image.convert("RGB").crop((0, 0, side, side))
            images.append(np.asarray(square.resize((PATCH_PX, PATCH_PX), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(images))


if __name__ == "__main__":
    main()
