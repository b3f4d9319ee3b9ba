"""Which error does a failed request become, and in which words?

Every client fails in its own way: with pages of XML, with the signed URL in the message, or with a bare ``OSError``.
``storage_error`` looks for the few facts that tell one failure from another (HTTP status, the store's error code, the
kind of network fault), wherever in the chain of exceptions they lie, and answers with one line: what, what was got, and
the remedy. Nothing that a store sent is quoted but its error code, so no credential and no token can appear.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from online_patching.errors import AccessDeniedError, NotFoundError, SlideChangedError, StorageError

_SECRET_QUERY = re.compile(r"\?[^?]*(sig|signature|token|credential|key|se|sv)=.*", re.IGNORECASE | re.DOTALL)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://[^\s'\"<>,)]+", re.IGNORECASE)
_STATUS = re.compile(r"status code: (\d{3})|HTTP/[\d.]+ (\d{3})")
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>|\((\w+)\) when calling|ErrorCode:(\w+)")

_WEB_REMEDY = "check the user and password, or the signature, that the URL carries; a signed URL expires"
_ACCESS_REMEDY = "check the credentials (storage_options, environment, profile), or anon=True for public data"
# What stores call a refusal, and what it means; S3's codes first, then Azure's.
_REFUSALS = {
    "ExpiredToken": "the session token expired; get new credentials",
    "ExpiredTokenException": "the session token expired; get new credentials",
    "TokenRefreshRequired": "the session token expired; get new credentials",
    "RequestExpired": "the request or its signature expired; check this machine's clock and get new credentials",
    "RequestTimeTooSkewed": "this machine's clock differs from the store's; set the clock",
    "InvalidToken": "the session token is not valid; get new credentials",
    "InvalidAccessKeyId": "the store does not know this access key; check the key and the endpoint",
    "SignatureDoesNotMatch": "the signature is wrong; check the secret key",
    "InvalidAuthenticationInfo": "the credentials are not valid or have expired; check or renew them",
    "AuthenticationFailed": "the account key or SAS token is wrong or expired; check or renew it",
    "AuthorizationFailure": "the account key or SAS token is wrong, expired or too weak; check or renew it",
    "PublicAccessNotPermitted": "the account allows no anonymous access; give credentials",
    "NoAuthenticationInformation": "credentials are needed; give account_key, sas_token or connection_string",
}
_REGION_CODES = {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"}
_MISSING_CODES = {"NoSuchBucket": "bucket", "ContainerNotFound": "container", "NoSuchKey": "object"}
# Marks of a network fault in the names and words of the clients' exceptions, most certain first.
_NETWORK_FAULTS = (
    (
        r"[Cc]ertificate|SSLError|InvalidContentType|corrupt message|WRONG_VERSION_NUMBER",
        "the TLS connection was refused (the certificate is not trusted, or the server speaks no TLS); check the URL's"
        " https and the certificates of this machine",
    ),
    (
        r"dns error|DNSError|Name or service not known|nodename nor servname|name resolution|getaddrinfo",
        "the host name is not known; check the spelling of the endpoint and the network",
    ),
    (
        r"[Rr]efused|Connect call failed|EndpointConnectionError|ClientConnectorError|Network is unreachable|No route",
        "nothing answers there; check the endpoint and the network",
    ),
    (r"TimeoutError|TimedOut|[Tt]imed out|Timeout", "no answer in time; check the endpoint and the network"),
    (
        r"[Rr]eset|error sending request|closed before message|[Bb]roken pipe|ServerDisconnected|ConnectionClosed",
        "the connection broke; check the network and the server",
    ),
    (
        r"error decoding response body|before message length|IncompleteRead|IncompleteBody|ContentLengthError|PayloadE",
        "the body of the answer was cut short; check the network and the server",
    ),
)
# What obstore says of an answer to a range request that holds another range, or the whole.
_OTHER_RANGE = re.compile(r"Requested (\d+)\.\.\d+, got (\d+)\.\.\d+")
_WHOLE = "non-partial response when range requested"
# Faults of a connection that clients tell in words or by the names of their exceptions.
_BROKEN = r"Temporary failure in name resolution|IncompleteMessage|connection closed before message completed"
_UNREACHED = "|".join(pattern for pattern, _ in _NETWORK_FAULTS[2:])
_TRANSIENT_CODES = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ServerBusy"}


def shown_url(url: str) -> str:
    """The URL as it may appear in messages: without user, password, query, fragment and tokens."""
    try:
        parts = urlsplit(url)
    except ValueError:
        # No URL at all (an unclosed bracket): the part that can hold no secret.
        return f"{url.partition('://')[0]}://..."
    if len(parts.scheme) < 2:
        return url
    if parts.scheme not in ("http", "https"):
        # In a store's URL the container may stand before an @, and ? and # belong to the name.
        scheme, _, rest = url.partition("://")
        user, _, _ = rest.partition("/")[0].rpartition("@")
        rest = rest[len(user) + 1 :] if ":" in user else rest
        return f"{scheme}://{_SECRET_QUERY.sub('', rest)}"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class CutShortError(StorageError):
    """Fewer bytes arrived than the answer's own head, or the pinned size, promises: the next answer may be whole."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a chain of exceptions tells."""

    status: int | None
    code: str | None
    text: str
    errors: tuple[BaseException, ...]

    def has(self, kind: type[BaseException]) -> bool:
        return any(isinstance(error, kind) for error in self.errors)

    def names(self, *names: str) -> bool:
        return any(type(error).__name__ in names for error in self.errors)


def storage_error(url: str, error: BaseException) -> StorageError:
    """One clear line for whatever a client library raised."""
    if isinstance(error, StorageError):
        return error
    shown, facts = shown_url(url), _facts_of(error)
    for judge in (_disk, _region, _changed, _refused, _missing, _unusable, _network):
        judged = judge(shown, facts)
        if judged is not None:
            return judged
    status = f"HTTP {facts.status}" if facts.status else type(error).__name__
    code = f" {facts.code}" if facts.code else ""
    return StorageError(
        f"{shown}: cannot be read ({status}{code}{_reason(error, facts)}); check the endpoint, the network and the"
        " credentials (storage_options)"
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed when it is made again.

    So it is after timeouts, broken connections, bodies cut short, 429 and 5xx (but 501, which says that the server
    cannot do this at all); not after any other answer of the store, and not where its name or certificate is wrong.
    """
    if isinstance(error, StorageError):
        return isinstance(error, CutShortError)
    facts = _facts_of(error)
    if found := _OTHER_RANGE.search(facts.text):
        return found[1] == found[2]
    if facts.status is not None:
        return facts.status in (408, 429) or (facts.status >= 500 and facts.status != 501)
    if facts.code is not None:
        return facts.code in _TRANSIENT_CODES
    for pattern, permanent in ((_BROKEN, False), (_NETWORK_FAULTS[0][0], True), (_NETWORK_FAULTS[1][0], True)):
        if re.search(pattern, facts.text):
            return not permanent
    return facts.has(ConnectionError) or facts.has(TimeoutError) or bool(re.search(_UNREACHED, facts.text))


def _facts_of(error: BaseException) -> _Facts:
    chain = tuple(_chain(error))
    text = "\n".join(f"{type(each).__name__}: {each}" for each in chain)
    status, code = None, None
    for each in chain:
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            status = status or response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = code or response.get("Error", {}).get("Code")
        for name in ("status_code", "status"):
            value = getattr(each, name, None)
            status = status or (value if isinstance(value, int) else None)
        value = getattr(each, "error_code", None)
        code = code or (str(getattr(value, "value", value)) if value else None)
    found = _STATUS.search(text)
    status = status or (int(found[1] or found[2]) if found else None)
    found = _CODE.search(text)
    code = code or (next(group for group in found.groups() if group) if found else None)
    # botocore puts the bare status where an answer had no body.
    if code is not None and code.isdigit():
        status, code = status or int(code), None
    return _Facts(status, code, text, chain)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen and len(seen) < 16:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _disk(shown: str, facts: _Facts) -> StorageError | None:
    """What a file system says; a failed write also fails to tidy up, which must not hide the first reason."""
    if len(urlsplit(shown).scheme) > 1 and not shown.startswith("file:"):
        return None
    for error in facts.errors:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return AccessDeniedError(
                f"{shown}: {os.strerror(number)}: check the permissions of the file and its folder"
            )
        if number in (errno.ENOTDIR, errno.EISDIR, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG):
            return StorageError(f"{shown}: {os.strerror(number)}: name another place")
    return None


def _region(shown: str, facts: _Facts) -> StorageError | None:
    # botocore follows a bucket to the region it is told until Python's stack ends, where no endpoint helps.
    endless = facts.has(RecursionError) and shown.startswith("s3")
    if facts.code in _REGION_CODES or "BareRedirect" in facts.text or facts.status in (301, 307, 308) or endless:
        return StorageError(
            f"{shown}: the store answers that the object lies elsewhere ({facts.code or 'redirect'}), in another region"
            " or behind another endpoint; set client_kwargs.region_name or endpoint_url (AWS_DEFAULT_REGION)"
        )
    return None


def _changed(shown: str, facts: _Facts) -> StorageError | None:
    if facts.status == 412 or facts.names("PreconditionError", "ResourceModifiedError"):
        return SlideChangedError(f"{shown}: the object changed since it was indexed; run `online-patching index` again")
    return None


def _refused(shown: str, facts: _Facts) -> StorageError | None:
    if facts.names("NoCredentialsError", "CredentialUnavailableError", "ProfileNotFound", "PartialCredentialsError"):
        return AccessDeniedError(f"{shown}: no credentials found; {_ACCESS_REMEDY}")
    if facts.code in _REFUSALS:
        return AccessDeniedError(f"{shown}: access denied ({facts.code}): {_REFUSALS[facts.code]}")
    if facts.status in (401, 403) or facts.has(PermissionError):
        got = f"HTTP {facts.status}" if facts.status else "refused"
        got += f" {facts.code}" if facts.code else ""
        if shown.startswith(("http://", "https://")):
            return AccessDeniedError(f"{shown}: access denied ({got}): {_WEB_REMEDY}")
        hint = "" if facts.status == 401 else "; a store that may not be listed answers the same for a missing object"
        return AccessDeniedError(f"{shown}: access denied ({got}): {_ACCESS_REMEDY}{hint}")
    return None


def _missing(shown: str, facts: _Facts) -> StorageError | None:
    if facts.status == 404 or facts.has(FileNotFoundError) or facts.code in _MISSING_CODES:
        what = _MISSING_CODES.get(facts.code or "", "object, bucket or folder")
        return NotFoundError(f"{shown}: no such {what}; check the spelling and the endpoint")
    return None


def _unusable(shown: str, facts: _Facts) -> StorageError | None:
    if facts.names("NotSupportedError") or _WHOLE in facts.text:
        return no_ranges_error(shown)
    if found := _OTHER_RANGE.search(facts.text):
        if found[1] == found[2]:
            return StorageError(f"{shown}: the answer was cut short ({found[0]}); check the network and the server")
        return StorageError(
            f"{shown}: {found[0]}: the server, or a proxy before it, answers range requests wrongly; read it elsewhere"
        )
    if facts.status == 416:
        return StorageError(
            f"{shown}: asked for bytes past its end (HTTP 416); the object is shorter than its headers say: check the"
            " upload"
        )
    if facts.status == 429 or (facts.status is not None and facts.status >= 500):
        return StorageError(
            f"{shown}: the store failed (HTTP {facts.status} {facts.code or ''}".rstrip()
            + "); try again later, or with fewer workers"
        )
    return None


def no_ranges_error(url: str) -> StorageError:
    """The error for a web server that answers with whole files."""
    return StorageError(
        f"{shown_url(url)}: the server sends whole files only (no answer to a Range request), so a slide cannot be read"
        " in parts; serve it with byte ranges, or copy it to a disk or an object store"
    )


def _network(shown: str, facts: _Facts) -> StorageError | None:
    for pattern, reason in _NETWORK_FAULTS:
        if re.search(pattern, facts.text):
            return StorageError(f"{shown}: cannot be reached: {reason}")
    return None


def _reason(error: BaseException, facts: _Facts) -> str:
    """The first line of a message that came from a client, not from a store, without URLs."""
    if facts.status is not None or facts.code is not None or "<" in str(error):
        return ""
    first = str(error).strip().partition("\n")[0]
    first = _URL.sub(lambda match: shown_url(match[0]), first)
    return f": {_SECRET_QUERY.sub('', first)[:160]}" if first else ""
