"""Is this dataset what it should be, and do its splits leak?

Each check is a function from a dataset to findings; a finding is `ok`, `warning` or `error` and says in one line what
was found. Nothing is changed, and a dataset with splits that `load_dataset` refuses can be examined too.

Checks: counts against the publication; order of the classes; checksums; splits; groups (patients, slides) in several
splits; the same content in several splits; near-duplicates in several splits. Before: datasets, near_duplicates.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fm_eval.atomic import replace_file
from fm_eval.datasets import PatchDataset, split_problems
from fm_eval.errors import ResultError
from fm_eval.near_duplicates import find_near_duplicates

_SHOWN = 3
_NAMED = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        level: `error` would make numbers wrong, `warning` may, `ok` does not.
        check: which check.
        text: one line.
    """

    level: Literal["ok", "warning", "error"]
    check: str
    text: str


def examine(
    dataset: PatchDataset, *, near_duplicates: bool = True, checksums: bool = True, threads: int = 4
) -> list[Finding]:
    """Run all checks.

    Args:
        dataset: from `read_dataset`.
        near_duplicates: decode every image and compare it with those of other splits.
        checksums: read the files that have a published MD5.
        threads: threads that decode.

    Raises:
        DatasetError: an image cannot be decoded.
    """
    findings = [*_counts(dataset), *_order(dataset), *_splits(dataset), *_groups(dataset), *_identical(dataset)]
    if checksums:
        findings += _checksums(dataset)
    if near_duplicates:
        findings += _near_duplicates(dataset, threads)
    return findings


def write_findings(dataset: PatchDataset, findings: list[Finding], path: Path) -> None:
    """Write the findings as JSON.

    Raises:
        ResultError: the file cannot be written.
    """
    content = {
        "format": "fm-eval-doctor",
        "format_version": 1,
        "dataset": {"name": dataset.name, "layout": dataset.layout, "sha256": dataset.sha256, "rows": len(dataset)},
        "split_source": dataset.split_source,
        "findings": [asdict(finding) for finding in findings],
    }
    try:
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResultError(f"output {path}: cannot be written ({error.strerror or error})") from error


def _counts(dataset: PatchDataset) -> Iterator[Finding]:
    counts = Counter(zip(dataset.table["split"], dataset.table["label"], strict=True))
    total = Counter(dataset.table["split"])
    for split in sorted(total):
        by_class = ", ".join(f"{name} {counts[split, name]}" for name in dataset.classes[:_NAMED])
        more = f", ... {len(dataset.classes)} classes" if len(dataset.classes) > _NAMED else ""
        yield Finding("ok", "counts", f"{split} {total[split]}: {by_class}{more}")
    published = dataset.published
    if published is None or dataset.split_source != "given":
        return
    off = [
        f"{split} has {total[split]}, published are {count}"
        for split, count in published.images.items()
        if total[split] != count
    ]
    off += [
        f"{split} {name} has {counts[split, name]}, published are {count}"
        for split, classes in published.images_of_class.items()
        for name, count in classes.items()
        if counts[split, name] != count
    ]
    if off:
        yield Finding("error", "counts", f"{_some(off)} ({published.source})")
    else:
        yield Finding("ok", "counts", f"as published ({published.source})")


def _order(dataset: PatchDataset) -> Iterator[Finding]:
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(dataset.classes[:_NAMED]))
    note = f"; {dataset.order_note}" if dataset.order_note else ""
    yield Finding("ok", "class order", f"{numbered}{', ...' if len(dataset.classes) > _NAMED else ''}{note}")


def _splits(dataset: PatchDataset) -> Iterator[Finding]:
    yield Finding("ok", "split", dataset.split_source)
    for problem in split_problems(dataset, groups_may_cross=True):
        yield Finding("error", "split", problem)


def _groups(dataset: PatchDataset) -> Iterator[Finding]:
    if not dataset.groups_known:
        yield Finding("warning", "groups", "nothing is known of patients or slides: a leak of them cannot be seen")
        return
    crossing = dataset.groups_across_splits
    count = dataset.table["group_id"].nunique()
    if crossing:
        images = int(dataset.table["group_id"].isin(crossing).sum())
        yield Finding(
            "error",
            "groups",
            f"{len(crossing)} of {count} groups are in several splits ({images} images): {_some(crossing)}",
        )
    else:
        yield Finding("ok", "groups", f"each of {count} groups is in one split")


def _identical(dataset: PatchDataset) -> Iterator[Finding]:
    table = dataset.table.assign(digest=list(dataset.digests))
    of_content = table.groupby("digest")
    crossing = of_content["split"].nunique()
    contradicting = of_content["label"].nunique()
    if (crossing > 1).any():
        first = table[table["digest"] == crossing.index[crossing > 1][0]]
        where = ", ".join(f"{path} ({split})" for path, split in zip(first["path"], first["split"], strict=True))
        yield Finding(
            "error", "identical", f"{dataset.identical_across_splits} images have a twin in another split: {where}"
        )
    else:
        inside = int(table["digest"].duplicated().sum())
        text = f"no image is in two splits; {inside} are repeated within one"
        yield Finding("warning" if inside else "ok", "identical", text)
    if (contradicting > 1).any():
        first = table[table["digest"] == contradicting.index[contradicting > 1][0]]
        where = ", ".join(f"{path} ({label})" for path, label in zip(first["path"], first["label"], strict=True))
        yield Finding("error", "identical", f"{(contradicting > 1).sum()} images have two labels: {where}")


def _checksums(dataset: PatchDataset) -> Iterator[Finding]:
    published = dataset.published
    if published is None or not published.md5:
        return
    found = {name: _md5(dataset.root / name) for name in published.md5}
    wrong = {name for name, md5 in found.items() if md5 != published.md5[name]}
    for first, second in published.swapped_md5:
        if {first, second} <= wrong and (found[first], found[second]) == (published.md5[second], published.md5[first]):
            yield Finding("error", "checksums", f"{first} and {second} are exchanged: rename them")
            wrong -= {first, second}
        elif not {first, second} & wrong:
            yield Finding(
                "ok",
                "checksums",
                f"{first} and {second} are right, though the dataset's README has their checksums the wrong way round",
            )
    for name in sorted(wrong):
        yield Finding("error", "checksums", f"{name} has MD5 {found[name]}, published is {published.md5[name]}")
    if not wrong:
        yield Finding("ok", "checksums", f"{len(found)} files compared with {published.source}")


def _near_duplicates(dataset: PatchDataset, threads: int) -> Iterator[Finding]:
    split = dataset.table["split"].to_numpy(dtype=str)
    pairs = find_near_duplicates(dataset.images, split, threads=threads)
    # the very same content is a finding of its own
    pairs = [pair for pair in pairs if dataset.digests[pair.first] != dataset.digests[pair.second]]
    if not pairs:
        yield Finding("ok", "near-duplicates", "no picture is in two splits turned, mirrored, zoomed or recompressed")
        return
    images = np.unique([(pair.first, pair.second) for pair in pairs])
    path = dataset.table["path"]
    shown = [f"{path.iloc[pair.first]} ~ {path.iloc[pair.second]} ({pair.similarity:.2f})" for pair in pairs]
    yield Finding(
        "error",
        "near-duplicates",
        f"{len(images)} of {len(dataset)} images look like one of another split: {_some(shown)}",
    )


def _some(texts: list[str]) -> str:
    more = f", ... ({len(texts) - _SHOWN} more)" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
