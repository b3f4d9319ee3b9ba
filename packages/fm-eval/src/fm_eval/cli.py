"""The command `fm-eval`: run, embed, label-free, segment, watch, compare, report, doctor, tp53, patches.

Every argument can come from the command line or from `--config FILE.yaml`. What a user can cause is answered
by one line on stderr and exit code 2; Ctrl-C is 130, and a reader that goes away (`| head`) 141.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import Path_fr

from fm_eval.atomic import replace_file
from fm_eval.backbone import Pooling
from fm_eval.benchmark import run_tasks
from fm_eval.cache import cache_folder
from fm_eval.compare_cli import compare
from fm_eval.data_cli import doctor, patches, tp53
from fm_eval.datasets import SplitChoice, load_dataset
from fm_eval.embed import EmbedSettings, Precision
from fm_eval.errors import DatasetError, FmEvalError, ResultError
from fm_eval.label_free_cli import label_free
from fm_eval.loading import load_backbone
from fm_eval.report_cli import report
from fm_eval.run_heads import HeadName
from fm_eval.segmentation.cli import segment
from fm_eval.store import embed_dataset
from fm_eval.task import BackboneSettings, MachineSettings, Task, listed_tasks, run_task
from fm_eval.watch_cli import watch


def run(
    *,
    backbone: str | list[str],
    data: str | None = None,
    tasks: list[Path_fr] | None = None,
    data_root: str = ".",
    output: str = "result.json",
    name: str | None = None,
    role: str = "trained",
    layout: str = "auto",
    split: SplitChoice = "given",
    split_seed: int = 0,
    folds: int | None = None,
    protocol: str | list[str] | None = None,
    weights: str | None = None,
    random_weights: bool = False,
    pooling: Pooling | None = None,
    input_size_px: int | None = None,
    backbone_args: dict[str, Any] | None = None,
    seed: int = 0,
    heads: list[HeadName] | None = None,
    resamples: int = 1000,
    k: int = 20,
    batch_size: int = 64,
    device: str = "cpu",
    devices: int = 1,
    threads: int = 4,
    precision: Precision = "fp32",
    cache: str = "auto",
    progress: bool = True,
) -> None:
    """Evaluate backbones on one dataset, or on the tasks of a benchmark, and write result JSONs.

    Args:
        backbone: checkpoint folder, timm name, torch hub or Hugging Face folder, or class path; with tasks also a list.
        data: folder of a dataset in its public layout, or an index CSV (path,label,group_id[,split]).
        tasks: YAML files of tasks, relative to the file that lists them; data that is not on disk is skipped.
        data_root: folder that a relative `data` is below.
        output: result JSON; with tasks the folder of results, a folder for each backbone.
        name: shown in reports; the backbone by default.
        role: what reports compare: trained, random, colour or any other word.
        layout: auto, index, bach, crc, mhist, pcam, cifar10, cifar100 or food101.
        split: given (or else made), group (made, groups whole), image (made by image: leaks).
        split_seed: of a split or folds that are made.
        folds: cross-validation over groups with this many folds instead of one split; a result each.
        protocol: paper-standardized (default), paper, eva-0.0.2, eva-0.4, or a list (the first is the headline).
        weights: state dict file for a timm name, or a folder of NAME.safetensors or NAME.pth.
        random_weights: a checkpoint folder's architecture with random weights, its untrained twin.
        pooling: cls, cls+mean or mean.
        input_size_px: another input size than the model's own.
        backbone_args: arguments of the timm architecture, class or torch hub entry.
        seed: of random weights, probe heads and orders.
        heads: beside the linear probe and k-NN: simpleshot (the default), few-shot, logistic.
        resamples: of the bootstrap behind the intervals; 0 leaves them out.
        k: neighbours of k-NN.
        batch_size: images a forward pass.
        device: cpu, cuda, ...
        devices: processes that embed, each on a device of its own (or on the CPU).
        threads: threads that decode images.
        precision: of the backbone.
        cache: folder that keeps embeddings, auto (below ~/.cache) or none.
        progress: show progress bars.
    """
    machine = MachineSettings(
        batch_size=batch_size,
        device=device,
        devices=devices,
        threads=threads,
        precision=precision,
        cache=cache_folder(cache),
        progress=progress,
    )
    model = BackboneSettings(
        weights=weights,
        random_weights=random_weights,
        pooling=pooling,
        input_size_px=input_size_px,
        args=backbone_args,
        seed=seed,
        role=role,
    )
    task = Task(
        name=Path(output).stem,
        data=data or "",
        layout=layout,
        split=split,
        split_seed=split_seed,
        folds=folds,
        protocol=protocol,
        heads=heads,
        resamples=resamples,
        k=k,
    )
    if tasks is not None:
        if data is not None:
            raise ResultError("run: got data and tasks; a task has its own data")
        listed = listed_tasks([Path(str(path.absolute)) for path in tasks], task)
        names = [backbone] if isinstance(backbone, str) else backbone
        root, folder = Path(data_root), Path(output)
        for line in run_tasks(listed, names, model, machine, data_root=root, output=folder, name=name):
            print(line, flush=True)
        return
    if data is None or not isinstance(backbone, str):
        raise ResultError("run: give data and one backbone, or tasks")
    for line in run_task(task, backbone, model, machine, data_root=Path(data_root), output=Path(output), name=name):
        print(line, flush=True)


def embed(
    *,
    data: str,
    backbone: str,
    output: str = "embeddings.npy",
    layout: str = "auto",
    weights: str | None = None,
    random_weights: bool = False,
    pooling: Pooling | None = None,
    input_size_px: int | None = None,
    backbone_args: dict[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "cpu",
    devices: int = 1,
    threads: int = 4,
    precision: Precision = "fp32",
    cache: str = "auto",
    progress: bool = True,
) -> None:
    """Embed a dataset and write float32 (N, K) in the order of the dataset.

    Args:
        data: folder of a dataset in its public layout, or an index CSV (path,label,group_id[,split]).
        backbone: checkpoint folder, timm name, torch hub or Hugging Face folder, or class path.
        output: .npy file.
        layout: auto, index, bach, crc, mhist, pcam, cifar10, cifar100 or food101.
        weights: state dict file for a timm name.
        random_weights: a checkpoint folder's architecture with random weights.
        pooling: cls, cls+mean or mean.
        input_size_px: another input size than the model's own.
        backbone_args: arguments of the timm architecture, class or torch hub entry.
        seed: of random weights.
        batch_size: images a forward pass.
        device: cpu, cuda, ...
        devices: processes that embed, each on a device of its own (or on the CPU).
        threads: threads that decode images.
        precision: of the backbone.
        cache: folder that keeps embeddings, auto (below ~/.cache) or none.
        progress: show a progress bar.
    """
    store = cache_folder(cache)
    dataset = load_dataset(data, layout=layout, cache=store, threads=threads)
    loaded = load_backbone(
        backbone,
        weights=weights,
        random_weights=random_weights,
        seed=seed,
        pooling=pooling,
        input_size_px=input_size_px,
        args=backbone_args,
    )
    settings = EmbedSettings(
        batch_size=batch_size,
        device=device,
        devices=devices,
        threads=threads,
        precision=precision,
        progress=progress,
    )
    embedded = embed_dataset(dataset, loaded, store=store, settings=settings)
    try:
        with replace_file(Path(output)) as temporary, temporary.open("wb") as file:
            np.save(file, embedded.values)
    except OSError as error:
        raise ResultError(f"output {output}: cannot be written ({error.strerror})") from error
    rows, width = embedded.values.shape
    print(f"{rows} x {width} float32, {embedded.computed} of them embedded now -> {output}")


_COMMANDS: dict[str, Callable[..., int | None]] = {
    "run": run,
    "embed": embed,
    "label-free": label_free,
    "segment": segment,
    "watch": watch,
    "compare": compare,
    "report": report,
    "doctor": doctor,
    "tp53": tp53,
    "patches": patches,
}


# What is given without an option's name: its help, and whether there may be several.
_POSITIONAL: dict[str, tuple[str, str, bool]] = {
    "compare": ("results", "result JSON files of `fm-eval run` and `fm-eval segment`", True),
    "report": ("results", "files of `fm-eval run`, `segment` and `watch` (curves.json), and of benchmarks", True),
    "doctor": ("data", "folder of a dataset in its public layout, or an index CSV", False),
    "watch": ("folder", "folder in which checkpoint folders appear", False),
}


def build_parser() -> ArgumentParser:
    """The parser of all commands; its arguments are those of the functions above."""
    parser = ArgumentParser(prog="fm-eval", description="Evaluate frozen pathology models.", exit_on_error=False)
    commands = parser.add_subcommands(required=True)
    for command_name, function in _COMMANDS.items():
        summary = (function.__doc__ or "").split("\n")[0]
        command = ArgumentParser(description=summary, exit_on_error=False)
        command.add_argument("--config", action="config", help="YAML file with any of these arguments")
        skip: set[str | int] = set()
        if command_name in _POSITIONAL:
            argument, text, several = _POSITIONAL[command_name]
            command.add_argument(argument, type=str, help=text, nargs="+" if several else None)
            skip = {argument}
        command.add_function_arguments(function, as_group=False, skip=skip)
        commands.add_subcommand(command_name, command, help=summary)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    try:
        config = parser.parse_args([_underscored(word) for word in (sys.argv[1:] if argv is None else argv)])
        command = config.subcommand
        try:
            arguments = parser.instantiate(config)[command].as_dict()
        except Exception as error:  # the only object that is built here is a stream, of another package
            raise DatasetError(f"stream: {error}") from error
        arguments.pop("config", None)
        code = _COMMANDS[command](**arguments) or 0
        sys.stdout.flush()
        return code
    except (FmEvalError, ArgumentError) as error:
        print(f"fm-eval: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fm-eval: interrupted; the same command goes on from what it has kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _forget_output()
        return 141
    except OSError as error:
        print(f"fm-eval: {error}; check the place, its permissions and its space", file=sys.stderr)
        _forget_output()
        return 2


def _forget_output() -> None:
    """What could not be written is not tried again when Python ends, which would show a traceback."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _underscored(word: str) -> str:
    """`--max-drop=0.01` as `--max_drop=0.01`: options may be written either way."""
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word


if __name__ == "__main__":
    sys.exit(main())
