"""Speaks with a PACS by DICOMweb: QIDO-RS, WADO-RS and STOW-RS."""

from __future__ import annotations

import contextlib
import ssl
import sys
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom.dataset import Dataset

from voxtile.errors import AccessError, InputError, OutputError, ServerUnavailable, VoxtileError
from voxtile.io.dicom.objects.quiet import quietly
from voxtile.pacs.access import Access, authorization_of, tls_context
from voxtile.pacs.address import Wanted, WebAddress
from voxtile.pacs.base import Object, total
from voxtile.pacs.ended import watch_end
from voxtile.pacs.patience import Passing
from voxtile.pacs.silence import silence
from voxtile.pacs.spool import Spool

TIMEOUT_S = (10.0, 120.0)
"""Seconds until a connection, and without a byte."""

AS_STORED = (("application/dicom", "*"),)
"""In any transfer syntax: without it, a PACS unpacks what is compressed."""

MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
ACCESS_REFUSED = frozenset({401, 403, 407})
NOT_OFFERED = frozenset({400, 404, 405, 406, 501})
"""What a PACS answers to a query that it does not know."""

OUT_OF_RESOURCES = range(0xA700, 0xA800)


class WebPacs:
    """A PACS that speaks DICOMweb.

    Raises:
        InputError: a token would be sent without encryption, or a file for TLS cannot be used.
    """

    def __init__(self, address: WebAddress, access: Access) -> None:
        silence()
        if access.token and not address.secret:
            raise InputError(
                f"{address.name}: expected https:// for a token, found http://, where everybody on the way could read "
                "it; use https://, or give no token"
            )
        self._name = address.name
        self._session = _session(access)
        self._client = _client(address, self._session)
        self._storing = _client(address, self._session)
        # In pieces, a large object would be sent without its length, which some do not take.
        self._storing.set_chunk_size(sys.maxsize)

    def close(self) -> None:
        self._session.close()

    def check(self) -> None:
        with self._told(InputError), contextlib.suppress(_NotOffered), _queries():
            self._client.search_for_studies(limit=1)

    def count(self, wanted: Wanted) -> int | None:
        with self._told(InputError):
            try:
                with _queries():
                    found = self._search(wanted)
            except _NotOffered:
                return None
        if not found:
            raise InputError(f"{self._name}: expected a {wanted.name} with the UID given, found none there")
        tag = "00201209" if wanted.series else "00201208"
        return total([_value(one, tag) for one in found])

    def _search(self, wanted: Wanted) -> list[Any]:
        if wanted.series is None:
            asked = {"StudyInstanceUID": wanted.study}
            found = self._client.search_for_studies(fields=["NumberOfStudyRelatedInstances"], search_filters=asked)
            return [one for one in found if _value(one, "0020000D") == wanted.study]
        asked = {"SeriesInstanceUID": wanted.series}
        fields = ["NumberOfSeriesRelatedInstances"]
        found = self._client.search_for_series(wanted.study, fields=fields, search_filters=asked)
        return [one for one in found if _value(one, "0020000E") == wanted.series]

    def fetch(self, wanted: Wanted, spool: Spool) -> None:
        with self._told(InputError), quietly():
            if wanted.series is None:
                objects = self._client.iter_study(wanted.study, media_types=AS_STORED)
            else:
                objects = self._client.iter_series(wanted.study, wanted.series, media_types=AS_STORED)
            for one in objects:
                if _is_cut_off(one):
                    raise InputError(f"{self._name}: expected whole objects, found one that is cut off; try again")
                spool.add(one.save_as)

    def holds(self, one: Object) -> bool | None:
        with self._told(OutputError):
            try:
                with _queries():
                    asked = {"SOPInstanceUID": one.instance}
                    found = self._client.search_for_instances(one.study, one.series, search_filters=asked)
            except _NotOffered:
                return None
        return any(_value(each, "00080018") == one.instance for each in found)

    def store(self, one: Object) -> None:
        dataset = one.read()
        with self._told(OutputError), quietly():
            answer = self._storing.store_instances([dataset])
            failed = answer.get("FailedSOPSequence") or []
            taken = {str(each.get("ReferencedSOPInstanceUID")) for each in answer.get("ReferencedSOPSequence") or []}
        if failed:
            raise self._not_stored(failed[0].get("FailureReason"))
        if one.instance not in taken and not self.holds(one):
            raise OutputError(f"{self._name}: expected word that the object is stored, found none; look there")

    def _not_stored(self, reason: Any) -> Exception:
        code = reason if isinstance(reason, int) else 0
        said = {0x0122: "it takes no objects of this class", 0x0124: "it does not let you store"}.get(code)
        error = OutputError(f"{self._name}: does not store the object ({said or f'failure reason {code:04X}'})")
        return Passing(error) if code in OUT_OF_RESOURCES else error

    @contextlib.contextmanager
    def _told(self, kind: type[VoxtileError]) -> Iterator[None]:
        """Says in one line what goes wrong; what requests says repeats addresses."""
        try:
            yield
        except (VoxtileError, Passing, _NotOffered):
            raise
        except requests.HTTPError as error:
            raise self._refused(error.response, kind) from None
        except requests.exceptions.SSLError:
            raise ServerUnavailable(
                f"{self._name}: no encrypted connection: its certificate is not trusted or not its own, it asks for "
                "one of yours, or it does not speak TLS; see --pacs-ca, --pacs-cert and --pacs-key"
            ) from None
        except (requests.exceptions.InvalidURL, requests.TooManyRedirects):
            raise InputError(f"{self._name}: expected the address of DICOMweb, found one that leads nowhere") from None
        except requests.exceptions.InvalidHeader:
            raise InputError(
                f"{self._name}: expected an answer that says where it ends, found one that does not; one that is cut "
                "off could not be told from a whole one"
            ) from None
        except requests.RequestException as error:
            raise Passing(
                ServerUnavailable(f"{self._name}: no answer, or one that was cut off ({type(error).__name__})")
            ) from None
        except Exception as error:  # what is no JSON, no multipart, no DICOM: its text may repeat what came
            raise kind(
                f"{self._name}: expected an answer of DICOMweb, found another one ({type(error).__name__}); is the "
                "address that of DICOMweb?"
            ) from None

    def _refused(self, response: Any, kind: type[VoxtileError]) -> Exception:
        status = response.status_code
        said = f"{status} {_phrase(status)}".strip()
        if status in ACCESS_REFUSED:
            return AccessError(
                f"{self._name}: refuses access ({said}); a token is missing, wrong or out of date, or does not "
                "allow this"
            )
        if status in MAY_PASS:
            return Passing(ServerUnavailable(f"{self._name}: cannot answer now ({said})"))
        if status == HTTPStatus.NOT_FOUND:
            return kind(f"{self._name}: found nothing at this address ({said}); check the path and the UIDs")
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return kind(f"{self._name}: the object is larger than it takes ({said})")
        failed = _failures(response)
        return self._not_stored(failed[0].get("FailureReason")) if failed else kind(f"{self._name}: refused ({said})")


class _NotOffered(Exception):
    """A query that the PACS does not offer."""


@contextlib.contextmanager
def _queries() -> Iterator[None]:
    """Tells a query that a PACS does not offer from one that fails."""
    try:
        yield
    except requests.HTTPError as error:
        if error.response is not None and error.response.status_code in NOT_OFFERED:
            raise _NotOffered from None
        raise


class _Session(requests.Session):
    """Trusts the authorities that it is told to, not those of the environment, and closes answers that nobody reads."""

    _answers: tuple[requests.Response, ...] = ()

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        self._close_answers()
        (kwargs.get("headers") or {}).pop("Host", None)  # dicomweb-client leaves the port out
        return super().request(*args, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        answer = super().send(*args, **kwargs)
        self._answers += (answer,)
        return answer

    def close(self) -> None:
        self._close_answers()
        super().close()

    def _close_answers(self) -> None:
        for answer in self._answers:
            answer.close()
        self._answers = ()

    def merge_environment_settings(self, *args: Any) -> Any:
        settings = super().merge_environment_settings(*args)
        return {**settings, "verify": self.verify} if isinstance(self.verify, str) else settings


class _Token(requests.auth.AuthBase):
    """Sends a token. As a plain header of the session, an entry in ~/.netrc would replace it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = authorization_of(self._token)
        return request


def _session(access: Access) -> _Session:
    session = _Session()
    tls_context(access.tls)  # requests would say less of a file that cannot be used
    session.verify = str(access.tls.ca) if access.tls.ca else _system_roots()
    if access.tls.certificate is not None:
        session.cert = (str(access.tls.certificate), str(access.tls.key))
    if access.token:
        session.auth = _Token(access.token)
    return session


def _client(address: WebAddress, session: _Session) -> DICOMwebClient:
    client = DICOMwebClient(address.base, session, timeout=TIMEOUT_S, callback=watch_end)
    client.set_http_retry_params(retry=False)  # it tries again whatever goes wrong, a wrong token too
    return client


def _system_roots() -> str | bool:
    """The file of the authorities that the system trusts; True, for those of requests, where it has none."""
    return ssl.get_default_verify_paths().cafile or True


def _is_cut_off(one: Dataset) -> bool:
    """Whether the last element of an object has fewer bytes than it says; pydicom takes it as it is."""
    last = one.get_item(max(one.keys())) if len(one) else None
    length, value = getattr(last, "length", None), getattr(last, "value", None)
    return isinstance(value, bytes) and length not in (None, 0xFFFFFFFF) and len(value) < length


def _value(one: Any, tag: str) -> Any:
    """The first value of a tag in DICOM's JSON; None where there is none."""
    values = (one.get(tag) or {}).get("Value") if isinstance(one, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _failures(response: requests.Response) -> list[Any]:
    """The objects that an answer says were not stored."""
    with contextlib.suppress(Exception), quietly():
        return list(Dataset.from_json(response.json()).get("FailedSOPSequence") or [])
    return []


def _phrase(status: int) -> str:
    with contextlib.suppress(ValueError):
        return HTTPStatus(status).phrase
    return ""
