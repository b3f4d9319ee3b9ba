"""A watch beside a live training: two processes that share a folder and nothing else, either of which may be killed."""

from __future__ import annotations

import importlib
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import fm_eval.cli
import numpy as np
import pandas as pd
import pytest
import ssl_train.cli
import torch
import yaml
from PIL import Image

STEPS, KILLS, PATCH_SECONDS = 24, 3, 0.02


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A forked process would wait for ever for the threads that its parent's operations use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training of a one-block ViT that takes at least 80 ms a step and exports every second one."""
    monkeypatch.syspath_prepend(repository / "packages" / "ssl-train" / "tests")
    stream = importlib.import_module("synthetic_stream").SyntheticStream
    image_of = stream._image

    def paced(self: Any, index: int) -> Any:
        time.sleep(PATCH_SECONDS)
        return image_of(self, index)

    monkeypatch.setattr(stream, "_image", paced)
    content = {
        "seed_everything": 5,
        "model": {
            "class_path": "ssl_train.DINO",
            "init_args": {
                "architecture": "vit_tiny_patch16_224",
                "architecture_kwargs": {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2},
                "crops": {
                    "class_path": "ssl_train.MultiCrop",
                    "init_args": {"global_size_px": 32, "local_size_px": 16, "n_locals": 1},
                },
                "out_dim": 16,
                "head_hidden_dim": 16,
                "head_bottleneck_dim": 8,
                "epoch_size": 8,
                "warmup_epochs": 1,
                "base_learning_rate": 0.1,
            },
        },
        "data": {"stream": {"class_path": "synthetic_stream.SyntheticStream"}, "batch_size": 4},
        "trainer": {
            "max_steps": STEPS,
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path / "run"),
            "enable_model_summary": False,
        },
        "checkpoints": {"every_n_steps": 1},
        "exports": {"folder": str(tmp_path / "exports")},
    }
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """Labelled patches whose class is their tint, four of a class and split."""
    noise, folder, rows = np.random.default_rng(0), tmp_path / "patches", []
    folder.mkdir()
    for number in range(24):
        label, split = number % 2, ("train", "val", "test")[number // 8]
        pixels = noise.integers(0, 200, (32, 32, 3))
        pixels[..., label] += 12
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append({"path": f"{number}.png", "label": f"c{label}", "group_id": f"g{number // 2}", "split": split})
    pd.DataFrame(rows).to_csv(folder / "index.csv", index=False)
    return folder


def _fit(config: Path, checkpoint: Path) -> None:
    """`ssl-train fit`, from the last checkpoint if there is one."""
    warnings.simplefilter("ignore")  # pytest makes errors of what Lightning warns of
    going_on = ["--ckpt_path", str(checkpoint)] if checkpoint.exists() else []
    sys.argv = ["ssl-train", "fit", "--config", str(config), *going_on]
    ssl_train.cli.main()


def _begin(target: Callable[..., object], *arguments: object) -> ForkProcess:
    process = get_context("fork").Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def _kill(process: ForkProcess) -> bool:
    """SIGKILL; returns whether it was still at work."""
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_either_may_be_killed_and_the_curve_is_that_of_a_clean_evaluation(
    config: Path, patches: Path, tmp_path: Path
) -> None:
    exports, checkpoint = tmp_path / "exports", tmp_path / "run" / "checkpoints" / "last.ckpt"

    def watch(output: str, *until: str) -> int:
        data = [f"--data={patches}", "--name=curve", "--resamples=20", "--heads=[]", "--cache=none"]
        return fm_eval.cli.main(["watch", str(exports), *data, f"--output={tmp_path / output}", *until])

    def watch_until_the_end() -> None:
        sys.exit(watch("beside", f"--until-step={STEPS}", "--poll-seconds=0.05"))

    def exported() -> int:
        return len(list(exports.glob("*/backbone.json")))

    def evaluated() -> int:
        return len(list((tmp_path / "beside" / "results").glob("*/*.json")))

    chance, killed = random.Random(3), []
    training, watching = _begin(_fit, config, checkpoint), _begin(watch_until_the_end)
    for attempt in range(2 * KILLS):
        # Each of them in turn, at a random moment after it has come a little further.
        process, count = (watching, evaluated) if attempt % 2 else (training, exported)
        before, deadline = count(), time.monotonic() + 60
        while count() <= before and process.is_alive() and time.monotonic() < deadline:
            assert training.exitcode in (None, 0)
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        killed.append(_kill(process))
        if attempt % 2:
            watching = _begin(watch_until_the_end)
        else:
            training = _begin(_fit, config, checkpoint)
    training.join(120)
    watching.join(120)
    assert (training.exitcode, watching.exitcode) == (0, 0)
    assert killed[:2] == [True, True], "neither can have been at its end so early"
    assert watch("clean", "--once=true") == 0
    steps = pd.read_csv(tmp_path / "clean" / "curves.csv")["step"]
    assert sorted(set(steps)) == list(range(2, STEPS + 1, 2))
    for name in ("curves.csv", "curves.json", "curves.html"):
        assert (tmp_path / "beside" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes(), name
