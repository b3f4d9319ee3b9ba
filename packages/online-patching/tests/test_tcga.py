from __future__ import annotations

import pytest
from online_patching.tcga import parse_barcode


@pytest.mark.parametrize(
    ("name", "whole", "sample", "preservation"),
    [
        ("TCGA-CR-7395-01A-01-TS1.a1b2.svs", "TCGA-CR-7395-01A-01-TS1", "TCGA-CR-7395-01A", "flash-frozen"),
        ("tcga-cr-7395-01a-01-ts1.svs", "TCGA-CR-7395-01A-01-TS1", "TCGA-CR-7395-01A", "flash-frozen"),
        ("TCGA-02-0001-01C-02-BS2", "TCGA-02-0001-01C-02-BS2", "TCGA-02-0001-01C", "flash-frozen"),
        ("TCGA-02-0001-01Z-00-DX1.UUID.svs", "TCGA-02-0001-01Z-00-DX1", "TCGA-02-0001-01Z", "FFPE"),
        ("TCGA-02-0001-01Z-00-DXA.UUID.svs", "TCGA-02-0001-01Z-00-DXA", "TCGA-02-0001-01Z", "FFPE"),
        ("TCGA-02-0001-11", "TCGA-02-0001-11", "TCGA-02-0001-11", None),
        ("TCGA-02-0001", "TCGA-02-0001", None, None),
    ],
)
def test_a_barcode_tells_patient_sample_and_preservation(
    name: str, whole: str, sample: str | None, preservation: str | None
) -> None:
    barcode = parse_barcode(name)
    assert barcode is not None
    assert (barcode.whole, barcode.sample, barcode.preservation) == (whole, sample, preservation)
    assert barcode.patient == "-".join(whole.split("-")[:3])


@pytest.mark.parametrize("name", ["a.svs", "TCGA-CR", "TCGA-CR-73956", "XTCGA-CR-7395", "TCGA-CR-7395x.svs", ""])
def test_other_names_are_none(name: str) -> None:
    assert parse_barcode(name) is None


def test_prefixes_go_from_the_slide_to_the_patient() -> None:
    barcode = parse_barcode("TCGA-CR-7395-01A-01-TS1")
    assert barcode is not None
    assert barcode.prefixes() == [
        "TCGA-CR-7395-01A-01-TS1",
        "TCGA-CR-7395-01A-01",
        "TCGA-CR-7395-01A",
        "TCGA-CR-7395-01",
        "TCGA-CR-7395",
    ]
