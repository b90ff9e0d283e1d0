"""What the listener is told in its TOML file: who may call, when a series is complete, and what is done with which.

Knows nothing of DICOM's wire.
"""

from __future__ import annotations

import hashlib
import math
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

import tomllib
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from voxtile.asked import with_asked
from voxtile.errors import InputError
from voxtile.io.dicom.choice import Gaps, Tilt
from voxtile.io.plain_file import check_plain_file
from voxtile.options import Options
from voxtile.outputs.dicom.seg import SegKind
from voxtile.outputs.dicom.write import Kind
from voxtile.pacs.access import Access, token_of
from voxtile.pacs.address import Address, parse_target
from voxtile.triton.connection import TlsConfig

MIB = 1 << 20

LARGEST_FILE = 1 << 20
"""Bytes of a file of settings; one that is larger is another file."""


def _title(text: str) -> str:
    if not (text == text.strip() and text.isascii() and text.isprintable() and 0 < len(text) <= 16):
        raise ValueError("expected an AE title: 1 to 16 printable ASCII characters, no space at an end")
    return text


def _beside(path: Path, info: ValidationInfo) -> Path:
    """A path as the file means it: from its own folder on."""
    return Path((info.context or {}).get("folder", "")) / path


Title = Annotated[str, AfterValidator(_title)]
FilePath = Annotated[Path, AfterValidator(_beside)]
Positive = Annotated[float, Field(gt=0, lt=math.inf)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(Strict):
    """`[listen]`: the door.

    Attributes:
        aet: this node's AE title.
        host: the address to listen on.
        port: the port; 0 for a free one.
        check_called: whether callers must call it by its AE title.
        callers: AE titles that may call; empty for all.
        addresses: networks that may connect, such as "10.1.0.0/16"; empty for all.
        tls_certificate: PEM, this node's certificate; encrypts.
        tls_key: PEM, its private key.
        tls_ca: PEM, the authorities by one of which a caller's certificate must be signed.
        associations: how many may be open at once.
        silence_seconds: an association without a word for so long is ended.
    """

    aet: Title = "VOXTILE"
    host: str = "127.0.0.1"
    port: int = Field(11112, ge=0, le=65535)
    check_called: bool = True
    callers: tuple[Title, ...] = ()
    addresses: tuple[IPv4Network | IPv6Network, ...] = ()
    tls_certificate: FilePath | None = None
    tls_key: FilePath | None = None
    tls_ca: FilePath | None = None
    associations: Count = 20
    silence_seconds: Positive = 60

    @model_validator(mode="after")
    def _both_or_none(self) -> Listen:
        if (self.tls_certificate is None) != (self.tls_key is None) or (self.tls_ca and not self.tls_certificate):
            raise ValueError("expected tls_certificate and tls_key together, and tls_ca only with them")
        return self


class Complete(Strict):
    """`[complete]`: when a series is complete.

    Attributes:
        idle_seconds: no object of it came for so long, and no association that carried one is open.
        count_at: the PACS, by its name, that must have as many objects of it; None to ask none.
        cut_off: what is done where an association that carried it broke, and no PACS is asked: wait until another one
            that carries it ends well, or ignore it.
        ask_seconds: how often it is looked at again while it is not.
        give_up_hours: how long a series waits before it is refused.
    """

    idle_seconds: Positive = 30
    count_at: str | None = None
    cut_off: Literal["wait", "ignore"] = "wait"
    ask_seconds: Positive = 30
    give_up_hours: Positive = 24


class Limits(Strict):
    """`[limits]`: what is taken at most.

    Attributes:
        object_mib: of one object; an association that sends a larger one is ended.
        objects: in one series.
        series: that are kept at once.
        free_mib: space that is left on the disk; with less, objects are refused ("out of resources").
        at_once: series that are segmented at once.
        max_ram_mib: memory for one series; None for no limit.
    """

    object_mib: Positive = 2048
    objects: Count = 20_000
    series: Count = 10_000
    free_mib: float = Field(1024, ge=0, lt=math.inf)
    at_once: Count = 1
    max_ram_mib: Positive | None = None


class Keep(Strict):
    """`[keep]`: what stays in the spool.

    Attributes:
        hours: objects of a series that is done, so that late slices find it.
        remember_days: that a series is done.
        retry_minutes: pauses after which what failed is tried again.
    """

    hours: float = Field(24, ge=0, lt=math.inf)
    remember_days: float = Field(30, ge=0, lt=math.inf)
    retry_minutes: tuple[Positive, ...] = (1, 5, 15, 60, 240, 720)


class PacsSettings(Strict):
    """`[pacs.NAME]`: a PACS.

    Attributes:
        address: `https://HOST/…/dicom-web` or `AET@HOST:PORT`.
        token_file: the file with its token.
        ca: PEM, the authorities to trust.
        certificate: PEM, what is shown to it.
        key: PEM, its private key.
    """

    address: str
    token_file: FilePath | None = None
    ca: FilePath | None = None
    certificate: FilePath | None = None
    key: FilePath | None = None


class Rule(Strict):
    """`[[rule]]`: which series, and what is done with it. Of several, the first that fits counts.

    Attributes:
        name: what the audit calls it.
        modality: such as "CT"; None for any.
        description: a pattern for the series' description, such as "*venous*", in capitals or not; None for any.
        calling: AE titles of which one has sent it; empty for any.
        min_slices: objects at least.
        max_slices: objects at most; None for any number.
        model: the model.
        outputs: the objects to make; the SEG is always among them.
        seg: how the SEG is encoded.
        to: the PACS, by their names, that get the objects.
        gaps: as `--gaps` of `voxtile dicom`.
        tilt: as `--tilt` of `voxtile dicom`.
        options: further options of the segmentation, as the gateway takes them.
    """

    name: str = Field(min_length=1, max_length=64)
    modality: str | None = None
    description: str | None = None
    calling: tuple[Title, ...] = ()
    min_slices: Count = 1
    max_slices: Count | None = None
    model: str = Field(min_length=1)
    outputs: tuple[Kind, ...] = ("seg",)
    seg: SegKind = "binary"
    to: tuple[str, ...] = Field(min_length=1)
    gaps: Gaps = "refuse"
    tilt: Tilt = "refuse"
    options: dict[str, str | int | float | bool] = {}

    @model_validator(mode="after")
    def _options_are_known(self) -> Rule:
        try:
            with_asked(Options(), self.options)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The objects to make, the SEG first."""
        return ("seg", *(kind for kind in dict.fromkeys(self.outputs) if kind != "seg"))

    @property
    def fingerprint(self) -> str:
        """Another one wherever a series would get another result."""
        text = self.model_dump_json(exclude={"name", "description", "modality", "calling", "min_slices", "max_slices"})
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Settings(Strict):
    """The whole file.

    Attributes:
        spool: a folder of its own, on a disk that keeps what is written.
        audit: the file with a line a case; None for `audit.jsonl` in the spool.
        listen: the door.
        complete: when a series is complete.
        limits: what is taken at most.
        keep: what stays in the spool.
        pacs: each PACS by its name.
        rule: the rules, in their order.
    """

    spool: FilePath
    audit: FilePath | None = None
    listen: Listen = Listen()
    complete: Complete = Complete()
    limits: Limits = Limits()
    keep: Keep = Keep()
    pacs: dict[str, PacsSettings] = {}
    rule: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> Settings:
        wanted = [*(name for rule in self.rule for name in rule.to), *filter(None, [self.complete.count_at])]
        for name in wanted:
            if name not in self.pacs:
                raise ValueError(f"expected [pacs.{name}], which is named, found none")
        names = [rule.name for rule in self.rule]
        if len({*names}) < len(names):
            raise ValueError("expected another name for each [[rule]], found one twice")
        return self

    def way_of(self, rule: Rule) -> str:
        """Another one wherever a series would get another result by `rule`, or get it elsewhere."""
        text = " ".join([rule.fingerprint, *(self.pacs[name].address for name in rule.to)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def reach(self, name: str) -> tuple[Address, Access]:
        """Where a PACS is, and how it is called.

        Raises:
            InputError: its address or a file of it cannot be used.
        """
        one = self.pacs[name]
        tls = TlsConfig(one.ca, one.certificate, one.key)
        token = None if one.token_file is None else token_of(one.token_file, "")
        return parse_target(one.address), Access(token, tls, self.listen.aet)


def load_settings(file: Path) -> Settings:
    """Reads the file.

    Raises:
        InputError: it cannot be read, or something in it cannot be; it is named in one line.
    """
    settings = _validated(file, _parsed(file))
    for name in settings.pacs:
        try:
            settings.reach(name)
        except InputError as error:
            raise InputError(f"{file}: pacs.{name}: {error}") from None
    return settings


def _parsed(file: Path) -> dict[str, Any]:
    check_plain_file(file, "settings")
    try:
        with file.open("rb") as stream:
            return tomllib.loads(stream.read(LARGEST_FILE).decode())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # also what is no UTF-8, and too many brackets
        raise InputError(f"{file}: expected TOML, found something else ({error})") from None


def _validated(file: Path, values: dict[str, Any]) -> Settings:
    try:
        return Settings.model_validate(values, context={"folder": file.parent})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        said = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{file}: {place}: {said[:1].lower()}{said[1:]}; see docs/how-to/listener.md") from None
