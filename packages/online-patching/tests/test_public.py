from __future__ import annotations

import os
import subprocess
import sys

import online_patching


def test_public_names() -> None:
    assert sorted(online_patching.__all__) == [
        "AccessDeniedError",
        "AnnotationError",
        "Catalog",
        "CatalogError",
        "CorruptTileError",
        "EngineSettings",
        "GridStream",
        "MagnificationError",
        "MissingMppError",
        "NotFoundError",
        "PatchRequest",
        "PatchStream",
        "PatchingError",
        "ReadCounts",
        "SamplingError",
        "Slide",
        "SlideChangedError",
        "SlideFormatError",
        "SlideHealth",
        "StorageError",
        "close",
        "configure",
        "open_slide",
        "read_counts",
    ]
    assert all(hasattr(online_patching, name) for name in online_patching.__all__)


def run_python(code: str) -> str:
    # With bytecode kept from run to run, as for users.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, env=kept
    )
    return done.stdout.strip()


def test_importing_is_quick_and_pulls_no_torch() -> None:
    heavy = "torch", "pandas", "fsspec", "s3fs", "obstore", "pyarrow", "zarr", "botocore"
    loaded = run_python(f"import sys, online_patching; print([m for m in {heavy} if m in sys.modules])")
    assert loaded == "[]"
    # A limit in seconds would judge the machine: what counts is our share beside the libraries that must be imported.
    libraries = "import time; t = time.process_time(); import asyncio, cv2, numpy, shapely; "
    ours = "u = time.process_time(); import online_patching; print((time.process_time() - u) / (u - t))"
    assert min(float(run_python(libraries + ours)) for _ in range(6)) < 1.0
