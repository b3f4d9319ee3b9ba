"""When does obstore serve a URL, and with which settings?

``storage_options`` arrive in s3fs's dialect and are translated; an option without a translation means that another
client must serve the URL, so ``obstore_source_for`` then answers None and fsspec takes over. The same holds in a child
that was forked after obstore was used: its runtime does not survive a fork.

Credentials of ``s3://`` come from ``storage_options``, else from botocore's whole chain (environment, profiles, single
sign-on, instance metadata), asked anew when they expire.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from online_patching.bytesource import (
    ByteRange,
    ByteSource,
    ObjectInfo,
    check_length,
    check_size,
    check_unchanged,
    shown_url,
)
from online_patching.errors import NotFoundError, PatchingError, SlideChangedError, StorageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# One object gets at most this many requests at a time; hosts differ, object stores all bear this.
REQUESTS_IN_FLIGHT = 64

_TRANSLATED = {"anon", "key", "secret", "token", "endpoint_url", "client_kwargs", "profile"}
_TRANSLATED_CLIENT = {"endpoint_url", "region_name"}

_stores: dict[tuple[str, str], ObjectStore] = {}
_forked_after_use = False


def _after_fork() -> None:
    global _forked_after_use
    _forked_after_use = _forked_after_use or bool(_stores)
    _stores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def obstore_source_for(url: str, storage_options: Mapping[str, Any]) -> ByteSource | None:
    """The obstore source of a URL, or None where another client must serve it."""
    parts = urlsplit(url)
    if _forked_after_use:
        return None
    if parts.scheme == "s3" and _is_translated(storage_options):
        key = ("s3://" + parts.netloc, repr(sorted(storage_options.items())))
        if key not in _stores:
            _stores[key] = _s3_store(parts.netloc, storage_options)
        return ObstoreSource(url, _stores[key], parts.path.lstrip("/"))
    if parts.scheme in ("http", "https") and not storage_options and not parts.query and "@" not in parts.netloc:
        key = (f"{parts.scheme}://{parts.netloc}", "")
        if key not in _stores:
            _stores[key] = _http_store(key[0])
        return ObstoreSource(url, _stores[key], parts.path.lstrip("/"))
    return None


def _is_translated(options: Mapping[str, Any]) -> bool:
    return set(options) <= _TRANSLATED and set(options.get("client_kwargs") or {}) <= _TRANSLATED_CLIENT


def _retry() -> Any:
    return {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}


def _http_store(base_url: str) -> ObjectStore:
    from obstore.store import HTTPStore

    return HTTPStore(base_url, client_options={"allow_http": True, "timeout": "60s"}, retry_config=_retry())


def _s3_store(bucket: str, options: Mapping[str, Any]) -> ObjectStore:
    from obstore.store import S3Store

    client = dict(options.get("client_kwargs") or {})
    endpoint = options.get("endpoint_url") or client.get("endpoint_url") or _environment("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or _environment("AWS_ENDPOINT_URL")
    region = client.get("region_name") or _environment("AWS_REGION") or _environment("AWS_DEFAULT_REGION")
    settings: dict[str, Any] = {"region": region or "us-east-1"}
    if endpoint:
        settings["endpoint"] = endpoint
    provider = None
    if options.get("anon"):
        settings["skip_signature"] = True
    elif options.get("key"):
        settings["access_key_id"] = options["key"]
        settings["secret_access_key"] = options.get("secret", "")
        if options.get("token"):
            settings["session_token"] = options["token"]
    else:
        provider = _BotocoreChain(options.get("profile"))
    return S3Store(
        bucket,
        config=settings,  # type: ignore[arg-type]
        client_options={"allow_http": True, "timeout": "60s"},
        retry_config=_retry(),
        credential_provider=provider,
    )


def _environment(name: str) -> str | None:
    # Only the names that botocore itself reads: one environment serves both clients.
    return os.environ.get(name)


class _BotocoreChain:
    """Credentials from botocore's chain, in the form that obstore asks for."""

    def __init__(self, profile: str | None) -> None:
        self._profile = profile
        self._credentials: Any = None

    def __call__(self) -> Any:
        if self._credentials is None:
            import botocore.session

            self._credentials = botocore.session.Session(profile=self._profile).get_credentials()
        if self._credentials is None:
            raise PermissionError("no AWS credentials found; set a profile, the environment, or anon for public data")
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            # botocore refreshes what expires; asking it again every few minutes costs nothing.
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }


class ObstoreSource:
    """One object of an obstore store."""

    def __init__(self, url: str, store: ObjectStore, path: str) -> None:
        self.url = url
        self._store = store
        self._path = path

    async def info(self) -> ObjectInfo:
        """Size and entity tag, by one HEAD request."""
        import obstore

        try:
            head = await obstore.head_async(self._store, self._path)
        except Exception as error:
            raise _translated(self.url, error) from error
        return ObjectInfo(int(head["size"]), (head["e_tag"] or "").strip('"'))

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """The ranges, in parallel; a pinned version travels as ``If-Match`` and is compared in every answer."""
        gate = asyncio.Semaphore(REQUESTS_IN_FLIGHT)

        async def one(byte_range: ByteRange) -> bytes:
            async with gate:
                return await self._read(byte_range, expected)

        tasks = [asyncio.ensure_future(one(r)) for r in ranges]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def read_whole(self, *, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        """The object, by one request; its body is not fetched where the answer's head says that it is too large."""
        import obstore

        try:
            answer = await obstore.get_async(self._store, self._path)
            info = ObjectInfo(int(answer.meta["size"]), (answer.meta["e_tag"] or "").strip('"'))
            check_size(info.size, max_bytes, self.url)
            data = bytes(await answer.bytes_async())
        except PatchingError:
            raise
        except Exception as error:
            raise _translated(self.url, error) from error
        return check_length(data, (0, info.size), self.url), info

    async def _read(self, byte_range: ByteRange, expected: ObjectInfo | None) -> bytes:
        import obstore

        start, length = byte_range
        options: dict[str, Any] = {"range": (start, start + length)}
        if expected is not None and expected.version:
            options["if_match"] = f'"{expected.version}"'
        try:
            answer = await obstore.get_async(self._store, self._path, options=options)  # type: ignore[arg-type]
            meta = answer.meta
            data = bytes(await answer.bytes_async())
        except Exception as error:
            raise _translated(self.url, error) from error
        version = (meta["e_tag"] or "").strip('"')
        check_unchanged(ObjectInfo(int(meta["size"]), version), expected, self.url)
        return check_length(data, byte_range, self.url)


def _translated(url: str, error: Exception) -> StorageError:
    """The error of obstore as one line that names the object."""
    from obstore import exceptions

    shown = shown_url(url)
    if isinstance(error, (exceptions.NotFoundError, FileNotFoundError)):
        return NotFoundError(f"{shown}: no such object or bucket; check the spelling and the endpoint")
    if isinstance(error, exceptions.PreconditionError):
        return SlideChangedError(f"{shown}: the object changed since it was indexed; run `online-patching index` again")
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return StorageError(
        f"{shown}: cannot be read ({first_line[:200]}); check the endpoint, the network and the credentials"
        " (storage_options)"
    )
