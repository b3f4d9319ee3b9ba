"""Whose TP53 does not work? The paper's rule (section IV-A), from public tables.

A patient's gene is `aberrated` when a tumour sample has a mutation of impact moderate or high, whatever its allele
frequency, or when both copies are deleted (GISTIC -2). It is `functional` when a tumour sample was both sequenced and
copy-number profiled and shows neither. Everybody else is unknown and left out, and counted.

1. mutations: Mutation Annotation Format, with the column IMPACT of VEP. That a patient was sequenced is seen
   from any mutation of any gene, so the table must not be cut down to the gene;
2. copy numbers: GISTIC 2's thresholded values, a row a gene, a column a sample;
3. both are brought to patients: the first three fields of a TCGA barcode; sample types 10 and above are normal
   tissue and count for nothing.

After: patch_folder, which labels patches with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fm_eval.atomic import replace_file
from fm_eval.errors import DatasetError

ABERRATED, FUNCTIONAL = "aberrated", "functional"
_IMPACTS = ("HIGH", "MODERATE", "LOW", "MODIFIER")
_COUNTED = ("HIGH", "MODERATE")
_MAF_COLUMNS = ("Hugo_Symbol", "Tumor_Sample_Barcode", "IMPACT")
_GISTIC_COLUMNS = ("Gene Symbol", "Locus ID", "Cytoband")
_BOTH_COPIES = -2
_ROWS_AT_ONCE = 500_000


@dataclass(frozen=True, slots=True)
class Mutations:
    """Mutations of one gene.

    Attributes:
        impacts: patient to the impacts of the gene's mutations, empty for a patient without any.
    """

    impacts: dict[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class CopyNumber:
    """Copy numbers of one gene.

    Attributes:
        lowest: patient to the lowest GISTIC value, -2 to 2, of the patient's tumour samples.
    """

    lowest: dict[str, int]


@dataclass(frozen=True, slots=True)
class PatientLabels:
    """Labels of patients.

    Attributes:
        table: patient, label, reason; one row a patient, sorted.
        unknown: patients in only one of the tables and not aberrated there.
    """

    table: pd.DataFrame
    unknown: int

    @property
    def summary(self) -> str:
        """Counts, in one line."""
        counts = self.table["label"].value_counts()
        return (
            f"{counts.get(ABERRATED, 0)} aberrated, {counts.get(FUNCTIONAL, 0)} functional, "
            f"{self.unknown} left out (in one table only)"
        )


def read_mutations(path: Path, gene: str = "TP53") -> Mutations:
    """Read a table in Mutation Annotation Format.

    Args:
        path: .maf or .maf.gz; lines that begin with # are comments.
        gene: Hugo symbol.

    Raises:
        DatasetError: not such a table, an unknown impact, or no row of any other gene.
    """
    impacts: dict[str, set[str]] = {}
    other_genes = 0
    for number, rows in enumerate(_maf_chunks(path)):
        rows = rows.assign(patient=np.array(_patients(path, rows["Tumor_Sample_Barcode"]), dtype=object))
        rows = rows[rows["patient"].notna()]
        for patient in rows["patient"].unique():
            impacts.setdefault(patient, set())
        of_gene = rows[rows["Hugo_Symbol"] == gene]
        other_genes += len(rows) - len(of_gene)
        unknown = of_gene[~of_gene["IMPACT"].isin(_IMPACTS)]
        if len(unknown):
            raise DatasetError(
                f"mutations {path}: IMPACT {unknown['IMPACT'].iloc[0]!r} of {unknown['Tumor_Sample_Barcode'].iloc[0]} "
                f"(part {number}), expected {', '.join(_IMPACTS)}; annotate the table with VEP"
            )
        for patient, impact in zip(of_gene["patient"], of_gene["IMPACT"], strict=True):
            impacts[patient].add(impact)
    if not other_genes:
        raise DatasetError(
            f"mutations {path}: has no mutation of a gene other than {gene}, so it does not tell who was sequenced; "
            "give the table of all genes"
        )
    return Mutations({patient: frozenset(found) for patient, found in impacts.items()})


def read_copy_number(path: Path, gene: str = "TP53") -> CopyNumber:
    """Read GISTIC 2's table of thresholded values by gene.

    Args:
        path: tab-separated: Gene Symbol, Locus ID, Cytoband, then a column a sample.
        gene: symbol.

    Raises:
        DatasetError: not such a table, the gene is not in it once, or a value is not -2 to 2.
    """
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"copy numbers {path}: not a readable table ({' '.join(str(error).split())})") from error
    if "Gene Symbol" not in table:
        raise DatasetError(
            f"copy numbers {path}: no column 'Gene Symbol', got {', '.join(map(str, table.columns[:4]))}"
        )
    rows = table[table["Gene Symbol"].str.split("|").str[0] == gene]
    if len(rows) != 1:
        raise DatasetError(f"copy numbers {path}: {len(rows)} rows of {gene}, expected one")
    samples = [str(name) for name in table.columns if name not in _GISTIC_COLUMNS]
    lowest: dict[str, int] = {}
    for sample, patient in zip(samples, _patients(path, pd.Series(samples, dtype=str)), strict=True):
        value = rows[sample].iloc[0].strip()
        if value not in {"-2", "-1", "0", "1", "2"}:
            raise DatasetError(f"copy numbers {path}: {gene} of {sample} is {value!r}, expected -2 to 2")
        if isinstance(patient, str):
            lowest[patient] = min(int(value), lowest.get(patient, 2))
    return CopyNumber(lowest)


def derive_labels(mutations: Mutations, copy_number: CopyNumber) -> PatientLabels:
    """Apply the rule to every patient of either table."""
    rows, unknown = [], 0
    for patient in sorted(mutations.impacts.keys() | copy_number.lowest.keys()):
        counted = [impact.lower() for impact in _COUNTED if impact in mutations.impacts.get(patient, ())]
        deleted = copy_number.lowest.get(patient) == _BOTH_COPIES
        reasons = [f"mutation of impact {impact}" for impact in counted] + ["both copies deleted"] * deleted
        if reasons:
            rows.append((patient, ABERRATED, " and ".join(reasons)))
        elif patient in mutations.impacts and patient in copy_number.lowest:
            rows.append((patient, FUNCTIONAL, "neither"))
        else:
            unknown += 1
    return PatientLabels(pd.DataFrame(rows, columns=["patient", "label", "reason"], dtype=str), unknown)


def write_labels(labels: PatientLabels, path: Path) -> None:
    """Write patient,label,reason.

    Raises:
        DatasetError: the file cannot be written.
    """
    try:
        with replace_file(path) as temporary:
            labels.table.to_csv(temporary, index=False)
    except OSError as error:
        raise DatasetError(f"labels {path}: cannot be written ({error.strerror or error})") from error


def patient_of(barcode: str) -> str | None:
    """Patient of a TCGA barcode of a slide or sample; None where it is no such barcode.

    `TCGA-05-4244-01A-01-BS1` is of `TCGA-05-4244`.
    """
    fields = barcode.upper().split("-")
    return "-".join(fields[:3]) if len(fields) >= 3 and fields[0] == "TCGA" and all(fields[1:3]) else None


def _patients(path: Path, barcodes: pd.Series[str]) -> list[str | None]:
    """Patient of each barcode; None for samples of normal tissue."""
    patients: dict[str, str | None] = {}
    for barcode in barcodes.unique():
        patient = patient_of(barcode)
        if patient is None:
            raise DatasetError(f"table {path}: {barcode!r} is not a TCGA barcode (TCGA-XX-XXXX-...)")
        kind = [*barcode.split("-"), ""][3][:2]
        patients[barcode] = None if kind.isdigit() and int(kind) >= 10 else patient
    return [patients[barcode] for barcode in barcodes]


def _maf_chunks(path: Path) -> Iterator[pd.DataFrame]:
    """The columns that count, a part of the rows at a time: the public tables have millions."""
    try:
        with pd.read_csv(
            path,
            sep="\t",
            comment="#",
            dtype=str,
            usecols=lambda name: name in _MAF_COLUMNS,
            keep_default_na=False,
            chunksize=_ROWS_AT_ONCE,
        ) as parts:
            for rows in parts:
                missing = [name for name in _MAF_COLUMNS if name not in rows]
                if missing:
                    raise DatasetError(
                        f"mutations {path}: no column {missing[0]!r}; expected {', '.join(_MAF_COLUMNS)}"
                    )
                yield rows
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError, EOFError) as error:
        raise DatasetError(f"mutations {path}: not a readable table ({' '.join(str(error).split())})") from error
