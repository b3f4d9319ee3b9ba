"""OME-TIFF: level 0 against OpenSlide, the levels below and the choice of the image against tifffile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from online_patching import SlideFormatError, open_slide
from online_patching.bytesource import ObjectInfo
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.ome import read_ome
from slide_checks import MemorySource
from tiff_bytes import Page, tiff_bytes
from written_slides import tissue_image

READER = HeaderReader(MemorySource(b""), ObjectInfo(0, "1"))
IMAGE = tissue_image(600, 400, 1)
MPP = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}


def write_ome(path: Path, *, compression: str | None = "zlib", label_first: bool = False, grey: bool = False) -> None:
    """A pyramid with its lower levels in SubIFDs, a label and a macro, as tifffile writes them."""
    photometric, axes = ("minisblack", "YX") if grey else ("rgb", "YXS")
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as writer:
        label = {"photometric": "rgb", "metadata": {"axes": "YXS", "Name": "label"}}
        if label_first:
            writer.write(IMAGE[:80, :90], tile=(16, 16), **label)
        for k in range(3):
            level = np.ascontiguousarray(IMAGE[:: 2**k, :: 2**k, 1] if grey else IMAGE[:: 2**k, :: 2**k])
            below: dict[str, Any] = {"subfiletype": 1}
            if k == 0:
                below = {"subifds": 2, "metadata": {"axes": axes, "Name": "slide", **MPP}}
            writer.write(level, tile=(64, 64), photometric=photometric, compression=compression, **below)
        if not label_first:
            writer.write(IMAGE[:80, :90], **label)
            writer.write(IMAGE[:200, :300], tile=(64, 64), photometric="rgb", metadata={"axes": "YXS", "Name": "macro"})


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "jpeg", "zstd", "jpeg2000"])
@pytest.mark.parametrize("label_first", [False, True])
def test_levels_are_those_of_the_slide_and_no_label(
    tmp_path: Path, compression: str | None, label_first: bool, grey: bool
) -> None:
    path = tmp_path / "x.ome.tif"
    write_ome(path, compression=compression, label_first=label_first, grey=grey)
    slide = open_slide(str(path))
    assert (slide.header.vendor, slide.mpp, slide.header.properties["Name"]) == ("ome-tiff", 0.25, "slide")
    with tifffile.TiffFile(path) as tiff:
        levels = tiff.series[1 if label_first else 0].levels
        assert len(levels) == len(slide.levels) == 3
        read = []
        for k, level in enumerate(levels):
            expected = level.asarray()
            height, width = expected.shape[:2]
            read.append(slide.read_level(level=k, x_px=0, y_px=0, width_px=width, height_px=height))
            np.testing.assert_array_equal(
                read[-1], expected if expected.ndim == 3 else expected[..., None].repeat(3, 2)
            )
    if compression != "jpeg2000" and not label_first:
        with openslide.OpenSlide(str(path)) as oracle:
            np.testing.assert_array_equal(read[0], np.asarray(oracle.read_region((0, 0), 0, (600, 400)))[..., :3])


@pytest.mark.parametrize(
    ("shape", "axes", "dtype", "reason"),
    [
        ((4, 128, 128), "CYX", np.uint8, "4 channels"),
        ((3, 128, 128), "ZYX", np.uint8, "3 z sections"),
        ((2, 128, 128), "TYX", np.uint8, "2 time points"),
        ((128, 128), "YX", np.uint16, "16 bits"),
        ((128, 128), "YX", np.float32, "32 bits"),
    ],
)
def test_planes_and_deep_samples_are_refused_by_name(
    tmp_path: Path, shape: tuple[int, ...], axes: str, dtype: Any, reason: str
) -> None:
    path = tmp_path / "x.ome.tif"
    options = {"photometric": "minisblack", "metadata": {"axes": axes}}
    tifffile.imwrite(path, np.zeros(shape, dtype), ome=True, tile=(64, 64), **options)
    with pytest.raises(SlideFormatError, match=rf"x\.ome\.tif: .*{reason}"):
        open_slide(str(path))


def test_separate_colour_planes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ome.tif"
    options = {"photometric": "rgb", "planarconfig": "separate", "metadata": {"axes": "SYX"}}
    tifffile.imwrite(path, np.moveaxis(IMAGE, 2, 0), ome=True, tile=(64, 64), **options)
    with pytest.raises(SlideFormatError, match="planar configuration 2"):
        open_slide(str(path))


def ome(pixels: str, *, inner: str = '<Channel SamplesPerPixel="3"/>', image: str = 'Name="a"') -> str:
    return f'<OME UUID="urn:uuid:1"><Image {image}><Pixels SizeC="3" {pixels}>{inner}</Pixels></Image></OME>'


@pytest.mark.parametrize(
    ("size", "mpp"),
    [
        ('PhysicalSizeX="0.5" PhysicalSizeY="0.5"', 0.5),
        ('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.00025" PhysicalSizeYUnit="mm"', 0.25),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="µm" PhysicalSizeY="0.5" PhysicalSizeYUnit="μm"', 0.5),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1" PhysicalSizeYUnit="pixel"', None),
        ('PhysicalSizeX="0" PhysicalSizeY="0"', None),
        ('PhysicalSizeX="inf" PhysicalSizeY="many"', None),
        ("", None),
    ],
)
def test_mpp_comes_in_any_unit(size: str, mpp: float | None) -> None:
    found = read_ome(READER, ome(f'SizeX="9" SizeY="9" {size}')).mpp
    assert found == (pytest.approx(mpp) if mpp is not None else None)


def test_a_prefixed_namespace_is_read_as_bio_formats_reads_it() -> None:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><ome:OME xmlns:ome="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<ome:Image><ome:Pixels SizeX="10" SizeY="20" SizeC="3" SizeZ="1" SizeT="1">'
        '<ome:Channel SamplesPerPixel="3"/><ome:TiffData IFD="2"/></ome:Pixels></ome:Image></ome:OME>'
    )
    image = read_ome(READER, text)
    assert (image.size, image.planes, image.ifd) == ((10, 20), (1, 1, 1), 2)


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (
            ome(
                'SizeX="512" SizeY="512"',
                inner='<Channel SamplesPerPixel="3"/><TiffData><UUID FileName="b.tif">urn:uuid:2</UUID></TiffData>',
            ),
            "several files: its pixels lie in 'b.tif'",
        ),
        (ome('SizeX="511" SizeY="512"'), "another size"),
        ('<OME><BinaryOnly MetadataFile="x.ome"/></OME>', "without an image"),
        ('<OME><Image Name="a"/></OME>', "no Pixels"),
        (ome('SizeX="512" SizeY="nine"'), "SizeY='nine'"),
        ("<OME><Image/>" * 257, "cannot be read"),
        (f"<OME>{'<Image/>' * 257}</OME>", "257 images"),
        ("<!DOCTYPE a><OME/>", "document type"),
        ("<OME", "cannot be read"),
    ],
)
def test_what_the_description_says_must_hold(tmp_path: Path, description: str, reason: str) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff_bytes([Page(512, 512, padding=0, tags={270: (2, description + "\0")})]))
    with pytest.raises(SlideFormatError, match=reason):
        open_slide(str(path))


def test_a_file_that_names_itself_opens(tmp_path: Path) -> None:
    inner = '<Channel SamplesPerPixel="3"/><TiffData><UUID FileName="x.tif">urn:uuid:1</UUID></TiffData>'
    path = tmp_path / "x.tif"
    description = ome('SizeX="512" SizeY="512"', inner=inner)
    path.write_bytes(tiff_bytes([Page(512, 512, padding=0, tags={270: (2, description + "\0")})]))
    assert open_slide(str(path)).header.vendor == "ome-tiff"
