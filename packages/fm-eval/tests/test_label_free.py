from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from fm_eval import embed_images, load_backbone, unsupervised_metrics
from fm_eval.cli import main
from fm_eval.images import PixelArray

TESTS = Path(__file__).parent
_FAST = ["--batch_size=16", "--threads=2", "--progress=false"]


class TintedPatches:
    """A stream of noise with a tint, a pure function of the sample number; wired in by class_path."""

    def __init__(
        self, *, size_px: int = 40, length: int | None = None, fail_at: int | None = None, grey: bool = False
    ) -> None:
        self.size_px = size_px
        self.length = length
        self.fail_at = fail_at
        self.grey = grey

    def __iter__(self) -> Iterator[dict[str, Any]]:
        index = 0
        while index != self.length:
            if index == self.fail_at:
                raise OSError("bucket unreachable")
            image = self.image(index)
            yield {
                "image": image[..., 0] if self.grey else image,
                "index": index,
                "slide_id": f"s{index % 3}",
                "mpp": (0.5, 1.0)[index % 2],
            }
            index += 1

    def image(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        random = np.random.default_rng(index)
        noise = random.integers(0, 128, (self.size_px, self.size_px, 3))
        return (noise + random.integers(0, 128, 3)).astype(np.uint8)

    def shard(self, *, global_batch_size: int, rank: int, world_size: int, worker: int, num_workers: int) -> Self:
        return self

    def state_dict(self) -> dict[str, Any]:
        return {"format_version": 1, "position": 0, "seed": 0, "fingerprint": "tinted"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("nothing is resumed here")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS))


def _stream(**settings: Any) -> list[str]:
    return ["--stream=test_label_free.TintedPatches", *(f"--stream.{name}={value}" for name, value in settings.items())]


def test_metrics_of_a_stream_are_those_of_its_patches(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, output = make_checkpoint(), tmp_path / "out" / "metrics.json"
    # Two models see the same patches, each at its own input size; 50 are no multiple of the batch.
    backbones = f"--backbone=[{checkpoint}, fm_eval.ColourHistogram]"
    assert main(["label-free", *_stream(), backbones, "--count=50", f"--output={output}", *_FAST]) == 0
    result = json.loads(output.read_text())
    assert (result["format"], result["format_version"], result["patches"]) == ("fm-eval-label-free", 1, 50)
    stream = result["stream"]
    assert stream["class_path"] == "test_label_free.TintedPatches"
    assert stream["state"]["fingerprint"] == "tinted"
    assert (stream["slides"], stream["patches_by_mpp"]) == (3, {"0.5": 25, "1": 25})
    assert list(result["models"]) == ["checkpoint", "ColourHistogram"]
    pixels = np.stack([TintedPatches().image(index) for index in range(50)])
    printed = capsys.readouterr().out
    for name, source in (("checkpoint", str(checkpoint)), ("ColourHistogram", "fm_eval.ColourHistogram")):
        model = result["models"][name]
        embeddings = embed_images(PixelArray(pixels, title="patches"), load_backbone(source))
        expected = {metric.name: metric.value for metric in unsupervised_metrics(embeddings)}
        got = {metric["name"]: metric["value"] for metric in model["metrics"]}
        assert got == pytest.approx(expected, rel=1e-5)
        assert model["embed_dim"] == embeddings.shape[1]
        assert f"{name}: odcorr {got['odcorr']:.4g}, " in printed
    assert "50 patches of 3 slides" in printed


def test_a_finite_stream_may_end_before(tmp_path: Path) -> None:
    arguments = [*_stream(length=20), "--backbone=fm_eval.ColourHistogram", f"--output={tmp_path}/m.json", *_FAST]
    assert main(["label-free", *arguments]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["patches"] == 20


@pytest.mark.parametrize(
    ("stream", "arguments", "message"),
    [
        ({}, ["--count=1"], "got count 1, at least 2 needed"),
        ({"length": 1}, [], "the stream ended after 1 patches, at least 2 needed"),
        ({"fail_at": 20}, [], "label-free: the stream failed (bucket unreachable)"),
        ({"grey": "true"}, [], "sample 0 of the stream: image must be uint8 (H, W, 3), got uint8 (40, 40)"),
        ({"size": 3}, [], "size"),
        ({}, ["--backbone=[]"], "no backbone given"),
        ({}, ["--backbone=[fm_eval.ColourHistogram, fm_eval.ColourHistogram]"], "a backbone is given twice"),
        ({}, ["--device=abacus"], "device abacus: not available"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    stream: dict[str, Any], arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.json"
    common = ["--backbone=fm_eval.ColourHistogram", "--count=40", f"--output={output}", *_FAST]
    assert main(["label-free", *_stream(**stream), *common, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fm-eval: ")
    assert error.count("\n") == 1
    assert message in error
    assert not output.exists()


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fm_eval.cli", "label-free", "--count=1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fm-eval: ")
