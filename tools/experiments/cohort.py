"""Who are the patients of the sample slides, and what of their TP53? Made up, in the formats of the public tables.

The slides hold no trace of it: whatever predicts it from their patches is at chance, and says so.
"""

from __future__ import annotations

import csv
from pathlib import Path

_PATIENT, _SAMPLE = "TCGA-ZZ-{:04d}", "TCGA-ZZ-{:04d}-01A-11D"


def write_patients(slides: Path, path: Path) -> None:
    """The table of the slides with TCGA barcodes as patients, for `online-patching index --metadata`."""
    with slides.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["patient"] = _PATIENT.format(int(row["patient"].rpartition("_")[2]))
    _write(path, [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)], delimiter=",")


def write_cohort_tables(columns: Path, mutations_path: Path, copy_number_path: Path) -> None:
    """Mutations (MAF with VEP's IMPACT) and copy numbers (GISTIC 2, thresholded) of the patients.

    Every third patient has a mutation of high impact, every sixth one both copies deleted; one in ten has no copy
    numbers, so that nothing is known of a patient without a mutation.

    Args:
        columns: the table that `write_patients` wrote.
        mutations_path: where to.
        copy_number_path: where to.
    """
    with columns.open(newline="", encoding="utf-8") as file:
        numbers = sorted({int(row["patient"].rpartition("-")[2]) for row in csv.DictReader(file)})
    mutations = [["Hugo_Symbol", "Tumor_Sample_Barcode", "IMPACT"]]
    for number in numbers:
        mutations.append(["TTN", _SAMPLE.format(number), "MODERATE"])
        if number % 3 == 0:
            mutations.append(["TP53", _SAMPLE.format(number), "HIGH"])
    profiled = [number for number in numbers if number % 10 != 9]
    head = ["Gene Symbol", "Locus ID", "Cytoband", *map(_SAMPLE.format, profiled)]
    gene = ["TP53", "7157", "17p13.1", *("-2" if number % 6 == 1 else "0" for number in profiled)]
    _write(mutations_path, mutations, delimiter="\t")
    _write(copy_number_path, [head, gene], delimiter="\t")


def _write(path: Path, rows: list[list[str]], *, delimiter: str) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)
    partial.replace(path)
