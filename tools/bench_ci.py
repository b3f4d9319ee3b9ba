"""Has a change made a model worse? The gate of `fm-eval compare`, on data and a model that are the same everywhere.

    python tools/bench_ci.py                    what CI runs; exit code 1 if the model is worse than the baseline
    python tools/bench_ci.py --write-baseline   after a change that is meant to change the numbers

1,000 patches to train and 2,000 to test, in 100 and 200 groups, are drawn from raw bits, and so are the weights of a
tiny vision transformer: no library's random numbers or image codec can change them. What is evaluated is held against
`bench_ci_baseline.json`; then a model that was spoilt on purpose must fail the same gate, so that a gate that sees
nothing is noticed. Other processors round otherwise: a handful of rows may change, which is less than the gate minds.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import timm
import torch
from fm_eval import read_result, write_result
from fm_eval.cli import main as fm_eval
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
BASELINE = REPOSITORY / "tools" / "bench_ci_baseline.json"
SIDE_PX, CLASSES, ROWS_A_GROUP, MAX_DROP = 32, 4, 10, 0.03
GROUPS = {"train": 100, "test": 200}
PATCH_PX, WIDTH = 8, 48
MODEL: dict[str, Any] = {
    "img_size": SIDE_PX,
    "patch_size": PATCH_PX,
    "depth": 2,
    "embed_dim": WIDTH,
    "num_heads": 3,
    "num_classes": 0,
}


def main() -> int:
    """Run the gate, or write its baseline; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "bench_ci")
    parser.add_argument("--write-baseline", action="store_true")
    arguments = parser.parse_args()
    started, folder = time.monotonic(), arguments.folder
    torch.set_num_threads(1)
    write_patches(folder / "patches")
    results = {}
    for name, spoilt in (("model", False), ("spoilt", True)):
        write_model(folder / name, spoilt=spoilt)
        results[name] = folder / f"{name}.json"
        evaluation = ["--data", folder / "patches", "--backbone", folder / name, "--output", results[name]]
        options = ["--pooling=mean", "--heads=[]", "--threads=1", "--cache=none", "--progress=false"]
        if fm_eval(["run", *map(str, evaluation), *options]):
            return 2
    if arguments.write_baseline:
        found = read_result(results["model"])
        unseen = dataclasses.replace(found.projection, x=[], y=[], labels=[])
        write_result(dataclasses.replace(found, name="baseline", examples={}, projection=unseen), BASELINE)
        print(f"wrote {BASELINE}")
        return 0
    against = [f"--baseline={BASELINE}", f"--max-drop={MAX_DROP}"]
    verdict = fm_eval(["compare", str(results["model"]), *against, f"--markdown-output={folder / 'gate.md'}"])
    if fm_eval(["compare", str(results["spoilt"]), *against]) != 1:
        print("bench-ci: the spoilt model passed, so this gate sees nothing", file=sys.stderr)
        return 2
    print(f"bench-ci: {'passed' if verdict == 0 else 'failed'} in {time.monotonic() - started:.0f} s")
    return verdict


def write_patches(folder: Path) -> None:
    """Stripes under noise: the class is their direction, a group is the stripes' width, colour and contrast."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    directions = ((1, 0), (0, 1), (1, 1), (1, -1))
    lines = ["path,label,group_id,split"]
    bits = RawBits(0)
    for split, groups in GROUPS.items():
        for group in range(groups):
            width, contrast = 2 + bits.below(5), 60 + bits.below(40)
            colour = np.array([60 + bits.below(20) for _ in range(3)])
            for row in range(ROWS_A_GROUP):
                label = bits.below(CLASSES)
                across, down = directions[label]
                stripes = (x * across + y * down + bits.below(64)) // width % 2 * contrast
                noise = bits.bytes(SIDE_PX * SIDE_PX * 3).reshape(SIDE_PX, SIDE_PX, 3) // 8
                name = f"{split}_{group:03d}_{row}.bmp"
                pixels = np.minimum(colour + stripes[..., None] + noise, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name)
                lines.append(f"{name},direction{label},{split}{group:03d},{split}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")


def write_model(folder: Path, *, spoilt: bool) -> None:
    """A checkpoint folder with weights of variance 2 / fan-in; spoilt: it sees the mean of each of its patches only."""
    folder.mkdir(parents=True, exist_ok=True)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **MODEL)
    bits = RawBits(1)
    state = {}
    for name, tensor in sorted(model.state_dict().items()):
        uniform = torch.from_numpy(bits.bytes(tensor.numel()).astype(np.float32) / 127.5 - 1).reshape(tensor.shape)
        state[name] = uniform * (6 / max(1, tensor[0].numel())) ** 0.5 if tensor.ndim > 1 else 1 + 0 * uniform
        if name.endswith("bias"):
            state[name] = 0 * uniform
    if spoilt:
        seen = state["patch_embed.proj.weight"]
        state["patch_embed.proj.weight"] = seen.mean((2, 3), keepdim=True).expand(seen.shape)
    weights = folder / "backbone.safetensors"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights)
    about = {
        "format_version": 1,
        "architecture": "vit_tiny_patch16_224",
        "architecture_kwargs": MODEL,
        "embed_dim": WIDTH,
        "patch_size": PATCH_PX,
        "input_size_px": SIDE_PX,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "step": 0,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (folder / "backbone.json").write_text(json.dumps(about))


class RawBits:
    """Numbers from the raw bits of PCG-64, which no version of NumPy changes."""

    def __init__(self, seed: int) -> None:
        self._source = np.random.PCG64(seed)

    def bytes(self, count: int) -> npt.NDArray[np.int64]:
        """(count,) int64 from 0 to 255."""
        words = np.asarray(self._source.random_raw(-(-count // 8)), dtype="<u8")
        return words.view(np.uint8)[:count].astype(np.int64)

    def below(self, limit: int) -> int:
        """A whole number from 0 to limit - 1, limit at most 256."""
        return int(self.bytes(1)[0]) * limit // 256


if __name__ == "__main__":
    sys.exit(main())
