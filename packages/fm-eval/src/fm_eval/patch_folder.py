"""How does a stream of patches become a labelled dataset on disk?

The paper's TP53 task: 102,400 patches drawn from the diagnostic slides, each slide with equal probability, labelled
with their patient's status. The stream draws; a patch of a patient without a label is passed over, so that labelled
slides keep equal probability. Patches are PNG files; `index.csv`, written last, makes the folder a dataset with the
patients as groups. Before: tp53. After: datasets, with folds.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from fm_eval.atomic import replace_file
from fm_eval.contract import PatchStream, samples_of
from fm_eval.errors import DatasetError
from fm_eval.progress import progress_bar
from fm_eval.tp53 import patient_of

# the endless stream of a catalog with no labelled patient would never end
_MOST_PASSED_OVER = 10_000
_PATCHES_A_FOLDER = 1_000
_THREADS = 4
_KEPT = ("slide_id", "x_level0_px", "y_level0_px", "mpp", "foreground", "index")


def write_patch_folder(stream: PatchStream, labels: Path, *, count: int, folder: Path, progress: bool = False) -> str:
    """Draw patches until `count` have a label.

    Args:
        stream: samples with `image`, `slide_id` and, unless slide ids are TCGA barcodes, `patient`.
        labels: CSV with the columns patient,label.
        count: patches to write, at least 1.
        folder: made if need be; must not hold an index yet.
        progress: show a progress bar.

    Returns:
        What was written, in one line.

    Raises:
        DatasetError: no such labels, an index is there already, samples without patient, or the stream ends early.
    """
    if count < 1:
        raise DatasetError(f"patches: got count {count}, at least 1 needed")
    if (folder / "index.csv").exists():
        raise DatasetError(f"patches {folder}: holds an index.csv already; give another folder or delete it")
    label_of = _read_labels(labels)
    rows: list[dict[str, Any]] = []
    passed = passed_in_turn = 0
    writing: list[Future[None]] = []
    with ThreadPoolExecutor(_THREADS) as pool, progress_bar(total=count, unit="patch", disable=not progress) as bar:
        for sample in samples_of(stream, reader="patches"):
            patient = _patient(sample)
            if patient not in label_of:
                passed, passed_in_turn = passed + 1, passed_in_turn + 1
                if passed_in_turn >= _MOST_PASSED_OVER:
                    raise DatasetError(
                        f"patches: {passed_in_turn} in turn are of patients without a label (the last: {patient!r}); "
                        f"is {labels} of these slides?"
                    )
                continue
            passed_in_turn = 0
            path = f"{len(rows) // _PATCHES_A_FOLDER:04d}/{len(rows):07d}.png"
            rows.append({"path": path, "label": label_of[patient], "group_id": patient} | _kept(sample))
            writing.append(pool.submit(_write, folder / path, sample["image"]))
            if len(writing) >= 64 * _THREADS:
                _finish(writing)
            bar.update()
            if len(rows) == count:
                break
        _finish(writing)
    if len(rows) < count:
        raise DatasetError(f"patches: the stream ended after {len(rows)} labelled patches of {count}")
    table = pd.DataFrame(rows)
    with replace_file(folder / "index.csv") as temporary:
        table.to_csv(temporary, index=False)
    shares = ", ".join(f"{n} {label}" for label, n in table["label"].value_counts().items())
    patients = table["group_id"].nunique()
    return f"{count} patches of {patients} patients ({shares}), {passed} passed over without a label -> {folder}"


def _read_labels(path: Path) -> dict[str, str]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"labels {path}: not a readable CSV ({' '.join(str(error).split())})") from error
    missing = [name for name in ("patient", "label") if name not in table]
    if missing:
        raise DatasetError(f"labels {path}: no column {missing[0]!r}, got {', '.join(map(str, table.columns))}")
    twice = table["patient"][table["patient"].duplicated()]
    if len(twice):
        raise DatasetError(f"labels {path}: patient {twice.iloc[0]} is listed twice")
    if table["label"].nunique() < 2:
        raise DatasetError(f"labels {path}: {table['label'].nunique()} classes, at least 2 needed")
    return dict(zip(table["patient"], table["label"], strict=True))


def _patient(sample: dict[str, Any]) -> str:
    patient = sample.get("patient") or patient_of(str(sample["slide_id"]))
    if patient is None:
        raise DatasetError(
            f"patches: slide {sample['slide_id']} is not a TCGA barcode and the sample has no patient; "
            "give the catalog a column patient and the stream columns=[patient]"
        )
    return str(patient)


def _kept(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: sample[key] for key in _KEPT if key in sample}


def _write(path: Path, image: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, "PNG", compress_level=1)
    except OSError as error:
        raise DatasetError(f"patches {path}: cannot be written ({error.strerror or error})") from error


def _finish(writing: list[Future[None]]) -> None:
    for future in writing:
        future.result()
    writing.clear()
