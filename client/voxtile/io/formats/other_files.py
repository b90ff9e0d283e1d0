"""Tells what a file is that holds no scan: text, a picture, a document, a program. By its first bytes, or by its name.

A name counts less than the bytes: it is asked only where no bytes could tell. Knows nothing of DICOM.
"""

from __future__ import annotations

import codecs
import re

LOOKED_AT = 1 << 12
"""Bytes by which a file is told."""

MAGIC = (
    b"\xff\xd8\xff",  # JPEG
    b"\0\0\0\x0cjP  ",  # JPEG 2000
    b"\x89PNG\r\n",
    b"GIF8",
    b"II*\0",  # TIFF
    b"MM\0*",
    b"RIFF",  # WebP, AVI, WAV
    b"icns",
    b"%PDF",
    b"%!PS",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",  # old Office, MSI, Thumbs.db
    b"MZ",  # Windows' programs
    b"\x7fELF",
    b"\xce\xfa\xed\xfe",  # macOS's programs
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",  # the same, and Java's
    b"MSCF",  # Windows' cabinets, of installers
    b"ISc(",
    b"ITSF",  # Windows' help
    b"?_\3\0",
    b"L\0\0\0\1\x14\2\0",  # Windows' links
    b"SQLite format 3\0",
    b"\0\0\0\1Bud1",  # .DS_Store
    b"bplist",
    b"\x89HDF",
    b"\x93NUMPY",
    b"MATLAB",
    b"NRRD",
    b"OTTO",
    b"wOF",
    b"\0\0\1\xba",  # MPEG
    b"\0\0\1\xb3",
    b"ID3",
    b"OggS",
    b"FWS",
    b"CWS",
    b"\0\5\x16\7",  # what macOS keeps of the file beside it
)
"""How files of other kinds begin."""

NIFTI = (b"n+1\0", b"ni1\0", b"n+2\0", b"ni2\0")
"""What a NIfTI file says of itself, at 344 or at 4."""

JUNK = re.compile(
    r"^(Thumbs\.db|ehthumbs\.db|desktop\.ini|autorun\.inf|\.DS_Store|\.localized|\.directory|\.nomedia|\.gitkeep|\.keep"
    r"|\.gitignore|\.gitattributes|Icon\r?|DICOMDIR|README|LICEN[CS]E|COPYING|VERSION|CHANGES|CHANGELOG|INDEX|MANIFEST"
    r"|CHECKSUMS?|MD5SUMS?|SHA\d+SUMS?|LOCKFILE|LOCK|_SUCCESS|DONE|OK|READY|COMPLETED?|FINISHED)$",
    re.IGNORECASE,
)
"""Files that systems and programs leave in folders, whatever is in them."""

SAYS_NOTHING = re.compile(
    r"\.(db|ini|inf|nii|hdr|mha|mhd|nhdr|mgh|mgz|mat|npy|npz|pkl|h5|jar|docx|xlsx|pptx|odt|ods|odp|exe|dll|so|dylib|ocx"
    r"|sys|drv|msi|cab|class|ico|icns|cur|ttf|otf|woff2?|chm|hlp|lnk|sqlite|mp3|mp4|m4v|avi|mov|wmv|mpe?g|wav|swf|lck)$",
    re.IGNORECASE,
)
"""Endings of files whose first bytes may be anything; of those that Windows, Java and macOS put on a patient's disk."""

MAY_BE_EMPTY = re.compile(
    r"\.(txt|md|rst|logs?|csv|tsv|json|xml|html?|css|js|ya?ml|toml|cfg|conf|properties|sh|bat|cmd|py|md5|sha\d+|sfv|bvals?"
    r"|bvecs?|lst|list|url|jpe?g|png|gif|bmp|tiff?|svg|webp|pdf|rtf|docx?|xlsx?|pptx?|lock|done|ok|flag|ready|completed?"
    r"|finished|keep|nomedia|success|gitkeep|pid|err|out|stderr|stdout)$",
    re.IGNORECASE,
)
"""Endings of files that tell what they are by their bytes, or by being there."""

ANY_ENDING = re.compile(r"\.(?=\w*[a-z])\w{1,9}$", re.IGNORECASE)
"""An ending with letters. What ends in a UID or a slice's number has none."""


def is_other(first: bytes) -> bool:
    """Whether a file that begins with these bytes (up to LOOKED_AT) is surely of another kind."""
    if first.startswith(MAGIC):
        return True
    mp4, bitmap = first[4:8] == b"ftyp", first[:2] == b"BM" and first[6:10] == bytes(4)
    return mp4 or bitmap or first[344:348] in NIFTI or first[4:8] in NIFTI or is_text(first)


def is_text(first: bytes) -> bool:
    """Whether bytes are a text, in UTF-8, UTF-16 or an encoding of one byte a letter."""
    if first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        text = first.decode("utf-16", "replace")
        return "\ufffd" not in text[:-1] and not any(_is_control(ord(sign)) for sign in text)
    if not first or any(map(_is_control, first)):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(first)
    except UnicodeDecodeError:
        return sum(byte >= 0x80 for byte in first) < 0.3 * len(first)
    return True


def _is_control(code: int) -> bool:
    return code in range(9) or code in range(14, 27) or code in range(28, 32) or code in (0x0B, 0x7F)


def named_other(name: str, empty: bool) -> bool:
    """Whether a name is of another kind, of a file whose bytes do not tell, or that has none."""
    if JUNK.search(name) or SAYS_NOTHING.search(name):
        return True
    return empty and MAY_BE_EMPTY.search(name) is not None
