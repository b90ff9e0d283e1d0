"""Says in one line what went wrong at an address, whichever library says it: nothing there, no access, no answer.

Knows errors by their names and codes, so that no library is imported for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from voxtile.errors import AccessError, InputError, OutputError, ServerUnavailable, VoxtileError, in_one_line
from voxtile.places.address import Address

UNREACHABLE = frozenset(
    {
        "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError",
        "HTTPClientError", "ProxyConnectionError", "SSLError", "ClientConnectionError",
        "ServerTimeoutError", "FSTimeoutError",
        "TimeoutError", "ConnectionError", "ClientSSLError", "TransportError",
    }
)  # fmt: skip
"""Names of errors, and of what these are derived from, that say that a server does not answer."""

BROKEN = frozenset({"ClientPayloadError", "IncompleteReadError", "ResponseStreamingError", "IncompleteRead"})
"""Those that say that an answer was cut off."""

NO_CREDENTIALS = frozenset(
    {
        "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
        "ProfileNotFound", "SSOError", "DefaultCredentialsError", "RefreshError", "UnauthorizedSSOTokenError",
    }
)  # fmt: skip

REFUSED = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401", "407"})
"""Codes that say that credentials are wrong, whatever is asked for."""

BUSY = frozenset({"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "408", "429"})
"""Codes that say: later."""

NOTHING = frozenset({"", "404", "410", "NoSuchKey", "NoSuchVersion"})
"""Codes with which nothing is there; what reads the web says so of every other number too."""

CUT_OFF = "the transfer was cut off"

HOW_TO_SIGN_IN = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket FSSPEC_S3_ANON=true",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS; for a public bucket FSSPEC_GS_TOKEN=anon",
    "http": "keep name and password in ~/.netrc, or give an address with a signature",
}


def fault(error: BaseException, address: Address, *, writing: bool) -> VoxtileError:
    """What a user is told of an error.

    Args:
        error: what a library, or the file system of this machine, raised.
        address: what it was about.
        writing: whether it was to be written.
    """
    if isinstance(error, VoxtileError):
        return error
    causes = list(_causes(error))
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    code = next(filter(None, map(_code, causes)), "")
    kind = OutputError if writing else InputError
    if names & NO_CREDENTIALS:
        return AccessError(f"{address}: expected credentials for it, found none that can be used; {_how(address)}")
    if code in REFUSED:
        return AccessError(f"{address}: access is refused ({code}); {_how(address)}")
    if code in BUSY or (code.isdigit() and int(code) >= 500):
        return ServerUnavailable(f"{address}: expected an answer, found a server that is too busy ({code}); try later")
    if code == "NoSuchBucket":
        return kind(f"{address}: expected a bucket {address.root!r}, found none of that name; check it, or make it")
    if "PermissionError" in names or code in ("AccessDenied", "403"):
        verb = "written" if writing else "read"
        return kind(f"{address}: cannot be {verb}: access is denied ({code or 'AccessDenied'}); {_how(address)}")
    if names & BROKEN:
        return kind(f"{address}: {CUT_OFF}, on every try; run again")
    if names & UNREACHABLE:
        return ServerUnavailable(
            f"{address}: expected an answer, found none ({type(causes[-1]).__name__}); check the address, the network "
            f"and {'AWS_ENDPOINT_URL_S3' if address.scheme == 's3' else 'the proxy'}"
        )
    if "FileNotFoundError" in names and code in NOTHING:
        return kind(f"{address}: expected a file, found nothing; check the name")
    return kind(f"{address}: cannot be {'written' if writing else 'read'} ({_said(error, code, address)})")


def may_pass(told: VoxtileError, address: Address) -> bool:
    """Whether it is worth while to try again at once; what reads buckets has done so where nobody answered."""
    unanswered = isinstance(told, ServerUnavailable) and not isinstance(told, AccessError)
    return CUT_OFF in str(told) or (address.is_web and unanswered)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _code(error: BaseException) -> str:
    """What the server's answer says: S3's code, or HTTP's number."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    number = getattr(error, "status", None) or getattr(error, "code", None)
    return str(number) if isinstance(number, int) and number >= 400 else ""


def _how(address: Address) -> str:
    return HOW_TO_SIGN_IN["http" if address.is_web else address.scheme]


def _said(error: BaseException, code: str, address: Address) -> str:
    """What a library said; of the web its number alone, because the words hold the whole address."""
    return code or type(error).__name__ if address.is_web else in_one_line(error)
