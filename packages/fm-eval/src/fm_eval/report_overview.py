"""What does the report say of all tasks together?

The verdict on each task, all models on all tasks beside the rows that the paper published, paired differences with
their correction, ranks, and what every number cost. Before: compare, comparison, published. After: report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from fm_eval.compare import Group, headline, pm, verdict
from fm_eval.comparison import Comparison, compare_results
from fm_eval.errors import ReportError
from fm_eval.page import Section, note, table
from fm_eval.published import SOURCE, published_rows
from fm_eval.result import EvalResult

Tasks = Mapping[str, Sequence[Group]]

_MOST_MODELS = 6


def verdicts(tasks: Tasks) -> str:
    """A sentence a task, as HTML."""
    parts = []
    for task, groups in tasks.items():
        won, sentence = verdict(groups)
        start = f"{escape(task)}: " if len(tasks) > 1 else ""
        parts.append(f'<p class="verdict{" won" if won else ""}">{start}{escape(sentence)}</p>')
    return "".join(parts)


def summary_section(tasks: Tasks) -> Section:
    """All models on all tasks, beside the published rows of these tasks."""
    roles = list(dict.fromkeys(group.role for groups in tasks.values() for group in groups))
    rows, head = [], ["Model", *map(escape, tasks)]
    for role in roles:
        of_role = {task: next((g for g in groups if g.role == role), None) for task, groups in tasks.items()}
        labels = list(dict.fromkeys(group.label for group in of_role.values() if group is not None))
        name = labels[0] if len(labels) == 1 else role
        rows.append([escape(name), *("not run" if group is None else _cell(group) for group in of_role.values())])
    layouts = [str(groups[0].results[0].dataset["layout"]) for groups in tasks.values()]
    keys = [_published_name(layout, task) for layout, task in zip(layouts, tasks, strict=True)]
    published = published_rows(keys)
    if len(tasks) < 2 and not published:
        return Section("summary", "Summary", "")
    rows += [
        [f'<span class="published">{escape(row.model)}, published</span>', *map(row.cell, keys)] for row in published
    ]
    text = "Balanced accuracy on the reported split: mean ± standard deviation, and the 95 % interval over groups. "
    text += f"Published rows: {SOURCE}; for orientation, not tested." if published else ""
    return Section("summary", "Summary", note(text) + table("All models on all tasks", head, rows))


def comparison_section(found: Comparison | None, reason: str | None) -> Section:
    """Paired differences of all models, as `compared` found them."""
    if found is None:
        return Section("comparison", "Differences", "" if reason is None else note(f"Not tested: {reason}"))
    head = ["Task", "Models", "Difference", "95 % interval", "p", "p, corrected", "Verdict"]
    rows = []
    for pair in found.pairs:
        one = pair.found
        interval = "none" if one.low is None or one.high is None else f"{one.low:+.3f} to {one.high:+.3f}"
        chance = [f"{one.p_value:.4f}", f"{pair.p_adjusted:.4f}"]
        models = f"{escape(pair.one)} less {escape(pair.other)}"
        rows.append([escape(pair.task), models, f"{one.difference:+.3f}", interval, *chance, escape(pair.verdict)])
    text = (
        "Paired by patch and clustered by patient or group: p by a permutation test, intervals by the bootstrap, both "
        "aware of what runs have in common; corrected for all tests together (Holm). No difference shown is not the "
        "same as equal."
    )
    if not all(pair.groups_known for pair in found.pairs):
        text += " Where groups are not known, patches are taken for independent."
    if any(pair.found.run_std_error is None for pair in found.pairs):
        text += " Where both models have a single run, noise between runs is not counted."
    ranks = [
        [escape(r.model), f"{r.mean_rank:.2f}", f"{r.mean:.3f}", str(r.better_than), str(r.worse_than)]
        for r in found.ranks
    ]
    rank_head = ["Model", "Mean rank", "Mean balanced accuracy", "Shown better", "Shown worse"]
    tables = table("Paired differences of balanced accuracy", head, rows)
    tables += table("Ranks over the tasks that all models have; 1 is best", rank_head, ranks) if ranks else ""
    return Section("comparison", "Differences", note(text) + tables)


def compared(tasks: Tasks) -> tuple[Comparison | None, str | None]:
    """What `fm-eval compare --by role` finds, or why there is nothing; neither for a single model."""
    results = [result for groups in tasks.values() for group in groups for result in group.results]
    models = len({result.role for result in results})
    if models < 2:
        return None, None
    if models > _MOST_MODELS:
        return None, f"{models} models make {models * (models - 1) // 2} pairs; `fm-eval compare` tests them"
    try:
        return compare_results(results, by=lambda result: result.role), None
    except ReportError as error:
        return None, str(error).removeprefix("compare: ")


def cost_section(tasks: Tasks) -> Section:
    """Seconds and bytes of every result."""
    head = ["Result", "Embedding", "of it computed", "Embeddings", "Probe", "All", "Device"]
    rows = [
        [f"{escape(result.name)}<br><small>{escape(task)}</small>", *_cost(result)]
        for task, groups in tasks.items()
        for group in groups
        for result in group.results
    ]
    text = "Wall time; embeddings that were kept from an earlier run cost their reading only."
    return Section("cost", "What the numbers cost", note(text) + table("Cost of each result", head, rows))


def _cost(result: EvalResult) -> list[str]:
    embedded = result.dataset.get("embeddings", {})
    computed = f"{embedded['computed']:,} images" if "computed" in embedded else "unknown"
    size = f"{embedded['bytes'] / 2**20:.1f} MiB" if "bytes" in embedded else "unknown"
    probes = sum(value for stage, value in result.seconds.items() if stage.startswith("probe"))
    times = [f"{result.seconds.get('embed', 0.0):.1f} s", f"{probes:.1f} s", f"{sum(result.seconds.values()):.1f} s"]
    return [times[0], computed, size, *times[1:], escape(str(result.settings.get("device", "unknown")))]


def _cell(group: Group) -> str:
    first = group.results[0]
    scores = first.probes[0].scores[first.reported_split]
    bounds = scores.intervals.bounds.get("balanced_accuracy") if scores.intervals else None
    interval = f"<br><small>{bounds[0]:.3f} to {bounds[1]:.3f}</small>" if bounds and len(group.results) == 1 else ""
    return pm(headline(group)) + interval


def _published_name(layout: str, task: str) -> str:
    """The paper's name of a task: that of its layout; TP53 is an index CSV, known by the name of its folder."""
    return layout if layout != "index" else "tp53" if task.lower().startswith("tp53") else ""
