"""From slides and public tables to the folds of the TP53 task, every step a real command."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from fm_eval import load_folds
from fm_eval.cli import main
from online_patching.jobs import compute_foreground, index_cohort
from online_patching.listing import list_slides
from PIL import Image
from written_slides import tissue_image, write_pyramid

_STREAM = "--stream=online_patching.PatchStream"


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for patient in range(1, 6):
        name = f"TCGA-AA-000{patient}-01Z-00-DX1.svs"
        write_pyramid(folder / name, tissue_image(700, 600, patient), mpp=0.5)
    catalog = tmp_path_factory.mktemp("catalog")
    index_cohort(list_slides(str(folder)), str(catalog), progress=False)
    compute_foreground(str(catalog), progress=False)
    return catalog


def test_from_slides_and_tables_to_folds(catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [f"TCGA-AA-000{patient}-01A-11D" for patient in range(1, 6)]
    mutations = ["Hugo_Symbol\tTumor_Sample_Barcode\tIMPACT"]
    mutations += [f"TP53\t{sample}\tHIGH" for sample in samples[:2]]
    mutations += [f"KRAS\t{sample}\tHIGH" for sample in samples[2:]]
    (tmp_path / "all.maf").write_text("\n".join(mutations) + "\n")
    # patient 5 has no copy numbers, so nothing is known
    copies = ["\t".join(["Gene Symbol", "Locus ID", "Cytoband", *samples[:4]]), "TP53\t7157\t17p13.1\t0\t0\t0\t-1"]
    (tmp_path / "by_genes.txt").write_text("\n".join(copies) + "\n")
    tables = [f"--mutations={tmp_path / 'all.maf'}", f"--copy_number={tmp_path / 'by_genes.txt'}"]
    assert main(["tp53", *tables, f"--output={tmp_path / 'patients.csv'}"]) == 0
    assert "2 aberrated, 2 functional, 1 left out" in capsys.readouterr().out

    stream = [_STREAM, f"--stream.catalog={catalog}", "--stream.size_px=64", "--stream.mpp=[0.5]"]
    arguments = [*stream, f"--labels={tmp_path / 'patients.csv'}", "--count=40", "--progress=false"]
    assert main(["patches", *arguments, f"--output={tmp_path / 'tp53'}"]) == 0
    table = pd.read_csv(tmp_path / "tp53" / "index.csv")
    assert set(table["group_id"]) == {f"TCGA-AA-000{patient}" for patient in range(1, 5)}
    with Image.open(tmp_path / "tp53" / table["path"][0]) as image:
        assert image.size == (64, 64)
    # again, elsewhere: the same patches
    assert main(["patches", *arguments, f"--output={tmp_path / 'again'}"]) == 0
    assert (tmp_path / "again" / "index.csv").read_bytes() == (tmp_path / "tp53" / "index.csv").read_bytes()
    for view in load_folds(tmp_path / "tp53", folds=2):
        assert view.groups_across_splits == []


def test_a_catalog_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "patients.csv").write_text("patient,label\nTCGA-AA-0001,a\nTCGA-AA-0002,b\n")
    stream = [_STREAM, f"--stream.catalog={tmp_path / 'nowhere'}"]
    assert main(["patches", *stream, f"--labels={tmp_path / 'patients.csv'}", f"--output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fm-eval: stream: ")
    assert error.count("\n") == 1
