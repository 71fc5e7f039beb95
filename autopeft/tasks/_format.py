"""How a file of rows is written: its kind by its name, its separator, its quotes, its encoding."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from autopeft.errors import ConfigError, Fault

TEXTS = (".csv", ".tsv", ".jsonl", ".json")  # kinds that are text; each may be compressed, too: `.csv.gz`
ENDINGS = (*TEXTS, ".parquet", ".xlsx")
EXPECTED = f"{', '.join(ENDINGS)} ({', '.join(f'{kind}.gz' for kind in TEXTS[:3])}, too)"
SEPARATORS = {".csv": ",", ".tsv": "\t"}
KEYS = ("separator", "quoting", "encoding")  # of the config's `data`
NAMED = {
    "tab": "\t",
    "\\t": "\t",
    "comma": ",",
    "semicolon": ";",
    "pipe": "|",
}  # separators that YAML makes hard to write
# What people mean by the names that are often written for others.
MEANT = {"utf-8": "utf-8-sig", "utf8": "utf-8-sig"}
GUESSED_FROM = 2**18  # bytes


@dataclass(frozen=True, slots=True)
class Format:
    """How files of rows are written, as far as their names do not tell.

    Attributes:
        separator: Character between the fields of CSV and TSV; None for that of the file's ending.
        quoting: Meaning of quotation marks in CSV and TSV. `standard`: they enclose a field. `auto`: likewise, but a
            field that swallowed rows is a fault. `none`: a character as any other.
        encoding: Encoding of files of text.
    """

    separator: str | None = None
    quoting: str = "auto"
    encoding: str = "utf-8"

    @staticmethod
    def of(data: Mapping[str, Any]) -> Format:
        """Returns the format that the config's `data` names."""
        separator = data.get("separator")
        return Format(
            NAMED.get(separator, separator) if separator else None,
            data.get("quoting") or "auto",
            data.get("encoding") or "utf-8",
        )

    @property
    def codec(self) -> str:
        """Python's name of the encoding; a byte order mark is no text."""
        return MEANT.get(self.encoding.lower(), self.encoding)

    def separator_of(self, path: Path) -> str:
        return self.separator or SEPARATORS[kind_of(path)]


def kind_of(path: Path) -> str:
    """Returns the ending that says how a file is read, in small letters: `.csv` of `Rows.CSV.gz`."""
    names = [suffix.lower() for suffix in path.suffixes]
    return names[-2] if len(names) > 1 and names[-1] == ".gz" else "".join(names[-1:])


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def is_known(path: Path) -> bool:
    """Whether a file of this name can be read."""
    return kind_of(path) in (TEXTS if is_compressed(path) else ENDINGS)


def unknown_kind(path: Path) -> str:
    """Says what to do with a file of an unknown kind."""
    if path.suffix.lower() in (".xls", ".ods", ".xlsb", ".numbers"):
        return f"{path.name}: save the sheet as .xlsx or .csv; expected one of {EXPECTED}"
    if path.suffix.lower() in (".zip", ".bz2", ".xz", ".zst", ".7z", ".tar", ".gz", ".tgz"):
        return f"{path.name}: unpack it; expected one of {EXPECTED}"
    if path.suffix.lower() in (".txt", ".dat", ""):
        return f"{path.name}: give it the ending of what it holds; expected one of {EXPECTED}"
    return f"{path.name}: expected one of {EXPECTED}"


def opened(path: Path) -> BinaryIO:
    """Opens a file for reading bytes, unpacked."""
    import gzip

    return gzip.open(path) if is_compressed(path) else open(path, "rb")  # type: ignore[return-value]


def no_encoding(path: Path, format: Format, fault: UnicodeError | None = None) -> ConfigError:
    """Makes the error for a file that is not in the encoding that was said, with the encoding that it seems to have."""
    wrong = f"it has a byte {fault.object[fault.start]:#04x}; " if isinstance(fault, UnicodeDecodeError) else ""
    with opened(path) as file:
        guess = seems_encoded(file.read(GUESSED_FROM))
    hint = f"it seems to be {guess}: say `encoding: {guess}`" if guess else "say `encoding: …`"
    return ConfigError(
        [Fault("data", f"{path} is not {format.encoding.upper()}: {wrong}{hint} under `data`, or save it as UTF-8")]
    )


def require_text(path: Path, format: Format) -> None:
    """Raises ConfigError for a file with zero bytes that should be UTF-8, which they are, too: it is UTF-16."""
    with opened(path) as file:
        if format.codec == MEANT["utf-8"] and b"\0" in file.read(4096):
            raise no_encoding(path, format)


def seems_encoded(sample: bytes) -> str | None:
    """Guesses the encoding of a text that is not UTF-8; None if nothing is likely.

    A byte order mark or zero bytes tell UTF-16. Kana tell Japanese. charset-normalizer tells the other scripts apart,
    but takes short Western texts for Baltic or Greek ones: those whose letters cp1252 has are cp1252.
    """
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for wide, at in (("utf-16-le", 1), ("utf-16-be", 0)):
        if sample[at::2].count(0) > len(sample) // 4:
            return wide
    if _share(sample, "cp932", "\u3041", "\u30fe") > 0.2:
        return "cp932"
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    name: str | None = None if best is None else best.encoding
    if name in ("big5", "big5hkscs", "cp950", "gb2312", "gbk", "gb18030", "cp949", "euc_kr", "cp1251", "koi8_r"):
        return name
    return "cp1252" if _share(sample, "cp1252", "\u00c0", "\u024f", "€‚„…‰‹›‘’“”–—™ «»°§©®·¿¡£²³µ½") > 0.8 else name


def _share(sample: bytes, codec: str, first: str, last: str, beside: str = "") -> float:
    """Returns the share of a range of characters, and some beside it, among those that are not ASCII."""
    try:
        text = codecs.getincrementaldecoder(codec)().decode(sample)
    except UnicodeDecodeError:
        return 0.0
    others = [character for character in text if character > "\x7f"]
    return sum(first <= character <= last or character in beside for character in others) / max(len(others), 1)
