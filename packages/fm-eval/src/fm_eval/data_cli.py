"""The commands of `fm-eval` that need no model: doctor, tp53, patches. cli makes one program of them."""

from __future__ import annotations

from pathlib import Path

from fm_eval.cache import cache_folder
from fm_eval.contract import PatchStream
from fm_eval.datasets import SplitChoice, read_dataset
from fm_eval.doctor import examine, write_findings
from fm_eval.patch_folder import write_patch_folder
from fm_eval.tp53 import derive_labels, read_copy_number, read_mutations, write_labels


def doctor(
    data: str,
    *,
    layout: str = "auto",
    split: SplitChoice = "given",
    split_seed: int = 0,
    near_duplicates: bool = True,
    checksums: bool = True,
    output: str | None = None,
    threads: int = 4,
    cache: str = "auto",
) -> int:
    """Check a dataset: counts, order of the classes, checksums, leaks of patients and of near-duplicates.

    Args:
        data: folder of a dataset in its public layout, or an index CSV.
        layout: auto, index, bach, crc, mhist, pcam, cifar10, cifar100 or food101.
        split: given (or else made), group (made, groups whole), image (made by image: leaks).
        split_seed: of a split that is made.
        near_duplicates: look for pictures that are in two splits turned, mirrored, zoomed or recompressed.
        checksums: compare files with the published MD5, which reads them whole.
        output: also write the findings as JSON.
        threads: threads that read images.
        cache: folder that keeps the digests of images, auto (below ~/.cache) or none.
    """
    dataset = read_dataset(
        data, layout=layout, split=split, split_seed=split_seed, cache=cache_folder(cache), threads=threads
    )
    findings = examine(dataset, near_duplicates=near_duplicates, checksums=checksums, threads=threads)
    for finding in findings:
        print(f"{finding.level:7} {finding.check}: {finding.text}")
    if output is not None:
        write_findings(dataset, findings, Path(output))
    return 1 if any(finding.level == "error" for finding in findings) else 0


def tp53(*, mutations: str, copy_number: str, output: str = "patients.csv", gene: str = "TP53") -> None:
    """Derive the patients' TP53 labels from tables of mutations and copy numbers.

    Args:
        mutations: Mutation Annotation Format (.maf, .maf.gz) of all sequenced samples, all genes.
        copy_number: GISTIC 2 table of thresholded values by gene (all_thresholded.by_genes.txt).
        output: CSV with the columns patient,label,reason.
        gene: symbol of the gene.
    """
    labels = derive_labels(read_mutations(Path(mutations), gene), read_copy_number(Path(copy_number), gene))
    write_labels(labels, Path(output))
    print(f"{labels.summary} -> {output}")


def patches(
    *,
    stream: PatchStream,
    labels: str,
    count: int = 102_400,
    output: str = "patches",
    progress: bool = True,
) -> None:
    """Draw labelled patches from a stream and write them as a folder with an index CSV.

    Args:
        stream: for example class_path online_patching.PatchStream with catalog, size_px 224, mpp 0.5.
        labels: CSV with the columns patient,label, as `fm-eval tp53` writes it.
        count: patches to write.
        output: folder.
        progress: show a progress bar.
    """
    written = write_patch_folder(stream, Path(labels), count=count, folder=Path(output), progress=progress)
    print(written)
