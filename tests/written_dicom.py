"""DICOM whole-slide files that pydicom writes, in every layout that the tests need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, generate_uid

Pixels = npt.NDArray[np.uint8]
Table = Literal["basic", "extended", "none"]

WHOLE_SLIDE = UID("1.2.840.10008.5.1.4.1.1.77.1.6")
SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "raw": "1.2.840.10008.1.2.1",
    "jpeg": "1.2.840.10008.1.2.4.50",
    "jpegls": "1.2.840.10008.1.2.4.80",
    "jpegls_near": "1.2.840.10008.1.2.4.81",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
    "jpeg2000_lossy": "1.2.840.10008.1.2.4.91",
    "htj2k": "1.2.840.10008.1.2.4.201",
}


def encode(tile: Pixels, codec: str, photometric: str) -> bytes:
    """One frame."""
    match codec:
        case "jpeg":
            ycc = photometric != "RGB"
            sampling = "422" if photometric == "YBR_FULL_422" else "444"
            return bytes(
                imagecodecs.jpeg8_encode(
                    tile, level=85, colorspace="RGB", outcolorspace="YCBCR" if ycc else "RGB", subsampling=sampling
                )
            )
        case "jpeg2000":
            return bytes(imagecodecs.jpeg2k_encode(tile, level=0, codecformat="J2K", mct=photometric != "RGB"))
        case "jpeg2000_lossy":
            return bytes(
                imagecodecs.jpeg2k_encode(tile, level=35, reversible=False, codecformat="J2K", mct=photometric != "RGB")
            )
        case "htj2k":
            return bytes(imagecodecs.htj2k_encode(tile))
        case "jpegls":
            return bytes(imagecodecs.jpegls_encode(tile))
        case "jpegls_near":
            return bytes(imagecodecs.jpegls_encode(tile, level=3))
    return tile.tobytes()


def tiles_of(image: Pixels, tile: int) -> list[Pixels]:
    """Row by row, at the edges filled up with grey."""
    rows, columns = -(-image.shape[0] // tile), -(-image.shape[1] // tile)
    padded = np.full((rows * tile, columns * tile, 3), 77, np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return [
        np.ascontiguousarray(padded[r * tile : (r + 1) * tile, c * tile : (c + 1) * tile])
        for r in range(rows)
        for c in range(columns)
    ]


def write_dicom(
    path: Path,
    image: Pixels,
    *,
    series: str,
    codec: str = "jpeg",
    photometric: str | None = None,
    tile: int = 64,
    table: Table = "basic",
    frames_of: Sequence[int] | None = None,
    undefined_lengths: bool = False,
    fragments: int = 1,
    flavour: str = "VOLUME",
    mpp: float | None = 0.5,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write one level.

    Args:
        path: The file.
        image: The level's pixels.
        series: SeriesInstanceUID.
        codec: A key of ``SYNTAXES``.
        photometric: Photometric interpretation; by default the usual one of the codec.
        tile: Side of the frames.
        table: Which offset table is written.
        frames_of: Tile numbers in the order in which they are stored, for a sparse level; None writes a full one.
        undefined_lengths: Write sequences and items without their lengths.
        fragments: Fragments a frame is split into.
        flavour: Third value of ImageType.
        mpp: um per pixel, or None to leave it out.
        changes: Attributes to set, or to leave out where the value is None.
    """
    if photometric is None:
        photometric = {"jpeg": "YBR_FULL_422", "jpeg2000": "YBR_RCT", "jpeg2000_lossy": "YBR_ICT", "htj2k": "RGB"}.get(
            codec, "RGB"
        )
    tiles = tiles_of(image, tile)
    numbers = list(range(len(tiles)) if frames_of is None else frames_of)
    frames = [encode(tiles[number], codec, photometric) for number in numbers]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = WHOLE_SLIDE, UID(SYNTAXES[codec])
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID = WHOLE_SLIDE, meta.MediaStorageSOPInstanceUID
    ds.ImageType = ["DERIVED", "PRIMARY", flavour, "RESAMPLED"]
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.Modality = series, generate_uid(), "SM"
    ds.Manufacturer = "Writer"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, photometric, 0
    ds.NumberOfFrames, ds.Rows, ds.Columns = len(frames), tile, tile
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns = image.shape[:2]
    ds.DimensionOrganizationType = "TILED_FULL" if frames_of is None else "TILED_SPARSE"
    path_item = Dataset()
    path_item.ObjectiveLensPower, path_item.ICCProfile = "20", bytes(3000)
    ds.OpticalPathSequence = DicomSequence([path_item])
    if mpp is not None:
        measures, shared = Dataset(), Dataset()
        measures.PixelSpacing = [mpp / 1000, mpp / 1000]
        shared.PixelMeasuresSequence = DicomSequence([measures])
        ds.SharedFunctionalGroupsSequence = DicomSequence([shared])
    if frames_of is not None:
        columns = -(-image.shape[1] // tile)
        ds.PerFrameFunctionalGroupsSequence = DicomSequence(
            [_frame_groups(1 + number % columns * tile, 1 + number // columns * tile) for number in numbers]
        )
    _set_pixels(ds, frames, codec, table, fragments)
    for name, value in (changes or {}).items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    if undefined_lengths:
        _without_lengths(ds)
    ds.save_as(path, enforce_file_format=True, implicit_vr=codec == "implicit", little_endian=True)
    return path


def _frame_groups(column: int, row: int) -> Dataset:
    position, content, groups = Dataset(), Dataset(), Dataset()
    position.XOffsetInSlideCoordinateSystem, position.YOffsetInSlideCoordinateSystem = "1.5", "2.25"
    position.ColumnPositionInTotalImagePixelMatrix, position.RowPositionInTotalImagePixelMatrix = column, row
    content.DimensionIndexValues = [column, row]
    groups.FrameContentSequence = DicomSequence([content])
    groups.PlanePositionSlideSequence = DicomSequence([position])
    return groups


def _set_pixels(ds: Dataset, frames: list[bytes], codec: str, table: Table, fragments: int) -> None:
    if codec in ("raw", "implicit"):
        ds.PixelData = b"".join(frames)
        ds["PixelData"].VR = "OB"
    elif table == "extended":
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
        ds["PixelData"].is_undefined_length = True
    else:
        ds.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=table == "basic")
        ds["PixelData"].is_undefined_length = True


def _without_lengths(ds: Dataset) -> None:
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                _without_lengths(item)
