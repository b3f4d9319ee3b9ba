"""The command `fm-eval`: run, embed, report.

Every argument can come from the command line or from `--config FILE.yaml`. What a user can cause is answered
by one line on stderr and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser

from fm_eval.backbone import Pooling, load_backbone
from fm_eval.compare import group_by_role, verdict, write_summary
from fm_eval.datasets import load_dataset
from fm_eval.embed import embed_images
from fm_eval.errors import FmEvalError, ResultError
from fm_eval.evaluate import EvalSettings, evaluate
from fm_eval.protocol import get_protocol
from fm_eval.report import write_report
from fm_eval.result import read_result, write_result


def run(
    *,
    data: str,
    backbone: str,
    output: str = "result.json",
    name: str | None = None,
    role: str = "trained",
    protocol: str | list[str] = "paper-standardized",
    weights: str | None = None,
    random_weights: bool = False,
    pooling: Pooling | None = None,
    backbone_args: dict[str, Any] | None = None,
    seed: int = 0,
    split_seed: int = 0,
    k: int = 20,
    batch_size: int = 64,
    device: str = "cpu",
    threads: int = 4,
    precision: Literal["fp32", "bf16"] = "fp32",
    progress: bool = True,
) -> None:
    """Evaluate one backbone on one dataset and write a result JSON.

    Args:
        data: index CSV (path,label,group_id[,split]) or the folder that holds index.csv.
        backbone: checkpoint folder, timm name, or class path.
        output: result JSON.
        name: shown in reports; the backbone by default.
        role: what reports compare: trained, random, colour or any other word.
        protocol: paper-standardized, paper, eva-0.0.2, eva-0.4, or a list of them (the first is the
            headline).
        weights: state dict file for a timm name.
        random_weights: a checkpoint folder's architecture with random weights, its untrained twin.
        pooling: cls, cls+mean or mean.
        backbone_args: arguments of the timm architecture or class.
        seed: of random weights, probe heads and orders.
        split_seed: of the split that is made when the index has none.
        k: neighbours of k-NN.
        batch_size: images a forward pass.
        device: cpu, cuda, ...
        threads: threads that decode images.
        precision: of the backbone.
        progress: show progress bars.
    """
    protocols = [get_protocol(one) for one in ([protocol] if isinstance(protocol, str) else protocol)]
    dataset = load_dataset(data, split_seed=split_seed, threads=threads)
    loaded = load_backbone(
        backbone,
        weights=weights,
        random_weights=random_weights,
        seed=seed,
        pooling=pooling,
        args=backbone_args,
    )
    settings = EvalSettings(
        seed=seed,
        k=k,
        batch_size=batch_size,
        device=device,
        threads=threads,
        bf16=precision == "bf16",
        progress=progress,
    )
    result = evaluate(
        dataset,
        loaded,
        name=name or _default_name(backbone),
        role=role,
        protocols=protocols,
        settings=settings,
    )
    write_result(result, output)
    scores = result.probes[0].scores[result.reported_split]
    spread = "" if scores.std is None else f" ± {scores.std:.3f} over {len(scores.balanced_accuracy)} runs"
    print(f"{result.name}: {result.reported_split} balanced accuracy {scores.mean:.3f}{spread} -> {output}")


def _default_name(backbone: str) -> str:
    """Folder name, timm name, or the class at the end of a class path."""
    return (
        Path(backbone).name if "/" in backbone or not backbone.split(".")[-1][:1].isupper() else backbone.split(".")[-1]
    )


def embed(
    *,
    data: str,
    backbone: str,
    output: str = "embeddings.npy",
    weights: str | None = None,
    random_weights: bool = False,
    pooling: Pooling | None = None,
    backbone_args: dict[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "cpu",
    threads: int = 4,
    precision: Literal["fp32", "bf16"] = "fp32",
    progress: bool = True,
) -> None:
    """Embed a dataset and write float32 (N, K) in the order of the index.

    Args:
        data: index CSV (path,label,group_id[,split]) or the folder that holds index.csv.
        backbone: checkpoint folder, timm name, or class path.
        output: .npy file.
        weights: state dict file for a timm name.
        random_weights: a checkpoint folder's architecture with random weights.
        pooling: cls, cls+mean or mean.
        backbone_args: arguments of the timm architecture or class.
        seed: of random weights.
        batch_size: images a forward pass.
        device: cpu, cuda, ...
        threads: threads that decode images.
        precision: of the backbone.
        progress: show a progress bar.
    """
    dataset = load_dataset(data, threads=threads)
    loaded = load_backbone(
        backbone,
        weights=weights,
        random_weights=random_weights,
        seed=seed,
        pooling=pooling,
        args=backbone_args,
    )
    embeddings = embed_images(
        dataset.paths,
        loaded,
        batch_size=batch_size,
        device=device,
        threads=threads,
        bf16=precision == "bf16",
        progress=progress,
    )
    try:
        with Path(output).open("wb") as file:
            np.save(file, embeddings)
    except OSError as error:
        raise ResultError(f"output {output}: cannot be written ({error.strerror})") from error
    print(f"{embeddings.shape[0]} x {embeddings.shape[1]} float32 -> {output}")


def report(results: list[str], *, output: str = "report.html", summary: str | None = None) -> None:
    """Write one HTML report of several results.

    Args:
        results: result JSON files of `fm-eval run`; those of one role count as seeds of one model.
        output: HTML file.
        summary: also write mean and std of the headline balanced accuracy by role, as JSON.
    """
    loaded = [read_result(path) for path in results]
    write_report(loaded, output)
    if summary is not None:
        write_summary(loaded, summary)
    print(f"{verdict(group_by_role(loaded))[1]} -> {output}")


_COMMANDS: dict[str, Callable[..., None]] = {"run": run, "embed": embed, "report": report}


def build_parser() -> ArgumentParser:
    """The parser of all commands; its arguments are those of the functions above."""
    parser = ArgumentParser(prog="fm-eval", description="Evaluate frozen pathology models.", exit_on_error=False)
    commands = parser.add_subcommands(required=True)
    for name, function in _COMMANDS.items():
        command = ArgumentParser(description=(function.__doc__ or "").split("\n")[0], exit_on_error=False)
        command.add_argument("--config", action="config", help="YAML file with any of these arguments")
        if function is report:
            command.add_argument("results", nargs="+", type=str, help="result JSON files of `fm-eval run`")
        command.add_function_arguments(function, as_group=False, skip={"results"})
        commands.add_subcommand(name, command, help=(function.__doc__ or "").split("\n")[0])
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    try:
        config = parser.parse_args(argv)
        command = config.subcommand
        arguments = config[command].as_dict()
        arguments.pop("config", None)
        _COMMANDS[command](**arguments)
    except (FmEvalError, ArgumentError) as error:
        print(f"fm-eval: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
