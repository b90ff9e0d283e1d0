"""The page of certificate.json names exactly the keys of a certificate that was just made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.generate.certificate import TABLES
from tests.support.small_models import IDENTITY
from voxtile_build.build import build
from voxtile_build.spec.spec import load_spec

OPTIONAL = {"inputs", "precision_facts", "reference_error", "constant", "student_of"}


def test_page_names_the_keys_of_a_certificate(tmp_path: Path) -> None:
    spec = tmp_path / "any.toml"
    spec.write_text(IDENTITY.format(name="any", dtype="fp32"), encoding="utf-8")
    build(load_spec(spec), tmp_path / "repository")
    (file,) = (tmp_path / "repository").glob("any_onnxruntime/1/certificate.json")
    certificate = json.loads(file.read_text(encoding="utf-8"))
    for place, meanings in TABLES.items():
        found = keys_at(certificate, place)
        assert found - set(meanings) == set(), place
        assert set(meanings) - found <= OPTIONAL, place


def keys_at(certificate: Mapping[str, Any], place: str) -> set[str]:
    """The keys of the object at `place`; of all objects together where it is a list."""
    value: Any = certificate[place] if place else certificate
    return {key for one in (value if isinstance(value, list) else [value]) for key in one}
