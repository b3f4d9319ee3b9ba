"""A reader of kerchunk references that knows fsspec, zarr and imagecodecs, and nothing of this package.

``python plain_reader.py REFERENCES S3_OPTIONS_JSON WINDOWS_JSON OUTPUT_NPZ`` (no options: local files). Every window is
``[array path, y0, y1, x0, x1]``; its pixels become one array of the output.
"""

from __future__ import annotations

import json
import sys

import fsspec
import imagecodecs.numcodecs
import numpy as np
import zarr
from fsspec.implementations.reference import LazyReferenceMapper
from zarr.storage import FsspecStore


def main(references: str, options: str, windows: str, output: str) -> None:
    imagecodecs.numcodecs.register_codecs(verbose=False)
    # Without fastparquet, fsspec has to be told to use pyarrow.
    source = references if references.endswith(".json") else LazyReferenceMapper(references, engine="pyarrow")
    remote = {**json.loads(options), "asynchronous": True} if options else {}
    filesystem = fsspec.filesystem(
        "reference",
        fo=source,
        asynchronous=True,
        remote_protocol="s3" if options else "file",
        remote_options=remote,
    )
    group = zarr.open_group(FsspecStore(filesystem, read_only=True), mode="r", zarr_format=2, use_consolidated=False)
    wanted = json.loads(windows)
    np.savez(output, *[group[path][y0:y1, x0:x1] for path, y0, y1, x0, x1 in wanted])
    assert not any(name.startswith("online_patching") for name in sys.modules)


if __name__ == "__main__":
    main(*sys.argv[1:])
