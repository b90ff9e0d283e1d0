"""Names of structures become codes of SNOMED CT: the right one, on the right side, or none."""

from __future__ import annotations

import csv
from importlib.resources import files

import pytest
from pydicom.sr._concepts_dict import concepts

from voxtile.card import Code, Label
from voxtile.outputs.dicom.codes import CATEGORIES, SIDES, code_of, code_of_name

DICTIONARY = {code: entry[0] for entries in concepts["SCT"].values() for code, entry in entries.items()}
"""DICOM's own list of SNOMED CT's codes, by code."""

OTHER_WORDS = {
    "15825003": "Aortic", "15776009": "Pancreatic", "41216001": "Prostatic", "78961009": "Splenic",
    "4958002": "Amygdaloid", "59820001": "vascular", "8205005": "Wrist", "55603005": "Fat", "108369006": "Tumor",
    "280711000": "metatarsal",
}  # fmt: skip
"""Codes that DICOM's list says in another word of the same meaning."""

PAIRED = (
    "adrenal_gland autochthon brachiocephalic_vein clavicula common_carotid_artery femur gluteus_maximus "
    "gluteus_medius gluteus_minimus hip humerus iliac_artery iliac_vena iliopsoas kidney kidney_cyst "
    "lung_lower_lobe lung_upper_lobe scapula subclavian_artery "
)
SINGLE = (
    "aorta atrial_appendage_left brachiocephalic_trunk brain colon costal_cartilages duodenum esophagus "
    "gallbladder heart inferior_vena_cava liver lung_middle_lobe_right pancreas portal_vein_and_splenic_vein "
    "prostate pulmonary_vein sacrum skull small_bowel spinal_cord spleen sternum stomach superior_vena_cava "
    "thyroid_gland trachea urinary_bladder "
)
CLASS_NAMES = [
    *SINGLE.split(),
    *(f"{name}_{side}" for name in PAIRED.split() for side in SIDES),
    *(f"rib_{side}_{number}" for side in SIDES for number in range(1, 13)),
    *(f"vertebrae_{part}{n}" for part, count in (("C", 7), ("T", 12), ("L", 5), ("S", 1)) for n in range(1, count + 1)),
]
"""The structures of TotalSegmentator's main task."""


def rows() -> list[dict[str, str]]:
    text = (files("voxtile.outputs.dicom") / "structures.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def test_codes_mean_what_the_table_says() -> None:
    known = [row for row in rows() if row["code"] in DICTIONARY]
    assert len(known) > 110
    for row in known:
        word = OTHER_WORDS.get(row["code"], row["meaning"].split()[0])
        assert word.lower() in DICTIONARY[row["code"]].lower(), row
    for code, meaning in (*CATEGORIES.values(), *SIDES.values()):
        assert DICTIONARY[code].lower() == meaning.lower()


def test_names_are_unique_and_codes_are_numbers_that_snomed_gives() -> None:
    names = [(name, row["side"]) for row in rows() for name in row["names"].split("|")]
    assert len(names) == len(set(names))
    assert all(_check_digit_is_right(row["code"]) for row in rows())


def _check_digit_is_right(code: str) -> bool:
    """SNOMED CT's identifiers end in a check digit (Verhoeff's): a mistyped one is none."""
    check = 0
    for place, digit in enumerate(reversed(code)):
        value = int(digit)
        for _ in range(place % 8):
            value = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[value]
        turned = check >= 5  # the symmetries of a pentagon: turns, and turns of its mirror image
        part = (check % 5 - value % 5 if turned else check % 5 + value % 5) % 5
        check = part + 5 * (turned != (value >= 5))
    return check == 0


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("kidney_left", "64033007", "left"),
        ("Left kidney", "64033007", "left"),
        ("left-kidney", "64033007", "left"),
        ("KIDNEY RIGHT", "64033007", "right"),
        ("Kidney_R", "64033007", "right"),
        ("Kidney_L", "64033007", "left"),
        ("kidney", "64033007", None),
        ("rib_left_4", "25523003", "left"),
        ("rib_right_12", "43993008", "right"),
        ("lung_lower_lobe_left", "90572001", "left"),
        ("lung_middle_lobe_right", "72481006", None),
        ("heart_atrium_left", "82471001", None),
        ("left atrium", "82471001", None),
        ("heart_ventricle_right", "53085002", None),
        ("subclavian_artery_left", "85235006", None),
        ("subclavian_artery_right", "29700009", None),
        ("gluteus_minimus_left", "75297007", "left"),
        ("vertebrae_L1", "66794005", None),
        ("vertebrae_T12", "23215003", None),
        ("liver", "10200004", None),
        ("Urinary bladder", "89837001", None),
        ("CSF", "65216001", None),
    ],
)
def test_usual_names_have_their_code_and_their_side(name: str, code: str, side: str | None) -> None:
    found = code_of_name(name)
    assert found is not None
    assert (found.value, found.laterality) == (code, side)


@pytest.mark.parametrize(
    "name",
    ["", "left", "l", "liver_left", "left right kidney", "kidney left left", "lung_middle_lobe_left", "class 1",
     "subclavian artery", "rib_left_13", "vertebrae_L6", "not a kidney", "leber", "腎臓", "kidneys_left_over"],
)  # fmt: skip
def test_what_is_not_known_has_no_code(name: str) -> None:
    """A side where there is none, both sides, and one side of what only the other has say nothing for sure."""
    assert code_of_name(name) is None


def test_every_usual_name_of_totalsegmentator_has_a_code() -> None:
    assert len(CLASS_NAMES) == 117
    found = {name: code_of_name(name) for name in CLASS_NAMES}
    assert not [name for name, code in found.items() if code is None]
    for name, code in found.items():
        assert code is not None
        said = code.laterality or next((side for side in SIDES if side in code.meaning.lower().split()), None)
        assert said == next((side for side in SIDES if side in name.split("_")), None), name


def test_labels_of_one_value_have_a_code_only_if_it_is_the_same() -> None:
    own = Code(value="1", meaning="one")
    assert code_of([Label(name="liver", value=1)]) == code_of_name("liver")
    assert code_of([Label(name="liver", value=1, code=own)]) == own
    assert code_of([Label(name="liver", value=1), Label(name="Liver", value=1)]) == code_of_name("liver")
    assert code_of([Label(name="liver", value=1), Label(name="spleen", value=1)]) is None
    assert code_of([Label(name="liver", value=1), Label(name="odd", value=1)]) is None
