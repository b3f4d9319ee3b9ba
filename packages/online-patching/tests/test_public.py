from __future__ import annotations

import subprocess
import sys

import online_patching


def test_public_names() -> None:
    assert sorted(online_patching.__all__) == [
        "AccessDeniedError",
        "Catalog",
        "CatalogError",
        "CorruptTileError",
        "EngineSettings",
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


def test_importing_is_quick_and_pulls_no_torch() -> None:
    heavy = "torch", "pandas", "fsspec", "s3fs", "obstore", "pyarrow", "zarr", "botocore"
    loaded = run_python(f"import sys, online_patching; print([m for m in {heavy} if m in sys.modules])")
    assert loaded == "[]"
    # Processor time of the best of three runs: other work on the machine must not fail the test.
    code = "import time; t = time.process_time(); import online_patching; print(time.process_time() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.5
