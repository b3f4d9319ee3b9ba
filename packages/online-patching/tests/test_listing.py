"""Which slides lie behind folders and globs; the same on disks and in a bucket (test_storage lists every store)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from online_patching import NotFoundError, StorageError, listing
from online_patching.listing import dicom_folders, find_slides, kind_of, list_slides
from online_patching.loop import run
from online_patching.storage import open_object

FILES = [
    *("a.svs", "B.TIFF", "z.ome.tif", "note.txt", "references.json", "big.btf", "x.ndpi"),
    *("deep/c.scn", "deep/er/d.bif", "deep/er/e.tif", "odd [1]*.svs"),
    *("dicom/one/1.dcm", "dicom/one/2.dcm", "dicom/two/1.dicom"),
    *("image.zarr/zarr.json", "image.zarr/0/c/0/0", "image.zarr/labels/x.svs", "deep/IMAGE.ZARR/.zgroup"),
    *("image.zarr-notes.svs", "image.zarr0.svs"),
]
SLIDES = sorted(
    [name for name in FILES if kind_of(name) in ("file", "dicom") and ".zarr/" not in name]
    + ["image.zarr", "deep/IMAGE.ZARR"]
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    for k in range(40):
        (root / "image.zarr" / "0" / f"{k}").write_bytes(b"")
    return root


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer objects a page than a Zarr folder has chunks: what follows such a folder must not be lost."""
    monkeypatch.setattr(listing, "LIST_CHUNK", 7)


_uploaded: dict[int, str] = {}


@pytest.fixture(scope="module", params=["disk", "obstore", "s3fs"])
def place(request: pytest.FixtureRequest, tree: Path) -> tuple[str, dict[str, Any]]:
    if request.param == "disk":
        return str(tree), {}
    server = request.getfixturevalue("s3_server")
    if id(server) not in _uploaded:
        _uploaded[id(server)] = server.upload(tree, "tree")
    extra = {"use_ssl": False} if request.param == "s3fs" else {}
    return _uploaded[id(server)], {**server.storage_options, **extra}


def below(place: tuple[str, dict[str, Any]], *urls: str) -> list[str]:
    root, options = place
    found = find_slides([f"{root}/{url}" if url else root for url in urls], options)
    return [candidate.url.removeprefix(f"{root}/") for candidate in found]


def test_a_folder_lists_its_slides_in_order(place: tuple[str, dict[str, Any]]) -> None:
    assert below(place, "") == SLIDES
    assert below(place, "deep/") == ["deep/IMAGE.ZARR", "deep/c.scn", "deep/er/d.bif", "deep/er/e.tif"]
    root, options = place
    for candidate in find_slides([root], options):
        assert candidate.kind == kind_of(candidate.url)
        if candidate.kind == "zarr":
            assert candidate.pinned is None
        else:
            assert candidate.pinned is not None
            assert candidate.pinned.info == run(open_object(candidate.url, options).info())


@pytest.mark.parametrize(
    "pattern", ["*.svs", "**/*.tif", "**", "deep/*", "deep/**/*.tif*", "*/*/[12].dcm", "?.svs", "**/er/*"]
)
def test_globs_mean_what_they_mean_to_fsspec(place: tuple[str, dict[str, Any]], tree: Path, pattern: str) -> None:
    matched = fsspec.filesystem("file").glob(f"{tree}/{pattern}")
    names = {str(Path(path).relative_to(tree)) for path in matched}
    assert below(place, pattern) == [name for name in SLIDES if name in names]


def test_urls_are_joined_in_order_and_each_slide_is_listed_once(place: tuple[str, dict[str, Any]]) -> None:
    assert below(place, "x.ndpi", "deep/er", "*.ndpi", "image.zarr/", "references.json", "deep/er/d.bif") == [
        *("x.ndpi", "deep/er/d.bif", "deep/er/e.tif", "image.zarr", "references.json"),
    ]
    assert below(place, "ref*.json") == ["references.json"]
    # A name that could be a pattern is that of a file, where there is one.
    assert below(place, "odd [1]*.svs") == ["odd [1]*.svs"]


def test_what_is_not_found_says_what_was_seen(place: tuple[str, dict[str, Any]]) -> None:
    with pytest.raises(StorageError, match=r"no slides found \(below .*dicom.* lie: 2 \.dcm, 1 \.dicom\)"):
        below(place, "dicom/*.svs")
    with pytest.raises(NotFoundError, match="no such folder"):
        below(place, "nowhere")


def test_dicom_files_by_folder(tree: Path) -> None:
    folders = dicom_folders(find_slides([str(tree)]))
    assert {url.rpartition("/")[2]: len(files) for url, files in folders.items()} == {"one": 2, "two": 1}


def test_a_named_file_is_a_slide_whatever_its_name(tree: Path, tmp_path: Path) -> None:
    assert list_slides(str(tree / "note.txt")) == [str(tree / "note.txt")]
    with pytest.raises(StorageError, match="nothing at all"):
        list_slides(str(tmp_path))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/slides/", "https://user:hush@host/slides/*.svs"])
def test_the_web_has_no_listings(url: str) -> None:
    with pytest.raises(StorageError, match=r"a web server has no listing.*name the slides") as caught:
        list_slides(url)
    assert "hush" not in str(caught.value)
    assert list_slides("https://host/a.svs?sig=x*") == ["https://host/a.svs?sig=x*"]


def test_a_bucket_is_named_not_searched() -> None:
    with pytest.raises(StorageError, match="name it, and glob inside it"):
        list_slides("s3://*/a.svs", {"anon": True})


def test_relative_globs(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert list_slides("deep/er/*") == ["deep/er/d.bif", "deep/er/e.tif"]
    assert list_slides("*.ndpi") == ["./x.ndpi"]


def test_a_hundred_thousand_entries_are_sorted_out_in_seconds() -> None:
    entries = [listing._Found(f"{k % 997}/{k}.svs", None) for k in range(100_000)]
    started = time.process_time()
    for pattern in (None, "**/*.svs"):
        found = listing._match(iter(entries), "s3://bucket", pattern, "s3://bucket")
        assert len(found) == len(entries)
    # About one second; comparing each with each would take hours.
    assert time.process_time() - started < 10
