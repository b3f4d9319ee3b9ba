"""The command `fm-eval compare`: which model is better, and, with a baseline, has one become worse?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from fm_eval.comparison import Comparable, Comparison, compare_results, write_comparison
from fm_eval.errors import ReportError
from fm_eval.gate import gate, markdown
from fm_eval.result import read_result, write_atomically
from fm_eval.segmentation.comparing import not_comparable
from fm_eval.segmentation.result import SegmentationResult, is_segmentation, read_segmentation


def compare(
    results: list[str],
    *,
    baseline: list[str] | str | None = None,
    max_drop: float | None = None,
    by: Literal["name", "role", "file", "weights"] = "name",
    output: str | None = None,
    markdown_output: str | None = None,
    permutations: int = 10_000,
    resamples: int = 2_000,
    seed: int = 0,
) -> int:
    """Compare models on the same rows; with a baseline, fail (exit code 1) where one has become worse.

    Args:
        results: result JSON files of `fm-eval run` and `fm-eval segment`, of one or several tasks.
        baseline: result JSON files that the results must not fall below.
        max_drop: of balanced accuracy (pooled DICE in segmentation) that is allowed below the baseline; 0.01 is one
            point.
        by: what tells models apart: name, role, file (each file is one) or weights; not used with a baseline.
        output: also write the comparison as JSON.
        markdown_output: also write the gate's summary for a pull request there.
        permutations: of the paired test.
        resamples: of the bootstrap.
        seed: of both.
    """
    loaded = {path: _read(path) for path in results}
    if len(loaded) < len(results):
        raise ReportError("compare: a file is given twice")
    drawn = {"permutations": permutations, "resamples": resamples, "seed": seed}
    if baseline is None:
        if max_drop is not None or markdown_output is not None:
            raise ReportError("compare: max_drop and markdown_output belong to a gate; give a baseline too")
        for path, reason in [(path, _left_out(result)) for path, result in loaded.items()]:
            if reason is not None:
                print(f"left out: {path} {reason}")
                del loaded[path]
        comparison = compare_results(list(loaded.values()), by=_naming(loaded, by), **drawn)
        print("\n".join(told(comparison)))
        if output is not None:
            write_comparison(comparison, Path(output))
        return 0
    if output is not None:
        raise ReportError("compare: a gate writes --markdown_output; leave --output out")
    paths = [baseline] if isinstance(baseline, str) else baseline
    gates = gate(
        list(loaded.values()),
        [_read(path) for path in paths],
        max_drop=0.0 if max_drop is None else max_drop,
        **drawn,
    )
    summary = markdown(gates)
    print(summary, end="")
    if markdown_output is not None:
        write_atomically(Path(markdown_output), summary)
    return 0 if all(one.passed for one in gates) else 1


def told(comparison: Comparison) -> list[str]:
    """The comparison as lines of text."""
    lines = []
    for pair in comparison.pairs:
        found = pair.found
        interval = "" if found.low is None or found.high is None else f" ({found.low:+.3f} to {found.high:+.3f})"
        lines.append(
            f"{pair.task}: {pair.one} {found.one:.3f}, {pair.other} {found.other:.3f}, difference "
            f"{found.difference:+.3f}{interval}, p {found.p_value:.4f}, corrected {pair.p_adjusted:.4f}: {pair.verdict}"
        )
    lines.append(f"{len(comparison.pairs)} tests together at 5 % (Holm); intervals are 95 % of single tests")
    metrics = " and ".join(dict.fromkeys(pair.found.metric for pair in comparison.pairs))
    lines += [
        f"rank {rank.mean_rank:.1f}: {rank.model}, mean {metrics} {rank.mean:.3f}, "
        f"shown better {rank.better_than} times, worse {rank.worse_than} times"
        for rank in comparison.ranks
    ]
    unknown = list(dict.fromkeys(pair.task for pair in comparison.pairs if not pair.groups_known))
    if unknown:
        lines.append(f"note: groups are not known in {', '.join(unknown)}, where rows are taken for independent")
    single = list(dict.fromkeys(pair.task for pair in comparison.pairs if pair.found.run_std_error is None))
    if single:
        lines.append(f"note: one run each in {', '.join(single)}, so noise between runs is not counted")
    return lines


def _read(path: str) -> Comparable:
    return read_segmentation(path) if is_segmentation(path) else read_result(path)


def _left_out(result: Comparable) -> str | None:
    """Why a comparison goes on without a result; a gate takes all or none."""
    return not_comparable(result) if isinstance(result, SegmentationResult) else None


def _naming(loaded: dict[str, Comparable], by: str) -> Callable[[Comparable], str]:
    """What names the model of a result."""
    path_of = {id(result): path for path, result in loaded.items()}
    ways: dict[str, Callable[[Comparable], str]] = {
        "name": lambda result: result.name,
        "role": lambda result: result.role,
        "file": lambda result: path_of[id(result)],
        "weights": lambda result: str(result.backbone["weights_sha256"])[:12],
    }
    return ways[by]
