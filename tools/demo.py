"""The main job from end to end: slides in a bucket -> catalog -> patches -> DINO -> evaluation -> report.

    python tools/demo.py                                            sample slides, made and served here
    python tools/demo.py --slides URL-OR-FOLDER --eval FOLDER       your own (FOLDER holds index.csv)

Every step is a command of one of the three packages, shown before it runs, so that each can be repeated by hand. Slides
and catalog of an earlier run are used again where they still fit; training starts anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from job_steps import COLOUR_PROBE, StepFailedError, run_command, say, slides_in_bucket
from make_sample_slides import make_patches, make_slides

REPOSITORY = Path(__file__).resolve().parent.parent
PATCHES_PER_CLASS = 300


def main() -> int:
    """Run the demo; returns its exit code."""
    arguments = _parse()
    started = time.monotonic()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    try:
        with _slides(arguments) as (slides, columns):
            left_out = _index(arguments, slides, columns)
            results = [path for seed in range(arguments.seeds) for path in _train_and_evaluate(arguments, seed)]
        run_command(
            "fm-eval", "report", *results, "--output", output / "report.html", "--summary", output / "result.json"
        )
    except StepFailedError as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print(f"\ndone in {(time.monotonic() - started) / 60:.1f} minutes")
    for role, scores in json.loads((output / "result.json").read_text()).items():
        if isinstance(scores, dict) and "mean" in scores:
            print(f"  {role:8} balanced accuracy {scores['mean']:.3f} ± {scores['std']:.3f}")
    print(f"  report   {output / 'report.html'}\n  numbers  {output / 'result.json'}")
    if left_out:
        print("demo: slides were left out, see the lines that begin with 'left out'", file=sys.stderr)
    return 1 if left_out else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", nargs="+", help="slides or folders of slides, local or URL (default: samples)")
    parser.add_argument("--eval", type=Path, help="folder with index.csv: path,label,group_id,split (default: samples)")
    parser.add_argument(
        "--mpp", action="append", default=[], help="um/px for slides that state none: VALUE or ID=VALUE"
    )
    parser.add_argument("--metadata", type=Path, help="CSV with columns to add to the catalog")
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "ssl" / "demo.yaml")
    parser.add_argument("--seeds", type=int, default=1, help="training seeds; the report shows mean and std over them")
    parser.add_argument("--output", type=Path, default=Path("demo"))
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds: got {arguments.seeds}, allowed at least 1")
    for name in ("eval", "config", "metadata"):
        path = getattr(arguments, name)
        if path is not None and not path.exists():
            parser.error(f"--{name} {path}: does not exist")
    return arguments


@contextlib.contextmanager
def _slides(arguments: argparse.Namespace) -> Iterator[tuple[list[str], Path | None]]:
    """Where the slides lie while the block runs, and the CSV of their columns."""
    if arguments.slides:
        yield arguments.slides, arguments.metadata
        return
    folder = arguments.output / "slides"
    with slides_in_bucket(folder, make_slides) as url:
        yield [url], folder / "slides.csv"


def _index(arguments: argparse.Namespace, slides: list[str], columns: Path | None) -> bool:
    """Catalog with foreground; returns whether slides were left out."""
    catalog = arguments.output / "catalog"
    options: list[object] = [f"--mpp={value}" for value in arguments.mpp]
    if columns is not None:
        options += ["--metadata", columns]
    # Exit code 1: some slides were left out, each by name; the catalog of the others is whole.
    code = run_command(
        "online-patching", "index", *slides, "--catalog", catalog, *options, "--foreground", accept=(0, 1)
    )
    return code == 1


def _train_and_evaluate(arguments: argparse.Namespace, seed: int) -> list[Path]:
    """Evaluate, train, and evaluate again with one seed; returns the result files.

    What needs no training is evaluated first, so that a mistake in the evaluation data shows within seconds.
    """
    run: Path = arguments.output / f"seed_{seed}"
    shutil.rmtree(run, ignore_errors=True)
    data = _evaluation_data(arguments)

    def evaluate(role: str, backbone: object) -> Path:
        result = run / f"{role}.json"
        options = ["--backbone", backbone, "--role", role, "--name", role, f"--seed={seed}"]
        cache = arguments.output / "embeddings"
        run_command("fm-eval", "run", "--data", data, *options, "--cache", cache, "--output", result)
        return result

    config = ["--config", arguments.config, f"--seed_everything={seed}"]
    config.append(f"--data.stream.init_args.catalog={arguments.output / 'catalog'}")
    config.append(f"--data.stream.init_args.seed={seed}")
    results = [evaluate("colour", COLOUR_PROBE)]
    run_command("ssl-train", "export", *config, "--output", run / "random")
    results.append(evaluate("random", run / "random"))
    run_command("ssl-train", "fit", *config, f"--trainer.default_root_dir={run}")
    checkpoint = run / "checkpoints" / "last.ckpt"
    run_command("ssl-train", "export", *config, "--ckpt_path", checkpoint, "--output", run / "trained")
    return [*results, evaluate("trained", run / "trained")]


def _evaluation_data(arguments: argparse.Namespace) -> Path:
    if arguments.eval is not None:
        return Path(arguments.eval)
    folder: Path = arguments.output / "patches"
    if not (folder / "index.csv").exists():
        say("make labelled patches")
        make_patches(folder, patches_per_class=PATCHES_PER_CLASS)
    return folder


if __name__ == "__main__":
    sys.exit(main())
