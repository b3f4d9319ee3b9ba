"""The same bytes from disk, from a real S3 server and over HTTP; and what happens when they cannot be had."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from online_patching import NotFoundError, SlideChangedError, StorageError, open_slide
from online_patching.bytesource import ObjectInfo, shown_url
from online_patching.listing import list_slides
from online_patching.loop import run
from online_patching.storage import open_object
from s3_server import S3Server

CONTENT = bytes(range(256)) * 40
NAMES = ["plain.svs", "with space + %41.svs", "unicode-😐.svs"]


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("objects")
    for name in NAMES:
        (folder / name).write_bytes(CONTENT)
    return s3_server.upload(folder, "storage-test")


def clients(server: S3Server) -> list[dict[str, Any]]:
    """Options that obstore serves, and options that only fsspec's own client understands."""
    return [server.storage_options, {**server.storage_options, "use_ssl": False}]


@pytest.mark.parametrize("client", [0, 1], ids=["obstore", "s3fs"])
@pytest.mark.parametrize("name", NAMES)
def test_ranges_of_an_s3_object(s3_server: S3Server, bucket: str, client: int, name: str) -> None:
    source = open_object(f"{bucket}/{name}", clients(s3_server)[client])
    info = run(source.info())
    assert info.size == len(CONTENT)
    assert info.version
    ranges = [(0, 10), (5000, 1), (10_000, 240), (len(CONTENT) - 3, 3)]
    data = run(source.read_ranges(ranges, expected=info))
    assert data == [CONTENT[start : start + length] for start, length in ranges]


@pytest.mark.parametrize("client", [0, 1], ids=["obstore", "s3fs"])
def test_short_bodies_and_changed_objects_are_errors(s3_server: S3Server, bucket: str, client: int) -> None:
    source = open_object(f"{bucket}/plain.svs", clients(s3_server)[client])
    with pytest.raises(StorageError):
        run(source.read_ranges([(len(CONTENT) - 5, 10)]))
    other = ObjectInfo(len(CONTENT), "another-version")
    with pytest.raises(SlideChangedError, match="changed since it was indexed"):
        run(open_object(source.url, clients(s3_server)[client]).read_ranges([(0, 10)], expected=other))


@pytest.mark.parametrize("client", [0, 1], ids=["obstore", "s3fs"])
def test_what_is_missing_is_named(s3_server: S3Server, bucket: str, client: int) -> None:
    options = clients(s3_server)[client]
    for url in (f"{bucket}/none.svs", "s3://no-such-bucket/x.svs"):
        with pytest.raises(NotFoundError, match="no such object"):
            run(open_object(url, options).info())


def test_http_reads_the_same(s3_server: S3Server, bucket: str) -> None:
    source = open_object(f"{s3_server.endpoint_url}/{bucket.removeprefix('s3://')}/plain.svs")
    info = run(source.info())
    assert run(source.read_ranges([(7, 9)], expected=info)) == [CONTENT[7:16]]


def test_credentials_from_the_environment(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    assert run(open_object(f"{bucket}/plain.svs", {}).read_ranges([(0, 4)])) == [CONTENT[:4]]
    assert list_slides(bucket) == sorted(f"{bucket}/{name}" for name in NAMES)


def test_an_unreachable_store_is_one_line_without_credentials() -> None:
    options = {"key": "AKIDSECRET", "secret": "hush", "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}
    with pytest.raises(StorageError) as caught:
        run(open_object("s3://bucket/x.svs", options).info())
    message = str(caught.value)
    assert "s3://bucket/x.svs" in message
    assert "check the endpoint" in message
    assert "\n" not in message
    assert "hush" not in message


def test_urls_are_shown_without_secrets() -> None:
    assert shown_url("https://user:pw@host/a.svs?sig=secret#x") == "https://host/a.svs"
    assert shown_url("/data/a b.svs") == "/data/a b.svs"


def test_local_files(tmp_path: Path) -> None:
    path = tmp_path / "x.svs"
    path.write_bytes(CONTENT)
    source = open_object(str(path))
    info = run(source.info())
    assert run(open_object(f"file://{path}").read_ranges([(3, 5)], expected=info)) == [CONTENT[3:8]]
    with pytest.raises(StorageError, match="got 2"):
        run(source.read_ranges([(len(CONTENT) - 2, 10)]))
    os.utime(path, ns=(1, 1))
    with pytest.raises(SlideChangedError):
        run(source.read_ranges([(0, 1)], expected=info))


def test_listing_says_what_it_did_not_find(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(StorageError, match="no slides found"):
        list_slides(str(tmp_path))
    with pytest.raises(NotFoundError, match="no such folder"):
        list_slides(str(tmp_path / "none"))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "B.SVS").write_bytes(b"")
    assert list_slides(str(tmp_path)) == [str(tmp_path / "deep" / "B.SVS")]


def test_a_slide_in_a_bucket_reads_like_the_file(s3_server: S3Server, slide_folder: Path) -> None:
    url = s3_server.upload(slide_folder, "slides-test")
    near, far = (
        open_slide(str(slide_folder / "a.svs")),
        open_slide(f"{url}/a.svs", storage_options=s3_server.storage_options),
    )
    corners = [(100, 200), (600, 500), (1400, 1100)]
    assert (near.read_patches(corners, size_px=128, mpp=1.0) == far.read_patches(corners, size_px=128, mpp=1.0)).all()
