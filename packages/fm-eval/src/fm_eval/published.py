"""What do the paper's own tables say, to stand beside a result?

Balanced accuracy, mean and standard deviation over five probe runs, of Table VIII; TP53 of Table I, which states no
spread; DICE for CoNSeP. The numbers were made with eva 0.0.2 on the public datasets: they stand beside a result for
orientation and are never tested against it. Called by report_overview and the report of segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SOURCE = "Towards Large-Scale Training of Pathology Foundation Models, Table VIII (TP53: Table I); probes by eva 0.0.2"

# PCam is the test split.
_TABLE = """
model                       | bach        | crc         | mhist       | pcam        | tp53  | consep
ViT-S16, random weights     | 0.410 0.009 | 0.617 0.008 | 0.501 0.004 | 0.728 0.003 | 0.500 | 0.583 0.012
DINO ViT-S16, ImageNet      | 0.695 0.004 | 0.935 0.003 | 0.831 0.002 | 0.849 0.007 | 0.519 | 0.611 0.018
DINO ViT-B8, ImageNet       | 0.710 0.007 | 0.939 0.001 | 0.814 0.003 | 0.856 0.004 | 0.548 | 0.710 0.005
Lunit                       | 0.801 0.005 | 0.934 0.001 | 0.768 0.004 | 0.895 0.006 | 0.571 | 0.654 0.003
Phikon                      | 0.725 0.004 | 0.935 0.001 | 0.777 0.005 | 0.915 0.003 | 0.630 | 0.666 0.004
DINO ViT-S16, the paper's   | 0.797 0.003 | 0.943 0.001 | 0.828 0.003 | 0.893 0.005 | 0.633 | 0.649 0.013
DINO ViT-S8, the paper's    | 0.834 0.012 | 0.946 0.002 | 0.832 0.006 | 0.887 0.002 | 0.621 | 0.724 0.007
DINO ViT-B16, the paper's   | 0.810 0.008 | 0.960 0.001 | 0.826 0.003 | 0.898 0.003 | 0.651 | 0.658 0.011
DINO ViT-B8, the paper's    | 0.865 0.019 | 0.956 0.001 | 0.809 0.021 | 0.921 0.002 | 0.659 | 0.741 0.002
DINOv2 ViT-L14, the paper's | 0.870 0.005 | 0.930 0.001 | 0.809 0.001 | 0.898 0.002 | 0.656 | 0.679 0.007
Virchow                     |             | 0.962       | 0.830       | 0.933       |       |
"""


@dataclass(frozen=True, slots=True)
class Published:
    """A row of the paper.

    Attributes:
        model: as the paper names it.
        values: mean and standard deviation by task; the latter is None where the paper states none.
    """

    model: str
    values: dict[str, tuple[float, float | None]]

    def cell(self, task: str) -> str:
        """`0.797 ± 0.003`, or the mean alone, or `none`."""
        if task not in self.values:
            return "none"
        mean, std = self.values[task]
        return f"{mean:.3f}" + ("" if std is None else f" ± {std:.3f}")


def published_rows(tasks: Sequence[str]) -> list[Published]:
    """The rows that have a value for one of these tasks (`bach`, `crc`, `mhist`, `pcam`, `tp53`, `consep`)."""
    head, *lines = ([cell.strip() for cell in line.split("|")] for line in _TABLE.strip().split("\n"))
    rows = []
    for model, *cells in lines:
        numbers = {task: [float(number) for number in cell.split()] for task, cell in zip(head[1:], cells, strict=True)}
        values = {task: (one[0], one[1] if len(one) > 1 else None) for task, one in numbers.items() if one}
        rows.append(Published(model, values))
    return [row for row in rows if any(task in row.values for task in tasks)]
