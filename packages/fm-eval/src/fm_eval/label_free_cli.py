"""The command `fm-eval label-free`; cli makes one program of all commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fm_eval.backbone import Pooling
from fm_eval.contract import PatchStream
from fm_eval.embed import EmbedSettings, Precision
from fm_eval.errors import BackboneError
from fm_eval.label_free import measure_stream, summary_line, write_label_free
from fm_eval.task import BackboneSettings, default_name


def label_free(
    *,
    stream: PatchStream,
    backbone: str | list[str],
    count: int = 10_240,
    output: str = "label_free.json",
    weights: str | None = None,
    random_weights: bool = False,
    pooling: Pooling | None = None,
    input_size_px: int | None = None,
    backbone_args: dict[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "cpu",
    threads: int = 4,
    precision: Precision = "fp32",
    progress: bool = True,
) -> None:
    """Measure ODCorr, RankMe and the like on a stream of unlabelled patches.

    Args:
        stream: for example class_path online_patching.PatchStream with catalog, size_px 224, mpp 0.5.
        backbone: what `fm-eval run` takes, or a list: all embed the same patches, which are read once.
        count: patches to take.
        output: result JSON.
        weights: state dict file for a timm name, or a folder of NAME.safetensors or NAME.pth.
        random_weights: checkpoint folders' architectures with random weights.
        pooling: cls, cls+mean or mean.
        input_size_px: another input size than the model's own.
        backbone_args: arguments of the timm architecture, class or torch hub entry.
        seed: of random weights.
        batch_size: patches a forward pass.
        device: cpu, cuda, ...
        threads: threads that resize patches.
        precision: of the backbones.
        progress: show a progress bar.
    """
    settings = EmbedSettings(
        batch_size=batch_size, device=device, threads=threads, precision=precision, progress=progress
    )
    model = BackboneSettings(
        weights=weights,
        random_weights=random_weights,
        pooling=pooling,
        input_size_px=input_size_px,
        args=backbone_args,
        seed=seed,
    )
    given = [backbone] if isinstance(backbone, str) else backbone
    if not given:
        raise BackboneError("label-free: no backbone given, at least one needed")
    short = [default_name(name) for name in given]
    # Checkpoint folders of several runs may have the same name.
    names = short if len(set(short)) == len(short) else given
    if len(set(names)) < len(names):
        raise BackboneError(f"label-free: a backbone is given twice, got {', '.join(given)}")
    backbones = {shown: model.load(name) for shown, name in zip(names, given, strict=True)}
    result = measure_stream(stream, backbones, count=count, settings=settings)
    write_label_free(result, Path(output))
    for shown, measured in result["models"].items():
        print(summary_line(shown, measured))
    print(f"{result['patches']} patches of {result['stream']['slides']} slides -> {output}")
