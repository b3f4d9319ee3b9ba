"""The same bytes from disks, object stores and web servers, through every client that may serve them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from online_patching import (
    Catalog,
    NotFoundError,
    PatchRequest,
    SlideChangedError,
    SlideFormatError,
    StorageError,
    open_slide,
)
from online_patching.bytesource import ByteSource, ObjectInfo, shown_url, version_of
from online_patching.errors import AccessDeniedError
from online_patching.jobs import compute_foreground, index_cohort
from online_patching.listing import find_slides, list_slides
from online_patching.loop import IO_THREADS, run
from online_patching.storage import LocalSource, RemoteSource, Store, open_object

CONTENT = bytes(range(256)) * 40
NAMES = ["plain.svs", "with space + %41.svs", "unicode-😐.svs", "hash#1.svs", "query?x=1.svs", "folder/[1]&=;,'.svs"]
BUCKET = "storage-suite"


@dataclass(frozen=True)
class Place:
    """Somewhere that holds the objects, the options that read them there, and who is meant to do it."""

    root: str
    options: dict[str, Any]
    source: str
    put: Callable[[str, bytes], None]
    quote: Callable[[str], str] = str

    def url(self, name: str) -> str:
        return f"{self.root}/{self.quote(name)}"

    def open(self, name: str) -> ByteSource:
        return open_object(self.url(name), self.options)


def _s3(server: Any, scheme: str, extra: dict[str, Any], source: str) -> Place:
    client = server.client()
    options = server.storage_options
    if scheme == "gs":
        # The XML interface of Google Cloud Storage speaks the dialect of S3.
        options = {"token": "anon", "endpoint_url": server.endpoint_url}
    return Place(
        f"{scheme}://{BUCKET}",
        {**options, **extra},
        source,
        lambda name, data: client.put_object(Bucket=BUCKET, Key=name, Body=data),
    )


def _azure(server: Any, extra: dict[str, Any], source: str) -> Place:
    def put(name: str, data: bytes) -> None:
        with server.client() as client:
            client.get_blob_client(BUCKET, name).upload_blob(data, overwrite=True)

    return Place(f"az://{BUCKET}", {**server.storage_options, **extra}, source, put)


def _web(server: Any, extra: dict[str, Any], source: str) -> Place:
    from urllib.parse import quote

    def put(name: str, data: bytes) -> None:
        (server.served / name).write_bytes(data)
        # Its versions are of whole seconds.
        os.utime(server.served / name, (1, 1))

    return Place(server.url("open", "").rstrip("/"), extra, source, put, quote)


PLACES: dict[str, tuple[str, Callable[[Any], Place]]] = {
    "s3-obstore": ("s3_server", lambda server: _s3(server, "s3", {}, "ObstoreSource")),
    "s3-s3fs": ("s3_server", lambda server: _s3(server, "s3", {"use_ssl": False}, "FsspecSource")),
    "gs-obstore": ("s3_server", lambda server: _s3(server, "gs", {}, "ObstoreSource")),
    "moto-obstore": ("moto_server", lambda server: _s3(server, "s3", {}, "ObstoreSource")),
    "moto-s3fs": ("moto_server", lambda server: _s3(server, "s3", {"use_ssl": False}, "FsspecSource")),
    "az-obstore": ("azure_server", lambda server: _azure(server, {}, "ObstoreSource")),
    "az-adlfs": ("azure_server", lambda server: _azure(server, {"max_concurrency": 4}, "FsspecSource")),
    "http-obstore": ("nginx_server", lambda server: _web(server, {}, "ObstoreSource")),
    "http-fsspec": ("nginx_server", lambda server: _web(server, {"headers": {"X-Lab": "a"}}, "HttpSource")),
}
WITH_LISTING = [name for name in PLACES if not name.startswith("http")]
_uploaded: set[int] = set()


@pytest.fixture(scope="module")
def places(
    request: pytest.FixtureRequest, slide_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Place]:
    """Makes a place by its name, uploading to each server once."""
    folder = tmp_path_factory.mktemp("objects")
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(CONTENT)
    (folder / "slides").mkdir()
    for slide in "ab":
        (folder / "slides" / f"{slide}.svs").write_bytes((slide_folder / f"{slide}.svs").read_bytes())

    def make(name: str) -> Place:
        fixture, maker = PLACES[name]
        server = request.getfixturevalue(fixture)
        if id(server) not in _uploaded:
            _uploaded.add(id(server))
            if fixture == "nginx_server":
                for path in (p for p in folder.rglob("*") if p.is_file()):
                    target = server.served / path.relative_to(folder)
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes(path.read_bytes())
            else:
                server.upload(folder, BUCKET)
        return maker(server)

    return make


@pytest.fixture
def place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    return places(request.param)


everywhere = pytest.mark.parametrize("place", PLACES, indirect=True)
with_listing = pytest.mark.parametrize("place", WITH_LISTING, indirect=True)


@everywhere
def test_ranges_of_objects_with_odd_names(place: Place) -> None:
    ranges = [(0, 10), (5000, 1), (10_000, 240), (len(CONTENT) - 3, 3), (7, 0)]
    for name in NAMES:
        source = place.open(name)
        info = run(source.info())
        assert info.size == len(CONTENT)
        assert info.version
        assert run(source.read_ranges(ranges, expected=info)) == [CONTENT[s : s + n] for s, n in ranges]
        assert run(source.read_whole(max_bytes=len(CONTENT))) == (CONTENT, info)
        for length in (16, len(CONTENT), 10 * len(CONTENT)):
            assert run(source.read_start(length)) == (CONTENT[:length], info)
    assert isinstance(source, RemoteSource)
    assert type(source._source()).__name__ == place.source


@everywhere
def test_short_bodies_are_errors(place: Place) -> None:
    source = place.open("plain.svs")
    for past_the_end in [(len(CONTENT) - 5, 10), (len(CONTENT) + 5, 10)]:
        with pytest.raises(StorageError, match="shorter than its headers say"):
            run(source.read_ranges([past_the_end]))
    with pytest.raises(SlideFormatError, match="at most 100 are expected"):
        run(source.read_whole(max_bytes=100))


@everywhere
def test_the_start_of_an_empty_object(place: Place) -> None:
    place.put("empty.svs", b"")
    data, info = run(place.open("empty.svs").read_start(100))
    assert (data, info.size) == (b"", 0)


@everywhere
def test_an_object_replaced_by_one_of_the_same_size_is_noticed(place: Place, request: pytest.FixtureRequest) -> None:
    place.put("changing.svs", CONTENT)
    source = place.open("changing.svs")
    then = run(source.info())
    assert run(source.read_ranges([(0, 10)], expected=then)) == [CONTENT[:10]]
    other = bytes(reversed(CONTENT))
    place.put("changing.svs", other)
    if place.root.startswith("http"):
        path = Path(request.getfixturevalue("nginx_server").served / "changing.svs")
        os.utime(path, (100, 100))
    with pytest.raises(SlideChangedError, match="changed since it was indexed"):
        run(source.read_ranges([(0, 10)], expected=then))
    assert run(source.read_ranges([(0, 10)], expected=run(source.info()))) == [other[:10]]


@everywhere
def test_what_is_missing_is_named(place: Place) -> None:
    with pytest.raises(NotFoundError, match=r"none\.svs: no such object"):
        run(place.open("none.svs").info())
    with pytest.raises(NotFoundError, match="no such"):
        run(place.open("none.svs").read_ranges([(0, 1)]))
    with pytest.raises(NotFoundError, match="no such"):
        run(place.open("none.svs").read_start(100))
    if not place.root.startswith("http"):
        elsewhere = f"{place.root.partition('://')[0]}://no-such-bucket/x.svs"
        with pytest.raises(NotFoundError, match="no such"):
            run(open_object(elsewhere, place.options).info())
        with pytest.raises(NotFoundError, match="no such"):
            list_slides("/".join(elsewhere.split("/")[:3]), place.options)


@everywhere
def test_a_slide_reads_like_the_local_file(place: Place, slide_folder: Path) -> None:
    near = open_slide(str(slide_folder / "a.svs"))
    far = open_slide(place.url("slides/a.svs"), storage_options=place.options)
    corners = [(100, 200), (600, 500), (1400, 1100)]
    assert (near.read_patches(corners, size_px=128, mpp=1.0) == far.read_patches(corners, size_px=128, mpp=1.0)).all()


@with_listing
def test_listings_tell_names_sizes_and_versions(place: Place) -> None:
    found = find_slides([place.root], place.options)
    listed = {candidate.url: candidate for candidate in found}
    assert [c.url for c in found] == sorted(listed)
    assert set(listed) >= {place.url(name) for name in [*NAMES, "slides/a.svs", "slides/b.svs"]}
    for name in NAMES:
        pinned = listed[place.url(name)].pinned
        assert pinned is not None
        assert pinned.info == run(place.open(name).info())
    assert list_slides(place.url("slides"), place.options) == [place.url("slides/a.svs"), place.url("slides/b.svs")]
    assert list_slides(place.url("**/[ab].svs"), place.options) == [
        place.url("slides/a.svs"),
        place.url("slides/b.svs"),
    ]
    assert list_slides(place.url("*lain.svs"), place.options) == [place.url("plain.svs")]
    # The name of an object, though it could be a pattern.
    for name in ("query?x=1.svs", "folder/[1]&=;,'.svs"):
        assert list_slides(place.url(name), place.options) == [place.url(name)]
    with pytest.raises(StorageError, match=r"no slides found .* \.svs"):
        find_slides([place.url("*.ndpi")], place.options)
    with pytest.raises(NotFoundError, match="no such folder"):
        find_slides([place.url("nowhere")], place.options)


@with_listing
def test_the_files_directly_in_a_folder(place: Place) -> None:
    files = run(Store(place.options).list_folder(place.url("slides")))
    assert [each.url for each in files] == [place.url("slides/a.svs"), place.url("slides/b.svs")]
    assert [each.info for each in files] == [run(place.open(f"slides/{n}.svs").info()) for n in "ab"]


@pytest.mark.parametrize("place", ["s3-s3fs", "az-adlfs"], indirect=True)
def test_more_folders_at_once_than_there_are_threads(place: Place) -> None:
    store = Store(place.options)

    async def list_many() -> list[Any]:
        return await asyncio.gather(*(store.list_folder(place.url("slides")) for _ in range(IO_THREADS + 16)))

    assert {len(files) for files in run(asyncio.wait_for(list_many(), 60))} == {2}


@pytest.mark.parametrize("place", ["s3-obstore", "az-obstore", "az-adlfs"], indirect=True)
def test_a_catalog_in_the_bucket(place: Place, slide_folder: Path) -> None:
    url, options = place.url(f"catalogs/{place.source}"), place.options
    slides = list_slides(place.url("slides"), options)
    report = index_cohort(slides, url, storage_options=options, progress=False)
    assert (report.done, report.failures) == (2, ())
    compute_foreground(url, storage_options=options, progress=False)
    catalog = Catalog.open(url, storage_options=options)
    assert all(row.foreground_area_level0_px2 for row in catalog)
    requests = [PatchRequest(slide_id=name, x_level0_px=300, y_level0_px=200, size_px=64, mpp=1.0) for name in "ab"]
    patches = catalog.read_patches(requests)
    for name, patch in zip("ab", patches, strict=True):
        near = open_slide(str(slide_folder / f"{name}.svs"))
        assert (patch == near.read_patch(x_level0_px=300, y_level0_px=200, size_px=64, mpp=1.0)).all()


_FORKING = """
import json, os, sys
from online_patching.errors import StorageError
from online_patching.loop import IO_THREADS, run
from online_patching.storage import open_object
url, options = sys.argv[1], json.loads(sys.argv[2])
source = open_object(url, options)
before = run(source.read_ranges([(5, 5)]))
child = os.fork()
try:
    again = run(source.read_ranges([(5, 5)])), run(open_object(url, options).read_ranges([(5, 5)]))
    answer = "same" if again == (before, before) else "other bytes"
except StorageError as error:
    answer = f"refused: {error}"
if child:
    _, status = os.waitpid(child, 0)
    print("parent", answer, status)
else:
    print("child", answer, flush=True)
"""


@pytest.mark.parametrize("place", [name for name in PLACES if not name.startswith("moto")], indirect=True)
def test_a_forked_child_reads_or_refuses_and_ends(place: Place) -> None:
    # Both processes end as Python ends: whatever a client does at exit must not wait for threads that are not there.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKING, place.url("plain.svs"), json.dumps(place.options)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = sorted(done.stdout.splitlines())
    assert lines[1] == "parent same 0", done.stderr
    expected = "child refused: gs://: no client for this scheme" if place.root.startswith("gs") else "child same"
    assert lines[0].startswith(expected)


def test_credentials_and_endpoints_from_the_environment(
    places: Callable[[str], Place], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = places("s3-obstore")
    for name, value in request.getfixturevalue("s3_server").environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", request.getfixturevalue("s3_server").endpoint_url)
    for options in ({}, {"use_ssl": False}):
        assert run(open_object(s3.url("plain.svs"), options).read_ranges([(0, 4)])) == [CONTENT[:4]]
        assert list_slides(s3.url("slides"), options) == [s3.url("slides/a.svs"), s3.url("slides/b.svs")]
    assert run(open_object(f"gs://{BUCKET}/plain.svs", {}).read_ranges([(0, 4)])) == [CONTENT[:4]]


def test_an_azure_connection_string_from_the_environment(
    places: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    azure = places("az-obstore")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azure.options["connection_string"])
    for options in ({}, {"max_concurrency": 4}):
        source = open_object(azure.url("plain.svs"), options)
        assert run(source.read_ranges([(0, 4)])) == [CONTENT[:4]]


def test_versions_without_a_strong_tag(places: Callable[[str], Place], nginx_server: Any) -> None:
    places("http-obstore")
    for options in ({}, {"headers": {"X-Lab": "a"}}):
        for location in ("no-etag", "weak"):
            source = open_object(nginx_server.url(location, "plain.svs"), options)
            info = run(source.info())
            assert info.version.startswith("modified-")
            assert run(source.read_ranges([(0, 4)], expected=info)) == [CONTENT[:4]]
            with pytest.raises(SlideChangedError):
                run(source.read_ranges([(0, 4)], expected=ObjectInfo(info.size, "modified-2001-01-01T00:00:00Z")))
        assert run(open_object(nginx_server.url("bare", "plain.svs"), options).info()).version == ""
    assert version_of('W/"weak"', None) == ""


def test_redirects_signed_urls_and_passwords(places: Callable[[str], Place], nginx_server: Any) -> None:
    places("http-obstore")
    with_password = nginx_server.url("private", "plain.svs").replace("http://", "http://reader:open%20sesame@")
    signed = nginx_server.url("signed", "with space + %41.svs") + "?sig=good"
    for url in (nginx_server.url("moved", "plain.svs"), with_password, signed):
        assert run(open_object(url).read_ranges([(3, 4)], expected=run(open_object(url).info()))) == [CONTENT[3:7]]


@pytest.mark.parametrize("options", [{}, {"headers": {"X-Lab": "a"}}], ids=["obstore", "fsspec"])
def test_a_server_without_ranges_is_refused_before_it_sends_the_file(
    nginx_server: Any, options: dict[str, Any]
) -> None:
    size, name = 64 * 1024 * 1024, f"large-{len(options)}.svs"
    with (nginx_server.served / name).open("wb") as file:
        file.truncate(size)
    with pytest.raises(StorageError, match="whole files only"):
        run(open_object(nginx_server.url("no-ranges", name), options).read_ranges([(0, 10)]))
    # The server writes its log once it has noticed that nobody listens any more.
    deadline = time.monotonic() + 10
    while not (lines := [line for line in nginx_server.requests_logged() if f"no-ranges/{name}" in line]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert max(int(line.split()[9]) for line in lines) < size / 4


def test_urls_are_shown_without_secrets() -> None:
    assert shown_url("https://user:pw@host/a.svs?sig=secret#x") == "https://host/a.svs"
    assert shown_url("/data/a b.svs") == "/data/a b.svs"
    assert shown_url("s3://bucket/a#1?.svs") == "s3://bucket/a#1?.svs"
    assert shown_url("az://data@account.dfs.core.windows.net/a.svs") == "az://data@account.dfs.core.windows.net/a.svs"
    assert shown_url("az://data/a.svs?sv=2024&sig=secret") == "az://data/a.svs"
    assert shown_url("s3://key:secret@bucket/a.svs") == "s3://bucket/a.svs"


def test_local_files(tmp_path: Path) -> None:
    path = tmp_path / "x #1?%41.svs"
    path.write_bytes(CONTENT)
    source = open_object(str(path))
    assert isinstance(source, LocalSource)
    info = run(source.info())
    descriptors = os.listdir("/proc/self/fd")  # noqa: PTH208 - names are all that is compared
    assert source.read_ranges_now([(3, 5), (0, 0), (9, 2)], expected=info) == [CONTENT[3:8], b"", CONTENT[9:11]]
    assert os.listdir("/proc/self/fd") == descriptors  # noqa: PTH208
    assert run(open_object(f"file://{path}").read_ranges([(3, 5)], expected=info)) == [CONTENT[3:8]]
    assert run(source.read_whole(max_bytes=len(CONTENT))) == (CONTENT, info)
    assert run(source.read_start(16)) == (CONTENT[:16], info)
    assert run(source.read_start(10 * len(CONTENT))) == (CONTENT, info)
    assert [each.info for each in run(Store().list_folder(str(tmp_path)))] == [info]
    with pytest.raises(StorageError, match="got 2"):
        run(source.read_ranges([(len(CONTENT) - 2, 10)]))
    os.utime(path, ns=(1, 1))
    with pytest.raises(SlideChangedError):
        run(source.read_ranges([(0, 1)], expected=info))
    with pytest.raises(SlideChangedError):
        source.read_ranges_now([(0, 1)], expected=info)
    with pytest.raises(NotFoundError):
        run(open_object(str(tmp_path / "none.svs")).info())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_local_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.svs").write_bytes(CONTENT)
    (tmp_path / "x.svs").chmod(0)
    with pytest.raises(AccessDeniedError):
        run(open_object(str(tmp_path / "x.svs")).info())
