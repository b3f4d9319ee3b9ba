"""What does the name of a TCGA slide say of it?

A slide's barcode is ``TCGA-<site>-<participant>-<sample><vial>-<portion>-<slide>``, such as
``TCGA-CR-7395-01A-01-TS1``; the file's name goes on with a dot and a UUID. The slide's part tells the preservation:
DX is a diagnostic slide of formalin-fixed, paraffin-embedded tissue; TS, MS and BS (top, middle, bottom) are
flash-frozen (GDC data dictionary, "TCGA barcode").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BARCODE = re.compile(
    r"^(?P<patient>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})"
    r"(?:-(?P<sample_type>\d{2})(?P<vial>[A-Z])?(?:-(?P<portion>\d{2})[A-Z]?(?:-(?P<slide>[A-Z]{2}[A-Z0-9]*))?)?)?"
    r"(?=$|[.\s_])"
)
PRESERVATION = {"DX": "FFPE", "TS": "flash-frozen", "MS": "flash-frozen", "BS": "flash-frozen"}


@dataclass(frozen=True, slots=True)
class Barcode:
    """A TCGA barcode, in capital letters; parts that it does not reach are None.

    Attributes:
        whole: All of it, such as ``TCGA-CR-7395-01A-01-TS1``.
        patient: Project, site and participant: ``TCGA-CR-7395``.
        sample: Patient with sample type and vial: ``TCGA-CR-7395-01A``.
        preservation: ``FFPE`` or ``flash-frozen``.
    """

    whole: str
    patient: str
    sample: str | None
    preservation: str | None

    def prefixes(self) -> list[str]:
        """All barcodes that this one belongs to, the most exact first; a sample also without its vial."""
        parts = self.whole.split("-")
        found = ["-".join(parts[:count]) for count in range(len(parts), 2, -1)]
        if len(parts) > 3 and len(parts[3]) == 3:
            found.insert(-1, "-".join([*parts[:3], parts[3][:2]]))
        return found

    def columns(self) -> dict[str, str]:
        """The catalog columns that the barcode gives."""
        facts = {"patient": self.patient, "sample": self.sample, "preservation": self.preservation}
        return {name: value for name, value in facts.items() if value is not None}


def parse_barcode(name: str) -> Barcode | None:
    """The barcode that a name starts with (any letter case), or None where it starts with none."""
    match = _BARCODE.match(name.strip().upper())
    if match is None:
        return None
    has_sample = match["sample_type"] is not None
    sample = f"{match['patient']}-{match['sample_type']}{match['vial'] or ''}" if has_sample else None
    return Barcode(match[0], match["patient"], sample, PRESERVATION.get((match["slide"] or "")[:2]))
