"""The proxy in front of a real S3 server: what passes is unchanged, late and counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import obstore
import pytest
import s3fs
from latency_proxy import Counts, LatencyProxy
from obstore.exceptions import PermissionDeniedError
from obstore.store import S3Store
from s3_server import CREDENTIALS, S3Server

LATENCY_MS = 50
CONTENT = bytes(range(256)) * 4000
NAMES = ["plain.svs", "with space + %41.svs", "unicode-😐.svs"]


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LatencyProxy]:
    folder = tmp_path_factory.mktemp("objects")
    for name in NAMES:
        (folder / name).write_bytes(CONTENT)
    s3_server.upload(folder, "proxied")
    with LatencyProxy(s3_server.endpoint_url, latency_ms=LATENCY_MS) as running:
        yield running


def obstore_of(proxy: LatencyProxy, **secret: str) -> S3Store:
    settings: dict[str, Any] = {"endpoint": proxy.endpoint_url, "region": "us-east-1"}
    settings |= {"access_key_id": CREDENTIALS["key"], "secret_access_key": CREDENTIALS["secret"], **secret}
    return S3Store("proxied", client_options={"allow_http": True}, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_signed_requests_pass_unchanged_and_are_counted(proxy: LatencyProxy, name: str) -> None:
    store = obstore_of(proxy)
    proxy.take_counts()
    assert obstore.head(store, name)["size"] == len(CONTENT)
    assert bytes(obstore.get_range(store, name, start=700, length=40_000)) == CONTENT[700:40_700]
    assert proxy.take_counts() == Counts(requests=2, bytes_sent=40_000)
    assert proxy.take_counts() == Counts(requests=0, bytes_sent=0)


def test_a_second_client_lists_and_reads(s3_server: S3Server, proxy: LatencyProxy) -> None:
    options = s3_server.storage_options
    options["client_kwargs"]["endpoint_url"] = proxy.endpoint_url
    client = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    assert sorted(client.find("proxied")) == sorted(f"proxied/{name}" for name in NAMES)
    assert client.cat_file("proxied/plain.svs", start=5, end=99) == CONTENT[5:99]


def test_a_wrong_signature_is_refused_as_by_the_store(proxy: LatencyProxy) -> None:
    with pytest.raises(PermissionDeniedError, match="SignatureDoesNotMatch"):
        obstore.get(obstore_of(proxy, secret_access_key="wrong"), "plain.svs")


def test_every_request_waits_and_none_waits_for_another(proxy: LatencyProxy) -> None:
    store = obstore_of(proxy)

    def read(k: int) -> float:
        started = time.perf_counter()
        obstore.get_range(store, "plain.svs", start=k, length=10)
        return time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(32) as pool:
        seconds = list(pool.map(read, range(64)))
    assert min(seconds) >= LATENCY_MS / 1000
    assert time.perf_counter() - started < 64 * LATENCY_MS / 1000 / 2


def test_a_limited_answer_takes_its_time(s3_server: S3Server, proxy: LatencyProxy) -> None:
    with LatencyProxy(s3_server.endpoint_url, latency_ms=0, mb_per_second=4) as slow:
        started = time.perf_counter()
        body = bytes(obstore.get(obstore_of(slow), "plain.svs").bytes())
        assert time.perf_counter() - started >= len(CONTENT) / 4e6
        assert body == CONTENT


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="latency_ms: got -1"):
        LatencyProxy("http://127.0.0.1:9", latency_ms=-1)
    with pytest.raises(ValueError, match="mb_per_second: got 0"):
        LatencyProxy("http://127.0.0.1:9", latency_ms=0, mb_per_second=0)
