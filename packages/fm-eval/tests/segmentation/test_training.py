from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from fm_eval import ResultError
from fm_eval.segmentation.baselines import LinearDecoder
from fm_eval.segmentation.decoder import MaskDecoder
from fm_eval.segmentation.training import Progress, TrainSettings, judge, single_class_dice, train_decoder
from torch import Tensor, nn

SETTINGS = TrainSettings(steps=20, learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0, bf16=False)


def batches(run: int, step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1000 * run + step)
    return torch.randn(2, 8, 4, 4, generator=random), torch.randint(0, 2, (2, 16, 16), generator=random)


def fresh() -> MaskDecoder:
    torch.manual_seed(0)
    return MaskDecoder(embed_dim=8, grid=4, classes=2, window_px=16, points=16, width=8, heads=2, decoder_layers=1)


def train(decoder: nn.Module, path: Path, *, stop_at: int | None = None, fingerprint: str = "f") -> Progress:
    def on_step(step: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    return train_decoder(
        decoder,
        batches,
        SETTINGS,
        run=0,
        seed=0,
        check=lambda: 0.5,
        state_path=path,
        fingerprint=fingerprint,
        on_step=on_step,
    )


def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole = fresh()
    expected = train(whole, tmp_path / "whole.pt")
    for stop in (1, 7, 8):  # before the first state, between two, and with one
        with pytest.raises(KeyboardInterrupt):
            train(fresh(), tmp_path / "parts.pt", stop_at=stop)
    resumed = fresh()
    progress = train(resumed, tmp_path / "parts.pt")
    assert (progress.step, progress.losses, progress.checks) == (20, expected.losses, expected.checks)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    finished = fresh()
    assert train(finished, tmp_path / "parts.pt", stop_at=20).step == 20  # nothing left to do
    assert torch.equal(finished.query, whole.query)


def test_states_of_other_settings_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    train(fresh(), path)
    with pytest.raises(ResultError, match=r"run\.pt: of other data, weights or settings; give another output folder"):
        train(fresh(), path, fingerprint="g")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ResultError, match=r"run\.pt: damaged .* remove it"):
        train(fresh(), path)


class _Exploding(LinearDecoder):
    def loss(self, tokens_BKhw: Tensor, labels_BSS: Tensor, generator: torch.Generator) -> Tensor:
        loss = super().loss(tokens_BKhw, labels_BSS, generator)
        return loss * torch.nan if self.training and torch.equal(tokens_BKhw, batches(0, 7)[0]) else loss


def test_a_run_that_diverges_is_listed_and_keeps_its_last_finite_weights(tmp_path: Path) -> None:
    decoder = _Exploding(embed_dim=8, classes=2)
    progress = train(decoder, tmp_path / "run.pt")
    assert (progress.diverged_at, progress.step) == (7, 7)
    assert judge(progress, floor=0.0) == "loss or gradient not finite at step 7"
    assert all(bool(parameter.isfinite().all()) for parameter in decoder.parameters())


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ([0.1, 0.3, 0.5, 0.6, 0.65, 0.68, 0.70, 0.71, 0.715, 0.72], None),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.60, 0.65, 0.68, 0.70], "rose by 0.050 over the last fifth"),
        ([0.2] * 10, "training DICE 0.2 is not above 0.250"),
        ([None] * 10, "training DICE None is not above"),
        ([0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.1], "0.1 is not above"),
    ],
)
def test_the_rule_for_converged(checks: list[float | None], message: str | None) -> None:
    verdict = judge(Progress(step=10, checks=checks), floor=0.25)
    assert verdict is None if message is None else message in str(verdict)


def test_what_one_class_everywhere_reaches() -> None:
    # 100 pixels, 20 of class 1 and 30 of class 2: class 2 everywhere has DICE 60/130, class 1 none
    assert single_class_dice([50, 20, 30]) == pytest.approx(60 / 130 / 2)
    assert single_class_dice([50, 0, 50]) == pytest.approx(100 / 150)
    assert single_class_dice([50, 0, 0]) == 0.0


def test_the_rate_warms_up_and_decays_to_zero() -> None:
    settings = dataclasses.replace(SETTINGS, steps=130)
    rates = [settings.rate(step) for step in range(130)]
    assert rates[0] == pytest.approx(1e-3 / 6)
    assert max(rates) == rates[5] > 0.9e-3
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 2e-5
