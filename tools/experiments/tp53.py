"""Where do the patches of the TP53 task come from? From the slides, labelled with their patients' status.

`fm-eval tp53` derives the patients' labels from mutations and copy numbers, `fm-eval patches` draws patches with equal
probability a slide (paper, section IV-A). At pocket scale the tables are made up (`cohort`); at paper scale they are
the public ones, looked for below the folder of data sets, unless the patches are there already.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from experiments.definition import CONFIGS, read_scale
from experiments.material import Material, without_output
from experiments.missing import missing_cohort
from experiments.planning import Places, Step, Task, digest

TP53 = "tp53"
MUTATIONS, COPY_NUMBER = "mc3.maf.gz", "all_thresholded.by_genes.txt"
_STREAM = "--stream.init_args"


def plan_tp53(material: Material, places: Places) -> tuple[list[Step], Task | None, str]:
    """The commands that make the task, the task, and what is missing for it."""
    content = yaml.safe_load((CONFIGS / "eval" / f"{TP53}.yaml").read_text(encoding="utf-8"))
    if material.scale == "paper":
        task = material.paper_task(TP53)
        if task is not None:
            return [], task, ""
        root = material.data or Path()
        tables = root / MUTATIONS, root / COPY_NUMBER
        lacking = [path for path in tables if not path.is_file()]
        if lacking:
            return [], None, missing_cohort(*lacking)
        words = ["--config", str(CONFIGS / "eval" / "tp53_patches.yaml")]
        words += [f"{_STREAM}.catalog={places.catalog}", f"{_STREAM}.where=\"preservation == 'FFPE'\""]
        key = f"{places.catalog_key} {root}"
        return _task_of_tables(places, tables, words, key=key, content=content)
    if not material.is_sample:
        return [], None, "task tp53: one's own slides need their patients' tables; take --scale paper"
    settings = read_scale("pocket")[TP53]
    words = ["--stream=online_patching.PatchStream", f"--stream.catalog={places.catalog}"]
    words += [f"--stream.size_px={settings['size_px']}", f"--stream.mpp=[{settings['mpp']}]"]
    words += ["--stream.columns=[patient]", f"--count={settings['patches']}"]
    content |= read_scale("pocket")["evaluation"]
    return _task_of_tables(
        places, material.cohort_tables, words, key=digest([places.catalog_key, settings]), content=content
    )


def _task_of_tables(
    places: Places, tables: tuple[Path, Path], words: list[str], *, key: str, content: dict[str, object]
) -> tuple[list[Step], Task, str]:
    """As `plan_tp53`, where nothing is missing."""
    folder = places.root / "data" / digest([TP53, key, dict(places.versions)])
    labels, patches = folder / "patients.csv", folder / "patches"
    mutations, copy_number = tables
    derive = Step(
        words=(
            *("fm-eval", "tp53", "--mutations", str(mutations), "--copy_number", str(copy_number)),
            *("--output", str(labels)),
        ),
        done=(labels,),
    )
    draw = Step(
        words=("fm-eval", "patches", *words, f"--labels={labels}", f"--output={patches}"),
        done=(patches / "index.csv",),
        reads_slides=True,
    )
    task = Task(name=TP53, content={**without_output(content), "data": str(patches.resolve())}, data_key=folder.name)
    return [derive, draw], task, ""
