from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pytest
from fm_eval import DatasetError, load_folds
from fm_eval.patch_folder import write_patch_folder
from fm_eval.tp53 import derive_labels, patient_of, read_copy_number, read_mutations, write_labels
from PIL import Image

_MAF = [
    # gene, impact, sample
    ("TP53", "HIGH", "TCGA-AA-0001-01A-11D-A152-09"),
    ("TP53", "MODERATE", "TCGA-AA-0002-01A-11D-A152-09"),
    ("TP53", "LOW", "TCGA-AA-0003-01A-11D-A152-09"),
    ("TP53", "MODIFIER", "TCGA-AA-0003-01A-11D-A152-09"),
    ("KRAS", "HIGH", "TCGA-AA-0004-01A-11D-A152-09"),
    ("KRAS", "HIGH", "TCGA-AA-0005-01A-11D-A152-09"),
    ("TP53", "HIGH", "TCGA-AA-0006-01A-11D-A152-09"),
    ("KRAS", "LOW", "TCGA-AA-0007-01A-11D-A152-09"),
    ("KRAS", "LOW", "TCGA-AA-0009-06A-11D-A152-09"),
]
_GISTIC = {
    "TCGA-AA-0001-01A-11D-A14W-01": 0,
    "TCGA-AA-0002-01A-11D-A14W-01": -2,
    "TCGA-AA-0003-01A-11D-A14W-01": -1,
    "TCGA-AA-0004-01A-11D-A14W-01": -2,
    "TCGA-AA-0005-01A-11D-A14W-01": 2,
    # 0006 has no copy numbers but a mutation, 0007 neither
    "TCGA-AA-0008-01A-11D-A14W-01": 0,  # not sequenced
    "TCGA-AA-0009-10A-01D-A14W-01": -2,  # blood
    "TCGA-AA-0009-06A-11D-A14W-01": 0,  # metastasis
}


def _write_maf(path: Path, rows: list[tuple[str, str, str]] = _MAF) -> Path:
    header = "Hugo_Symbol\tEntrez_Gene_Id\tVariant_Classification\tTumor_Sample_Barcode\tIMPACT\n"
    body = "".join(f"{gene}\t7157\tMissense_Mutation\t{sample}\t{impact}\n" for gene, impact, sample in rows)
    text = "#version gdc-1.0.0\n" + header + body
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def _write_gistic(path: Path, values: dict[str, int] = _GISTIC) -> Path:
    rows = [
        "\t".join(["Gene Symbol", "Locus ID", "Cytoband", *values]),
        "\t".join(["TP53BP1", "7158", "15q15.3", *["-2"] * len(values)]),
        "\t".join(["TP53", "7157", "17p13.1", *map(str, values.values())]),
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("name", ["all.maf", "all.maf.gz"])
def test_the_rule_of_the_paper(tmp_path: Path, name: str) -> None:
    labels = derive_labels(
        read_mutations(_write_maf(tmp_path / name)), read_copy_number(_write_gistic(tmp_path / "by_genes.txt"))
    )
    rows = {row.patient: (row.label, row.reason) for row in labels.table.itertuples()}
    assert rows == {
        "TCGA-AA-0001": ("aberrated", "mutation of impact high"),
        "TCGA-AA-0002": ("aberrated", "mutation of impact moderate and both copies deleted"),
        "TCGA-AA-0003": ("functional", "neither"),  # low impact and one copy lost
        "TCGA-AA-0004": ("aberrated", "both copies deleted"),
        "TCGA-AA-0005": ("functional", "neither"),
        "TCGA-AA-0006": ("aberrated", "mutation of impact high"),
        "TCGA-AA-0009": ("functional", "neither"),  # what was deleted is in the blood
    }
    assert labels.unknown == 2
    assert labels.summary == "4 aberrated, 3 functional, 2 left out (in one table only)"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("TP53", "HIGH", "TCGA-AA-0001-01A")], "does not tell who was sequenced"),
        ([("TP53", "SEVERE", "TCGA-AA-0001-01A"), _MAF[4]], "IMPACT 'SEVERE' of TCGA-AA-0001-01A"),
        ([("KRAS", "HIGH", "sample 7")], "'sample 7' is not a TCGA barcode"),
    ],
)
def test_mutations_that_say_too_little(tmp_path: Path, rows: list[tuple[str, str, str]], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_mutations(_write_maf(tmp_path / "m.maf", rows))


def test_tables_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a readable table"):
        read_mutations(tmp_path / "gone.maf")
    (tmp_path / "m.maf").write_text("Hugo_Symbol\tTumor_Sample_Barcode\nTP53\tTCGA-AA-0001-01A\n")
    with pytest.raises(DatasetError, match="no column 'IMPACT'"):
        read_mutations(tmp_path / "m.maf")
    gistic = _write_gistic(tmp_path / "g.txt")
    with pytest.raises(DatasetError, match="0 rows of BRCA1, expected one"):
        read_copy_number(gistic, "BRCA1")
    gistic.write_text(gistic.read_text().replace("\t-1", "\t-0.93"))
    with pytest.raises(DatasetError, match=r"TP53 of TCGA-AA-0003-01A-11D-A14W-01 is '-0.93', expected -2 to 2"):
        read_copy_number(gistic)


@pytest.mark.parametrize(
    ("barcode", "patient"),
    [("TCGA-05-4244-01A-01-BS1", "TCGA-05-4244"), ("tcga-cr-7395-01a-01-ts1", "TCGA-CR-7395"), ("slide_7", None)],
)
def test_patients_of_barcodes(barcode: str, patient: str | None) -> None:
    assert patient_of(barcode) == patient


class _Slides:
    """A finite stream: slides of ten patients in turn."""

    def __init__(self, count: int, *, barcodes: bool = True) -> None:
        self.count, self.barcodes = count, barcodes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in range(self.count):
            image = np.full((8, 8, 3), index % 251, np.uint8)
            name = f"TCGA-AA-{index % 10:04d}-01Z-00-DX1" if self.barcodes else f"slide_{index % 10}"
            yield {"image": image, "index": index, "slide_id": name, "x_level0_px": index, "mpp": 0.5}

    def shard(self, **_: int) -> Self:
        return self

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


def test_a_stream_becomes_a_dataset_with_folds_of_patients(tmp_path: Path) -> None:
    labels = derive_labels(
        read_mutations(_write_maf(tmp_path / "m.maf")), read_copy_number(_write_gistic(tmp_path / "g.txt"))
    )
    write_labels(labels, tmp_path / "patients.csv")
    said = write_patch_folder(_Slides(1000), tmp_path / "patients.csv", count=70, folder=tmp_path / "tp53")
    assert "70 patches of 7 patients" in said
    table = pd.read_csv(tmp_path / "tp53" / "index.csv")
    assert set(table["group_id"]) == set(labels.table["patient"])
    # in the order of the stream, without the patients that have no label
    assert table["index"].tolist() == [index for index in range(100) if index % 10 in {1, 2, 3, 4, 5, 6, 9}]
    with Image.open(tmp_path / "tp53" / table["path"][9]) as image:
        assert np.asarray(image)[0, 0, 0] == table["index"][9]
    views = load_folds(tmp_path / "tp53", folds=3)
    for view in views:
        assert view.groups_across_splits == []
    with pytest.raises(DatasetError, match=r"holds an index\.csv already"):
        write_patch_folder(_Slides(1000), tmp_path / "patients.csv", count=70, folder=tmp_path / "tp53")


def test_streams_that_do_not_serve(tmp_path: Path) -> None:
    labels = tmp_path / "patients.csv"
    labels.write_text("patient,label\nTCGA-AA-0001,a\nTCGA-AA-0002,b\n")
    for stream, count, message in (
        (_Slides(50), 60, "ended after 10 labelled patches of 60"),
        (_Slides(50, barcodes=False), 5, "slide_0 is not a TCGA barcode and the sample has no patient"),
        (_Slides(50), 0, "count 0"),
    ):
        with pytest.raises(DatasetError, match=message):
            write_patch_folder(stream, labels, count=count, folder=tmp_path / "out")
    labels.write_text("patient,label\nTCGA-BB-0001,a\nTCGA-BB-0002,b\n")
    with pytest.raises(DatasetError, match="10000 in turn are of patients without a label"):
        write_patch_folder(_Slides(20_000), labels, count=5, folder=tmp_path / "out")
    labels.write_text("patient,label\nTCGA-BB-0001,a\nTCGA-BB-0001,b\n")
    with pytest.raises(DatasetError, match="TCGA-BB-0001 is listed twice"):
        write_patch_folder(_Slides(20), labels, count=5, folder=tmp_path / "out")
    assert not (tmp_path / "out" / "index.csv").exists()
