"""When does obstore serve a URL, and with which settings?

``storage_options`` arrive in the dialects of s3fs, adlfs and gcsfs and are translated; an option without a translation
means that another client must serve the URL, so ``obstore_place`` then answers None and fsspec takes over. The same
holds in a child that was forked after obstore was used: its runtime does not survive a fork.

Credentials come from ``storage_options``, else from where the fsspec client of the scheme would take them: for
``s3://`` botocore's whole chain (environment, profiles, single sign-on, instance metadata), asked anew when they
expire; for ``az://`` the ``AZURE_STORAGE_*`` variables; for ``gs://`` Google's application default credentials.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from online_patching import loop
from online_patching.bytesource import split_object_url

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Options = Mapping[str, Any]

# Where obstore itself retries (listings, small files): an endpoint that nothing answers fails after at most
# (RETRIES + 1) connections; a store that answers with faults is asked again until RETRY_SECONDS have passed.
CONNECT_SECONDS = 5
REQUEST_SECONDS = 60
RETRIES = 3
RETRY_SECONDS = 30

_S3_OPTIONS = {"anon", "key", "secret", "token", "endpoint_url", "client_kwargs", "profile"}
_S3_CLIENT_OPTIONS = {"endpoint_url", "region_name"}
_AZURE_OPTIONS = {"account_name", "account_key", "sas_token", "connection_string", "anon", "account_host"}
_AZURE_CONNECTION = {
    *("DefaultEndpointsProtocol", "AccountName", "AccountKey", "BlobEndpoint", "SharedAccessSignature"),
    *("EndpointSuffix", "QueueEndpoint", "TableEndpoint", "FileEndpoint"),
}
_GCS_OPTIONS = {"token", "project", "endpoint_url"}
_GCS_ACCESS = ("anon", "google_default")

_NO_RETRY: Any = {"max_retries": 0}

_stores: dict[tuple[str, str, bool], ObjectStore] = {}
_used = False
_forked_after_use = False


def _after_fork() -> None:
    global _forked_after_use
    _forked_after_use = _forked_after_use or _used or bool(_stores)
    for store in _stores.values():
        # Never freed in a child, not even at its end: that would call on a runtime whose threads are the parent's.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(store))
    _stores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


async def _drop_stores() -> None:
    """Drop the stores; their connections close with the last source that holds one."""
    global _used
    _used = _used or bool(_stores)
    _stores.clear()


loop.at_close(_drop_stores)


@dataclass(frozen=True, slots=True)
class ObstorePlace:
    """An object or folder of an obstore store: the store and the name in it."""

    store: ObjectStore
    name: str


def obstore_place(url: str, storage_options: Options, *, client_retries: bool = True) -> ObstorePlace | None:
    """Where obstore finds a URL, or None where another client must serve it.

    Args:
        url: The object or folder.
        storage_options: Options in fsspec's dialect.
        client_retries: Whether obstore makes failed requests again by itself; ``retry`` does it for ranges.
    """
    if _forked_after_use:
        return None
    policy = _retry() if client_retries else _NO_RETRY
    if url.startswith(("http://", "https://")):
        return _http_place(url, policy) if not storage_options else None
    scheme, bucket, name = split_object_url(url)
    maker = _MAKERS.get(scheme)
    # obstore's names have no empty, "." or ".." parts, which stores do allow.
    if maker is None or not bucket or any(part in ("", ".", "..") for part in name.rstrip("/").split("/") if name):
        return None
    key = (f"{scheme}://{bucket}", _options_key(storage_options), client_retries)
    if key not in _stores:
        store = maker(bucket, storage_options, policy)
        if store is None:
            return None
        _stores[key] = store
    return ObstorePlace(_stores[key], name)


def _options_key(options: Options) -> str:
    # The environment is part of the settings: a notebook may set it between two reads.
    prefixes = ("AWS_", "AZURE_STORAGE_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
    environment = sorted(item for item in os.environ.items() if item[0].startswith(prefixes))
    return repr((sorted(options.items()), environment))


def _http_place(url: str, policy: Any) -> ObstorePlace | None:
    parts = urlsplit(url)
    # Signed URLs, passwords and escaped slashes must reach the server exactly as they were given.
    if parts.query or "@" in parts.netloc or "%2f" in parts.path.lower() or "//" in parts.path:
        return None
    key = (f"{parts.scheme}://{parts.netloc}", "", policy is not _NO_RETRY)
    if key not in _stores:
        from obstore.store import HTTPStore

        _stores[key] = HTTPStore(key[0], client_options=_client(), retry_config=policy)
    return ObstorePlace(_stores[key], unquote(parts.path).lstrip("/"))


def _client() -> Any:
    return {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
    }


def _retry() -> Any:
    return {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}


def _s3_store(bucket: str, options: Options, policy: Any) -> ObjectStore | None:
    client = dict(options.get("client_kwargs") or {})
    if not set(options) <= _S3_OPTIONS or not set(client) <= _S3_CLIENT_OPTIONS:
        return None
    from obstore.store import S3Store

    endpoint = options.get("endpoint_url") or client.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
    region = client.get("region_name") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    settings: dict[str, Any] = {"region": region or "us-east-1"}
    if endpoint:
        settings["endpoint"] = endpoint
    provider: Callable[[], Any] | None = None
    if options.get("anon"):
        settings["skip_signature"] = True
    elif options.get("key"):
        provider = _GivenKeys(options["key"], options.get("secret", ""), options.get("token"))
    else:
        provider = _BotocoreChain(options.get("profile"))
    return S3Store(
        bucket,
        config=settings,  # type: ignore[arg-type]
        client_options=_client(),
        retry_config=policy,
        credential_provider=provider,
    )


class _GivenKeys:
    """Keys from the options alone: a session token in the environment belongs to other keys."""

    def __init__(self, key: str, secret: str, token: str | None) -> None:
        self._credentials = {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": None}

    def __call__(self) -> Any:
        return self._credentials


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
            raise PermissionError("NoCredentialsError: no AWS credentials found")
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            # botocore refreshes what expires; asking it again every few minutes costs nothing.
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }


def _azure_store(container: str, options: Options, policy: Any) -> ObjectStore | None:
    container, account = azure_container(container)
    if not set(options) <= _AZURE_OPTIONS:
        return None
    given = {name: options.get(name) or _azure_environment(name) for name in _AZURE_OPTIONS - {"anon"}}
    connection = _connection_string(given["connection_string"] or "")
    if not set(connection) <= _AZURE_CONNECTION or connection.get("AccountName", "").lower() == "devstoreaccount1":
        return None
    name = connection.get("AccountName") or given["account_name"] or account
    protocol = connection.get("DefaultEndpointsProtocol", "https")
    endpoint = connection.get("BlobEndpoint", "").rstrip("/")
    if not endpoint and name:
        host = given["account_host"] or f"{name}.blob.{connection.get('EndpointSuffix', 'core.windows.net')}"
        endpoint = f"{protocol}://{host}"
    key = connection.get("AccountKey") or (None if connection else given["account_key"])
    sas = connection.get("SharedAccessSignature") or (None if connection else given["sas_token"])
    anonymous = bool(options.get("anon")) and not connection
    if not endpoint or not (key or sas or anonymous or connection):
        # Service principals, managed identities and the Azure command line are adlfs's business.
        return None
    settings: dict[str, Any] = {"account_name": name or "account", "endpoint": endpoint}
    if key:
        settings["account_key"] = key
    elif sas:
        settings["sas_key"] = sas.lstrip("?")
    else:
        settings["skip_signature"] = True
    from obstore.store import AzureStore

    return AzureStore(container, config=settings, client_options=_client(), retry_config=policy)  # type: ignore[arg-type]


def azure_container(netloc: str) -> tuple[str, str | None]:
    """Container and account of ``container`` or ``container@account.dfs.core.windows.net``."""
    container, _, host = netloc.partition("@")
    return container, host.partition(".")[0] or None


def _azure_environment(name: str) -> str | None:
    # The names that adlfs itself reads: one environment serves both clients.
    return os.environ.get(f"AZURE_STORAGE_{name.upper()}") if name != "account_host" else None


def _connection_string(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _gcs_store(bucket: str, options: Options, policy: Any) -> ObjectStore | None:
    settings = _gcs_settings(options)
    if settings is None:
        return None
    from obstore.store import GCSStore

    return GCSStore(bucket, config=settings, client_options=_client(), retry_config=policy)  # type: ignore[arg-type]


def gcs_filesystem(options: Options) -> Any:
    """Obstore's own fsspec file system for ``gs://`` where gcsfs is missing, or None where it cannot serve either."""
    settings = _gcs_settings(options)
    if settings is None or _forked_after_use:
        return None
    from obstore.fsspec import FsspecStore

    return FsspecStore("gs", config=settings, client_options=_client(), retry_config=_retry())  # type: ignore[call-overload]


def _gcs_settings(options: Options) -> dict[str, Any] | None:
    access = options.get("token")
    known = access in (None, *_GCS_ACCESS) or _is_key_file(access)
    if not set(options) <= _GCS_OPTIONS or not known:
        return None
    settings: dict[str, Any] = {}
    endpoint = options.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST")
    if endpoint:
        settings["base_url"] = endpoint if "://" in endpoint else f"http://{endpoint}"
    # An emulator has no accounts to sign for, and Google's clients sign nothing there either.
    if access == "anon" or (endpoint and access is None):
        settings["skip_signature"] = True
    elif access is not None and access not in _GCS_ACCESS:
        settings["service_account"] = str(access)
    return settings


def _is_key_file(token: Any) -> bool:
    return isinstance(token, str | Path) and Path(token).is_file()


_MAKERS: dict[str, Callable[[str, Options, Any], ObjectStore | None]] = {
    "s3": _s3_store,
    "s3a": _s3_store,
    "az": _azure_store,
    "abfs": _azure_store,
    "abfss": _azure_store,
    "gs": _gcs_store,
    "gcs": _gcs_store,
}
