from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from ssl_train import CollapseMonitor, EmbeddingGuard, MultiCrop, PatchData, StepCheckpoint, UnhealthyRunError
from ssl_train.guard import read_guard_folder

Make = Callable[..., Any]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    from textures import write_textures

    return write_textures(tmp_path / "labelled", n=160, size_px=32, labelled=True)


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    from textures import write_textures

    return write_textures(tmp_path / "unlabelled", n=40, size_px=32, labelled=False)


def picture(path: Path, *, width: int = 40, height: int = 30, value: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


def test_classes_are_folders_and_share_the_number_of_images(tmp_path: Path) -> None:
    for name, n in (("a", 9), ("b", 3)):
        for number in range(n):
            picture(tmp_path / name / f"{number}.png", value=10 * number)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    given = read_guard_folder(tmp_path, size_px=16, max_images=8)
    assert given.images.shape == (7, 3, 16, 16)
    assert given.labels is not None
    assert given.labels.tolist() == [0] * 4 + [1] * 3
    # Spread over the names: 0, 3, 5, 8 of nine.
    assert given.images[:, 0, 0, 0].tolist() == [0, 30, 50, 80, 0, 10, 20]


def test_images_without_classes(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", width=64, height=16)
    picture(tmp_path / "2.JPG", width=16, height=64)
    given = read_guard_folder(tmp_path, size_px=32, max_images=10)
    assert given.labels is None
    assert given.images.shape == (2, 3, 32, 32)


def test_the_middle_of_an_image_is_seen(tmp_path: Path) -> None:
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255
    for name in ("a.png", "b.png"):
        Image.fromarray(image).save(tmp_path / name)
    given = read_guard_folder(tmp_path, size_px=20, max_images=2)
    assert (given.images == 255).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "no such folder"),
        ([], "0 images in 0 folders"),
        (["a/1.png", "a/2.png"], "2 images in 1 folders of classes; give at least"),
        (["1.png", "a/1.png"], "both in it and in folders"),
        (["1.png", "broken.png"], r"broken\.png: cannot be read"),
    ],
)
def test_folders_of_no_use_are_refused(names: list[str] | None, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in names or []:
        picture(folder / name)
    if names is not None:
        folder.mkdir(exist_ok=True)
    if names and "broken.png" in names:
        (folder / "broken.png").write_bytes(b"no png")
    with pytest.raises(ValueError, match=message):
        read_guard_folder(folder, size_px=16, max_images=10)


# Augmentation that leaves the tints of the pictures, since they are what the classes are.
CROPS = MultiCrop(
    global_size_px=32,
    local_size_px=16,
    n_locals=2,
    jitter_p=0.3,
    brightness=0.2,
    contrast=0.2,
    saturation=0.1,
    hue=0.02,
    grey_p=0.0,
    solarise_p=0.0,
)
HEALTHY: dict[str, Any] = {
    "crops": CROPS,
    "epoch_size": 160,
    "base_learning_rate": 0.016,
    "teacher_momentum": 0.95,
    "warmup_teacher_temp": 0.03,
    "teacher_temp": 0.03,
    "freeze_last_layer_epochs": 0.3,
    "head_use_bn": True,
}
# Everything that holds DINO together taken away: centring, the slow teacher, clipping, and a sane learning rate.
COLLAPSING: dict[str, Any] = {
    **HEALTHY,
    "center_momentum": 1.0,
    "teacher_momentum": 0.0,
    "clip_grad": 0.0,
    "base_learning_rate": 1.0,
    "head_use_bn": False,
}


@pytest.fixture
def train(make_dino: Make, make_trainer: Make) -> Callable[..., pl.Trainer]:
    def run(settings: dict[str, Any], *callbacks: pl.Callback, seed: int = 0, **fit: Any) -> pl.Trainer:
        """30 steps, three epochs, on pictures."""
        from textures import TextureStream

        trainer: pl.Trainer = make_trainer(max_steps=30, callbacks=list(callbacks))
        trainer.fit(make_dino(**settings, seed=seed), PatchData(stream=TextureStream(seed=seed), batch_size=16), **fit)
        return trainer

    return run


def watch(folder: Path, **settings: Any) -> EmbeddingGuard:
    return EmbeddingGuard(folder=str(folder), action="stop", **settings)


def monitor() -> CollapseMonitor:
    return CollapseMonitor(every_n_steps=2, action="stop")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_healthy_runs_are_left_alone(seed: int, labelled: Path, train: Callable[..., pl.Trainer]) -> None:
    guard = watch(labelled, every_n_epochs=0.5)
    trainer = train(HEALTHY, guard, monitor(), seed=seed)
    assert trainer.global_step == 30
    # And healthy they are: better than the start, and away from the uniform answer, ln 32.
    assert guard.initial is not None
    assert trainer.callback_metrics["guard_knn"] > guard.initial["guard_knn"]
    assert trainer.callback_metrics["loss"] < 0.7 * np.log(32)


def test_the_guard_ends_an_induced_collapse(labelled: Path, train: Callable[..., pl.Trainer]) -> None:
    with pytest.raises(UnhealthyRunError, match=r"step 10: the teacher is worse than the initial model: guard_knn 0"):
        train(COLLAPSING, watch(labelled))


def test_a_warning_lets_the_run_go_on_and_the_monitor_ends_it(labelled: Path, train: Callable[..., pl.Trainer]) -> None:
    with (
        pytest.warns(UserWarning, match="step 10: the teacher is worse than the initial model: guard_knn"),
        pytest.raises(UnhealthyRunError, match=r"step 1\d: collapse: .*one prototype answers for all samples"),
    ):
        train(COLLAPSING, EmbeddingGuard(folder=str(labelled)), monitor())


class Blind(pl.Callback):
    """Takes the teacher's sight away after a step, and with it every difference between pictures."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            for parameter in pl_module.teacher.backbone.patch_embed.parameters():
                parameter.data.zero_()


def test_without_labels_the_guard_goes_by_odcorr(
    unlabelled: Path, make_dino: Make, make_data: Make, make_trainer: Make
) -> None:
    # An epoch is 4 steps.
    guard = watch(unlabelled, every_n_epochs=0.5)
    trainer = make_trainer(max_steps=4, callbacks=[Blind(), guard])
    with pytest.raises(UnhealthyRunError, match=r"step 2: .*: guard_odcorr 1\.000 against 0\.\d+ at the start"):
        trainer.fit(make_dino(), make_data())


def test_embeddings_that_are_no_numbers_are_worse(
    labelled: Path, make_dino: Make, make_data: Make, make_trainer: Make
) -> None:
    class Break(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            pl_module.teacher.backbone.norm.bias.data.fill_(torch.nan)

    trainer = make_trainer(max_steps=4, callbacks=[Break(), watch(labelled, every_n_epochs=0.25)])
    with pytest.raises(UnhealthyRunError, match="guard_knn nan against"):
        trainer.fit(make_dino(), make_data())


def test_a_resumed_run_compares_with_the_first_start(
    labelled: Path, make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    first, second = (EmbeddingGuard(folder=str(labelled)) for _ in range(2))
    for guard, seed, start in ((first, 0, None), (second, 1, tmp_path / "checkpoints" / "last.ckpt")):
        trainer = make_trainer(max_steps=4, callbacks=[guard, StepCheckpoint()], enable_checkpointing=True)
        trainer.fit(make_dino(seed=seed), make_data(), ckpt_path=start, weights_only=False)
    assert first.initial is not None
    assert second.initial == first.initial


def test_embedding_draws_no_random_numbers_and_changes_nothing(
    labelled: Path, make_dino: Make, make_data: Make, make_trainer: Make
) -> None:
    models = [make_dino(drop_path_rate=0.2) for _ in range(2)]
    for model, callbacks in zip(models, ([], [EmbeddingGuard(folder=str(labelled), every_n_epochs=0.25)]), strict=True):
        make_trainer(max_steps=4, callbacks=callbacks).fit(model, make_data())
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wrong", [{"every_n_epochs": 0.0}, {"k": 0}, {"knn_tolerance": -0.1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="EmbeddingGuard: "):
        EmbeddingGuard(**wrong)  # type: ignore[arg-type]
