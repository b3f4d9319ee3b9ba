"""Each way in which a store can fail is one clear line of the right class, through every client, without secrets."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from online_patching import AccessDeniedError, StorageError, retry
from online_patching.cli import main
from online_patching.listing import list_slides
from online_patching.loop import run
from online_patching.retry import RetryPolicy
from online_patching.storage import open_object
from online_patching.store_errors import storage_error

CONTENT = bytes(1000)
HUSH = ["hush-hush", "AKIDNOTHERE", "c2lnbmF0dXJl"]
S3FS, ADLFS, WEB = {"use_ssl": False}, {"max_concurrency": 2}, {"headers": {"X-Lab": "a"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("objects")
    (path / "a.svs").write_bytes(CONTENT)
    return path


def failure(url: str, options: dict[str, Any]) -> StorageError:
    """The error of reading an object, which ``info`` raises as well."""
    started = time.monotonic()
    source = open_object(url, options)
    with pytest.raises(StorageError) as told:
        run(source.info())
    with pytest.raises(StorageError) as caught:
        run(source.read_ranges([(0, 10)]))
    # Several attempts at each, and yet nobody waits for minutes.
    assert time.monotonic() - started < 30
    for message in (str(told.value), str(caught.value)):
        assert url.partition("?")[0].split("/")[-1] in message
        assert ";" in message or ":" in message.partition(": ")[2]
        assert len(message) < 450
        assert not any(mark in message for mark in ["\n", "<", "Traceback", "Debug source", *HUSH])
    assert type(told.value) is type(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def s3(s3_server: Any, folder: Path) -> Callable[..., dict[str, Any]]:
    s3_server.upload(folder, "failures")

    def options(endpoint: str | None = None, **changes: Any) -> dict[str, Any]:
        client = {"endpoint_url": endpoint or s3_server.endpoint_url, "region_name": "us-east-1"}
        return {**s3_server.storage_options, "client_kwargs": client, **changes}

    return options


@pytest.mark.parametrize("client", [{}, S3FS], ids=["obstore", "s3fs"])
def test_s3_refusals(s3: Callable[..., dict[str, Any]], nginx_server: Any, client: dict[str, Any]) -> None:
    from s3_server import STRANGER

    url, web = "s3://failures/a.svs", nginx_server.base_url
    token = {"token": "hush-hush"}
    refusals = [
        (url, s3(key="AKIDNOTHERE", secret="hush-hush"), "InvalidAccessKeyId.*does not know this access key"),
        (url, s3(secret="hush-hush"), "SignatureDoesNotMatch.*check the secret key"),
        (url, s3(**STRANGER), "access denied.*check the credentials"),
        ("s3://expired/a.svs", s3(web, **token), "ExpiredToken.*get new credentials"),
    ]
    for refused, options, match in refusals:
        error = failure(refused, {**options, **client})
        assert isinstance(error, AccessDeniedError)
        with pytest.raises(AccessDeniedError, match=match):
            raise error
    with pytest.raises(StorageError, match=r"another region.*region_name"):
        raise failure("s3://elsewhere/a.svs", {**s3(web), **client})
    with pytest.raises(AccessDeniedError, match="SignatureDoesNotMatch"):
        list_slides("s3://failures", {**s3(secret="hush-hush"), **client})


@pytest.mark.parametrize("client", [{}, S3FS], ids=["obstore", "s3fs"])
def test_s3_endpoints_that_cannot_be_reached(
    s3: Callable[..., dict[str, Any]], nginx_server: Any, client: dict[str, Any]
) -> None:
    for endpoint, match in [
        ("http://127.0.0.1:9", "nothing answers there"),
        ("http://no-such-host.invalid", "host name is not known"),
        (nginx_server.tls_url, "certificate is not trusted"),
    ]:
        with pytest.raises(StorageError, match=f"cannot be reached.*{match}"):
            raise failure("s3://bucket/a.svs", {**s3(endpoint, secret="hush-hush"), **client})


@pytest.mark.parametrize("client", [{}, ADLFS], ids=["obstore", "adlfs"])
def test_azure_failures(azure_server: Any, folder: Path, client: dict[str, Any]) -> None:
    container = f"failures{len(client)}"
    azure_server.upload(folder, container)
    azure_server.upload(folder, f"{container}public", public=True)
    url, named = f"az://{container}/a.svs", azure_server.connection_string_of

    def options(connection: str) -> dict[str, Any]:
        return {"connection_string": connection, **client}

    good = azure_server.sas_token(container)
    assert run(open_object(url, options(named(f"SharedAccessSignature={good}"))).read_ranges([(0, 9)])) == [bytes(9)]
    anonymous = options(f"BlobEndpoint={azure_server.endpoint_url}")
    assert run(open_object(f"az://{container}public/a.svs", anonymous).read_ranges([(0, 9)])) == [bytes(9)]
    expired = azure_server.sas_token(container, minutes=-5)
    for refused in (
        anonymous,
        options(named("AccountKey=c2lnbmF0dXJl")),
        options(named(f"SharedAccessSignature={expired}")),
    ):
        error = failure(url, refused)
        assert isinstance(error, AccessDeniedError)
        assert expired.rpartition("sig=")[2] not in str(error)
    port = f":{azure_server.ports[0]}/"
    with pytest.raises(StorageError, match="cannot be reached: nothing answers"):
        raise failure(url, options(azure_server.connection_string.replace(port, ":9/")))


@pytest.mark.parametrize("client", [{}, WEB], ids=["obstore", "fsspec"])
def test_web_failures(nginx_server: Any, client: dict[str, Any]) -> None:
    (nginx_server.served / "a.svs").write_bytes(CONTENT)
    wrong = nginx_server.url("private", "a.svs").replace("http://", "http://reader:hush-hush@")
    for url in (
        nginx_server.url("forbidden", "a.svs"),
        nginx_server.url("private", "a.svs"),
        nginx_server.url("signed", "a.svs"),
        nginx_server.url("signed", "a.svs") + "?sig=c2lnbmF0dXJl",
        wrong,
    ):
        assert isinstance(failure(url, client), AccessDeniedError)
    for url, match in [
        ("http://127.0.0.1:9/a.svs", "nothing answers there"),
        ("http://no-such-host.invalid/a.svs", "host name is not known"),
        (f"{nginx_server.tls_url}/open/a.svs", "certificate is not trusted"),
    ]:
        with pytest.raises(StorageError, match=f"cannot be reached.*{match}"):
            raise failure(url, client)


@pytest.mark.parametrize("client", [{}, S3FS, WEB], ids=["s3-obstore", "s3fs", "http-fsspec"])
def test_a_server_that_never_answers_ends_at_the_deadline(
    s3: Callable[..., dict[str, Any]], client: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_policy", RetryPolicy(attempts=2, attempt_s=0.5))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        url, options = ("s3://b/a.svs", {**s3(endpoint), **client})
        if client is WEB:
            url, options = f"{endpoint}/a.svs", client
        started = time.monotonic()
        with pytest.raises(StorageError, match="no answer in time"):
            run(open_object(url, options).info())
        assert time.monotonic() - started < 10


def test_schemes_without_a_client_and_wrong_options() -> None:
    with pytest.raises(StorageError, match="xyz://: no client for this scheme is installed"):
        run(open_object("xyz://bucket/a.svs").info())
    with pytest.raises(StorageError, match="the client refuses the storage_options") as caught:
        run(open_object("az://bucket/a.svs", {"connection_string": "AccountKey=hush-hush;x"}).info())
    assert "hush" not in str(caught.value)


def test_a_store_that_fails_says_so() -> None:
    class ServerFaultError(Exception):
        status = 503

    assert "HTTP 503" in str(storage_error("s3://b/a.svs", ServerFaultError("<html>busy</html>")))
    unknown = storage_error("http://h/a.svs", RuntimeError("at http://u:hush@h/a?sig=hush something broke"))
    assert "hush" not in str(unknown)
    assert "something broke" in str(unknown)


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = '{"key": "AKIDNOTHERE", "secret": "hush-hush", "endpoint_url": "http://127.0.0.1:9"}'
    catalog = ["--catalog", str(tmp_path / "catalog"), "--slide-storage-options", options]
    assert main(["index", "s3://bucket/folder", *catalog]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "s3://bucket/folder: cannot be reached: nothing answers there" in said


def test_a_disk_that_takes_no_files_is_not_a_missing_object() -> None:
    tidying = FileNotFoundError(errno.ENOENT, "No such file or directory", "/disk/catalog/slides.parquet")
    tidying.__context__ = OSError(errno.EROFS, os.strerror(errno.EROFS), "/disk/catalog")
    error = storage_error("/disk/catalog/slides.parquet", tidying)
    assert isinstance(error, AccessDeniedError)
    assert "/disk/catalog/slides.parquet: Read-only file system: check the permissions" in str(error)


def test_a_catalog_below_a_file_is_told_as_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["info", "--catalog", str(file)]) == 2
    assert "Not a directory: name another place" in capsys.readouterr().err
