"""Manifests: what spreadsheets write is read, and whatever is wrong is one line with its row, before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.in_memory_commands import save_scan
from voxtile import InputError
from voxtile.batch.cases import CaseFiles
from voxtile.batch.cohort.manifest import read_manifest
from voxtile.io.given import Given

CHANNELS = ("T1", "FLAIR")
HEAD = "case,T1,FLAIR"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the scans a to f; beside it a folder with one more."""
    for number, name in enumerate("abcdef"):
        save_scan(tmp_path / "work" / f"{name}.nii.gz", number, (6, 5, 4))
    save_scan(tmp_path / "elsewhere" / "g.nii.gz", 9, (6, 5, 4))
    (tmp_path / "work" / "notes.txt").write_text("no scan")
    (tmp_path / "work" / "folder.nii.gz").mkdir()
    return tmp_path / "work"


def cases_of(folder: Path, text: str | bytes, channels: tuple[str, ...] = CHANNELS) -> tuple[CaseFiles, ...]:
    manifest = folder / "cases.csv"
    manifest.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_manifest(manifest, folder / "masks", channels).cases


def refusal(folder: Path, text: str | bytes, channels: tuple[str, ...] = CHANNELS) -> str:
    """The one line that says what is wrong; nothing is made."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as raised:
        cases_of(folder, text, channels)
    assert {*folder.rglob("*")} - {*before} <= {folder / "cases.csv"}
    said = str(raised.value)
    assert said.startswith(f"{folder / 'cases.csv'}: ")
    assert said.isprintable()
    return said.removeprefix(f"{folder / 'cases.csv'}: ")


TWO = f"{HEAD}\none,a.nii.gz,b.nii.gz\ntwo,c.nii.gz,d.nii.gz\n"
FORMS = {
    "plain": TWO.encode(),
    "mark of UTF-8": TWO.encode("utf-8-sig"),
    "UTF-16": TWO.encode("utf-16"),
    "semicolons": TWO.replace(",", ";").encode(),
    "tabs": TWO.replace(",", "\t").encode(),
    "ends of Windows": TWO.replace("\n", "\r\n").encode(),
    "ends of old Macs": TWO.replace("\n", "\r").encode(),
    "no last end": TWO.rstrip().encode(),
    "empty rows": TWO.replace("\n", "\n\n,,\n").encode(),
    "empty columns": TWO.replace("\n", ",,\n").encode(),
    "quotes": TWO.replace("one", '"one"').replace("case", '"case"').encode(),
    "capitals": TWO.replace("case", "Case").replace("T1", "t1").encode(),
    "spaces in the head": TWO.replace(HEAD, "case , T1, FLAIR").encode(),
    "other order": b"case,FLAIR,T1\none,b.nii.gz,a.nii.gz\ntwo,d.nii.gz,c.nii.gz\n",
    "numbers": TWO.replace(HEAD, "case,channel_0000,channel_0001").encode(),
    "BIDS": TWO.replace(HEAD, "case,T1w,FLAIR").encode(),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_manifest_means_the_same_in_every_form(folder: Path, form: str) -> None:
    found = [(case.name, [file.name for file in case.files]) for case in cases_of(folder, FORMS[form])]
    assert found == [("one", ["a.nii.gz", "b.nii.gz"]), ("two", ["c.nii.gz", "d.nii.gz"])]


def test_files_are_relative_to_the_manifest_and_masks_to_the_place(folder: Path) -> None:
    text = f"{HEAD},output\none/ü 1,../elsewhere/g.nii.gz,{folder}/b.nii.gz,\nx,a.nii.gz,c.nii.gz,sub/y.nii.gz\n"
    one, other = cases_of(folder, text)
    assert os.path.samefile(one.files[0], folder.parent / "elsewhere" / "g.nii.gz")
    assert one.files[1] == folder / "b.nii.gz"
    assert one.mask == folder / "masks" / "one" / "ü 1.nii.gz"
    assert other.mask == folder / "masks" / "sub" / "y.nii.gz"


def test_one_file_may_have_all_channels(folder: Path) -> None:
    assert [len(case.files) for case in cases_of(folder, "case,image\none,a.nii.gz\n")] == [1]
    assert "found both" in refusal(folder, "case,image,T1,FLAIR\none,a.nii.gz,b.nii.gz,c.nii.gz\n")


def test_options_are_those_of_the_command_line_for_one_case(folder: Path) -> None:
    text = "case,CT,options\none,a.nii.gz,--nan 0 --spacing 1 1 2.5\ntwo,b.nii.gz,\nthree,c.nii.gz,--neginf -1024\n"
    manifest = folder / "cases.csv"
    manifest.write_text(text)
    one, two, three = read_manifest(manifest, folder / "masks", ["CT"], given=Given(posinf=7.0)).cases
    assert one.given == Given(nan=0.0, posinf=7.0, spacing=(1.0, 1.0, 2.5))
    assert two.given is None
    assert three.given == Given(neginf=-1024.0, posinf=7.0)


OUTPUTS = f"{HEAD},output\n"
ROW = "one,a.nii.gz,b.nii.gz"
BAD = {
    "missing column": ("case,T1\none,a.nii.gz\n", "row 1: ", "FLAIR"),
    "no case": ("name,T1,FLAIR\n", "row 1: ", "'case'"),
    "unknown column": (f"{HEAD},age\n{ROW},7\n", "row 1: ", "'age'"),
    "a third channel": (f"{HEAD},channel_0002\n{ROW},c.nii.gz\n", "row 1: ", "'channel_0002'"),
    "a column twice": (f"{HEAD},T1w\n{ROW},c.nii.gz\n", "row 1: ", "'T1w'"),
    "other separators": ("case|T1|FLAIR\none|a.nii.gz|b.nii.gz\n", "row 1: ", "case|T1|FLAIR"),
    "empty": ("", "", "an empty file"),
    "nothing but a mark": (b"\xef\xbb\xbf", "", "an empty file"),
    "no row": (f"{HEAD}\n\n", "", "found none"),
    "Latin-1": (f"{HEAD}\n{ROW}\nM\u00fcller,c.nii.gz,d.nii.gz\n".encode("latin-1"), "row 3: ", "0xfc"),
    "UTF-16 without a mark": (TWO.encode("utf-16-le"), "", "UTF-8"),
    "a scan": (b"\x1f\x8b\x08\x00\x00" + bytes(range(256)), "row 1: ", "0x8b"),
    "an open quote": (f'{HEAD}\n{ROW}\n"two,c.nii.gz,d.nii.gz\n', "row 3: ", "quote"),
    "too many cells": (f"{HEAD}\n{ROW}\ntwo,c.nii.gz,d.nii.gz,e.nii.gz\n", "row 3: ", "found 4"),
    "too few cells": (f"{HEAD}\n{ROW}\ntwo,c.nii.gz\n", "row 3: ", "empty cell"),
    "a case twice": (f"{HEAD}\n{ROW}\none,c.nii.gz,d.nii.gz\n", "row 3: ", "row 2"),
    "a case twice, beside one in capitals": (
        *(f"{HEAD},output\n{ROW},1.nii.gz\nOne,c.nii.gz,d.nii.gz,2.nii.gz\nOne,e.nii.gz,f.nii.gz,3.nii.gz\n", "row 4: ", "row 3"),  # noqa: E501
    ),
    "a missing file": (f"{HEAD}\n{ROW}\ntwo,c.nii.gz,z.nii.gz\n", "row 3: ", "z.nii.gz: expected a scan, found noth"),
    "a file with a space": (f"{HEAD}\none,a.nii.gz, b.nii.gz\n", "row 2: ", "space"),
    "a folder": (f"{HEAD}\none,a.nii.gz,folder.nii.gz\n", "row 2: ", "found a folder"),
    "no scan": (f"{HEAD}\none,a.nii.gz,notes.txt\n", "row 2: ", "notes.txt"),
    "a device": (f"{HEAD}\none,a.nii.gz,/dev/null\n", "row 2: ", "device"),
    "an address": (f"{HEAD}\none,s3://bucket/a.nii.gz,b.nii.gz\n", "row 2: ", "s3://bucket"),
    "one file for two cases": (f"{HEAD}\n{ROW}\ntwo,c.nii.gz,./a.nii.gz\n", "row 3: ", "row 2"),
    "one file for two channels": (f"{HEAD}\none,a.nii.gz,../work/a.nii.gz\n", "row 2: ", "once"),
    "an empty name": (f"{HEAD}\n{ROW}\n,c.nii.gz,d.nii.gz\n", "row 3: ", "empty cell"),
    "a name of spaces": (f"{HEAD}\n  ,a.nii.gz,b.nii.gz\n", "row 2: ", "empty cell"),
    "a name that leads out": (f"{HEAD}\n../one,a.nii.gz,b.nii.gz\n", "row 2: ", "'../one'"),
    "a name that leads out in its middle": (f"{HEAD}\nx/../../one,a.nii.gz,b.nii.gz\n", "row 2: ", "x/../../one"),
    "an absolute name": (f"{HEAD}\n/one,a.nii.gz,b.nii.gz\n", "row 2: ", "'/one'"),
    "a folder's name": (f"{HEAD}\none/,a.nii.gz,b.nii.gz\n", "row 2: ", "'one/'"),
    "a hidden name": (f"{HEAD}\n.voxtile-batch/one,a.nii.gz,b.nii.gz\n", "row 2: ", "hidden"),
    "two cases with one output": (f"{OUTPUTS}{ROW},x.nii.gz\ntwo,c.nii.gz,d.nii.gz,./x.nii.gz\n", "row 3: ", "row 2"),
    "an output that another case has by its name": (
        *(f"{OUTPUTS}{ROW},two.nii.gz\ntwo,c.nii.gz,d.nii.gz,\n", "row 3: ", "row 2"),
    ),
    "an output that leads out": (f"{OUTPUTS}{ROW},../x.nii.gz\n", "row 2: ", "leave out .."),
    "an absolute output": (f"{OUTPUTS}{ROW},/tmp/x.nii.gz\n", "row 2: ", "'/tmp/x.nii.gz'"),
    "an output of another format": (f"{OUTPUTS}{ROW},x.nrrd\n", "row 2: ", ".nii.gz"),
    "an output without a name": (f"{OUTPUTS}{ROW},.nii.gz\n", "row 2: ", "hidden"),
    "a name of two lines": (f'{HEAD}\n{ROW}\n"two\nthree",c.nii.gz,d.nii.gz\n', "row 3: ", "'two\\nthree'"),
    "an output of two lines": (f'{OUTPUTS}{ROW},"x\r.nii.gz"\n', "row 2: ", "one line"),
    "a name that a terminal obeys": (f"{HEAD}\n\x1b[31mone,a.nii.gz,b.nii.gz\n", "row 2: ", "'\\x1b[31mone'"),
    "a name that is too long": (f"{HEAD}\n{'ü' * 125},a.nii.gz,b.nii.gz\n", "row 2: ", "255 bytes"),
    "a path that is too long": (f"{HEAD}\n{'/'.join(['x' * 200] * 25)},a.nii.gz,b.nii.gz\n", "row 2: ", "4095"),
    "a mask below a mask": (f"{HEAD}\n{ROW}\none.nii.gz/x,c.nii.gz,d.nii.gz\n", "row 2: ", "folder of row 3"),
    "an output below a mask": (f"{OUTPUTS}{ROW},\ntwo,c.nii.gz,d.nii.gz,one.nii.gz/x.nii.gz\n", "row 2: ", "row 3"),
    "a record below a record": (f"{HEAD}\none.json/x,a.nii.gz,b.nii.gz\none,c.nii.gz,d.nii.gz\n", "row 3: ", "row 2"),
    "an empty first row": (f"\n{HEAD}\n{ROW}\n", "row 1: ", "found ''"),
    "unknown option": (f"{HEAD},options\n{ROW},--overlap 0.5\n", "row 2: ", "--overlap"),
    "an option without its value": (f"{HEAD},options\n{ROW},--nan\n", "row 2: ", "--nan"),
    "an impossible option": (f"{HEAD},options\n{ROW},--spacing 1 0 1\n", "row 2: ", "above 0"),
    "no option": (f"{HEAD},options\n{ROW},yes\n", "row 2: ", "yes"),
    "an option in an open quote": (f"{HEAD},options\n{ROW},--nan '0\n", "row 2: ", "quotation"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_manifest_is_one_line_with_its_row(folder: Path, what: str) -> None:
    text, row, part = BAD[what]
    said = refusal(folder, text)
    assert said.startswith(row), said
    assert part in said, said
    assert "expected" in said or "would replace" in said, said


def test_channels_that_are_swapped_by_their_names_are_told(folder: Path) -> None:
    for number, name in enumerate(("p_0000", "p_0001")):
        save_scan(folder / f"{name}.nii.gz", number, (6, 5, 4))
    assert refusal(folder, f"{HEAD}\none,p_0001.nii.gz,p_0000.nii.gz\n").startswith("row 2: ")


def test_an_output_never_replaces_a_scan_of_any_row(folder: Path) -> None:
    (folder / "cases.csv").write_text(f"{HEAD}\none,a.nii.gz,b.nii.gz\na,c.nii.gz,d.nii.gz\n")
    with pytest.raises(InputError, match=r"row 3: .*a\.nii\.gz: would replace a scan of row 2"):
        read_manifest(folder / "cases.csv", folder, CHANNELS)


def test_a_link_in_the_place_leads_no_output_out(folder: Path) -> None:
    (folder / "masks").mkdir()
    (folder / "masks" / "out").symlink_to(folder.parent / "elsewhere")
    assert "which a link leads to" in refusal(folder, f"{HEAD}\nout/g,a.nii.gz,b.nii.gz\n")


def test_the_first_row_is_told_and_how_many_more(folder: Path) -> None:
    said = refusal(folder, f"{HEAD}\n{ROW}\ntwo,x.nii.gz,y.nii.gz\nthree,v.nii.gz,w.nii.gz\none,c.nii.gz,d.nii.gz\n")
    assert said.startswith("row 3: ")
    assert said.endswith("(2 more of 4 rows have faults)")


@pytest.mark.parametrize("name", ["nowhere.csv", "folder.nii.gz"])
def test_what_is_no_table_is_told(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=name):
        read_manifest(folder / name, folder / "masks", CHANNELS)


def test_two_names_of_one_link_are_one_scan(folder: Path) -> None:
    (folder / "hard.nii.gz").hardlink_to(folder / "a.nii.gz")
    (folder / "soft.nii.gz").symlink_to("a.nii.gz")
    for name in ("hard", "soft"):
        assert refusal(folder, f"{HEAD}\n{ROW}\ntwo,c.nii.gz,{name}.nii.gz\n").startswith("row 3: ")
