"""CSV and TSV as people have them: quotes, separators, spaces, encodings, compression. Nothing goes in silence."""

import gzip

import pytest

from autopeft.errors import ConfigError
from autopeft.tasks._format import Format, seems_encoded
from autopeft.tasks._tables import columns_of, read_columns, read_file

LABELS = ("pos", "neg")
TEXTS = [f"text number {index}" for index in range(60)]


def written(path, rows, separator=",", header="text,label"):
    lines = [header.replace(",", separator), *(separator.join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def with_quotes(at, label_first=False):
    texts = [f'"{text}' if index in at else text for index, text in enumerate(TEXTS)]
    rows = [(text, LABELS[index % 2]) for index, text in enumerate(texts)]
    return [row[::-1] for row in rows] if label_first else rows


@pytest.mark.parametrize(("ending", "separator"), [(".csv", ","), (".tsv", "\t"), (".csv", ";")])
@pytest.mark.parametrize("at", [(10, 20), (10, 11), (10, 20, 30, 40)])
@pytest.mark.parametrize("label_first", [False, True])
def test_a_text_that_begins_with_a_quote_swallows_no_row_in_silence(tmp_path, ending, separator, at, label_first):
    """Sixty rows became fifty."""
    header = "label,text" if label_first else "text,label"
    path = written(tmp_path / f"rows{ending}", with_quotes(at, label_first), separator, header)
    with pytest.raises(ConfigError, match=r"a field of row 10.* holds whole rows of the file.*say `quoting: none`"):
        read_file(path, Format(separator=separator))
    table = read_file(path, Format(separator=separator, quoting="none"))
    assert len(table["text"]) == 60
    assert table["text"][10] == '"text number 10'
    assert len(read_file(path, Format(separator=separator, quoting="standard"))["text"]) < 60


def test_a_quote_without_an_end_says_what_to_do(tmp_path):
    path = written(tmp_path / "rows.csv", with_quotes((50,)))
    with pytest.raises(ConfigError, match=r"EOF inside string.*say `quoting: none`"):
        read_file(path)
    assert len(read_file(path, Format(quoting="none"))["text"]) == 60


def test_numbers_as_targets_tell_a_swallowed_row_too(tmp_path):
    rows = [(f'"{text}' if index in (10, 20) else text, f"{index / 7:.3f}") for index, text in enumerate(TEXTS)]
    with pytest.raises(ConfigError, match="row 10 holds whole rows"):
        read_file(written(tmp_path / "rows.csv", rows))


@pytest.mark.parametrize(("ending", "separator"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize("at", [(10, 20), (10, 11)])
def test_texts_alone_tell_a_swallowed_row_by_quotes_that_do_not_pair(tmp_path, ending, separator, at):
    """No column of labels: a prompt and its completion."""
    rows = [(f'"{text}' if index in at else text, f"answer to {index}") for index, text in enumerate(TEXTS)]
    path = written(tmp_path / f"rows{ending}", rows, separator, "prompt,completion")
    with pytest.raises(ConfigError, match=r"a field of row 10.* holds whole rows"):
        read_file(path)
    assert len(read_file(path, Format(quoting="none"))["prompt"]) == 60
    verse = [('"Red, the rose,\nblue, the sea,\nand so, on"', "a poem"), *rows[:10]]
    assert len(read_file(written(tmp_path / "verse.csv", verse, header="prompt,completion"))["prompt"]) == 11


def test_line_breaks_that_are_meant_are_read(tmp_path):
    """A poem with commas in one row; and a column in which most rows hold line breaks, even whole rows."""
    poem = [('"Roses are red,\nviolets, blue,\nand so on"', "pos"), *with_quotes(())[1:]]
    assert read_file(written(tmp_path / "a.csv", poem))["text"][0].count("\n") == 2
    tables = [(f'"a,pos\nb,neg\n{index}"', LABELS[index % 2]) for index in range(40)] + with_quotes(())[:20]
    assert read_file(written(tmp_path / "b.csv", tables))["text"][3] == "a,pos\nb,neg\n3"


@pytest.mark.parametrize(("separator", "said"), [(";", '";"'), ("\t", "tab"), ("|", '"|"')])
def test_another_separator_is_named_and_then_read(tmp_path, separator, said):
    rows = [(f"text, number {index}", LABELS[index % 2]) for index in range(60)]
    path = written(tmp_path / "rows.csv", rows, separator)
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    assert f"seems to be separated by {separator!r}: say `separator: {said}`" in str(caught.value)
    plain = written(tmp_path / "plain.csv", with_quotes(()), separator)  # parsed: a table of one column
    with pytest.raises(ConfigError, match=r"no such column.* seems to be separated by"):
        read_columns(plain, ["text"])
    format = Format.of({"separator": "tab" if separator == "\t" else separator})
    assert read_file(path, format)["text"][3] == "text, number 3"
    assert columns_of(path, format) == ["text", "label"]


def test_spaces_after_the_separators_are_no_part_of_names_and_labels(tmp_path):
    path = written(tmp_path / "rows.csv", [("good", " pos"), ('"well, bad"', " neg")], header="text, label")
    assert read_file(path) == {"text": ["good", "well, bad"], "label": ["pos", "neg"]}
    assert columns_of(path) == ["text", "label"]
    (tmp_path / "b.csv").write_text(" text,label \n  two spaces,pos\n")
    assert read_file(tmp_path / "b.csv") == {"text": ["  two spaces"], "label": ["pos"]}


SAMPLES = {
    "cp1252": "café au lait, “très” bon,pos\nmauvaise journée à Paris,neg\n",
    "gb18030": "这个东西很好用,好\n质量太差了不喜欢,坏\n",
    "utf-16": "a good day,pos\na bad day,neg\n",
    "utf-16-le": "a good day,pos\na bad day,neg\n",
    "cp932": "これはとても良い製品です,良い\n悪い日でした,悪い\n",
    "cp1251": "очень хороший день,да\nплохая ночь,нет\n",
}


@pytest.mark.parametrize("encoding", SAMPLES)
def test_the_encoding_that_a_file_seems_to_have_is_named_and_then_read(tmp_path, encoding):
    content = "text,label\n" + SAMPLES[encoding] * 10
    (tmp_path / "rows.csv").write_bytes(content.replace(", “très” bon", " “très” bon").encode(encoding))
    for read in (read_file, columns_of):
        if read is columns_of and not encoding.startswith("utf-16"):
            continue  # its first line alone does not tell
        with pytest.raises(ConfigError, match=rf"is not UTF-8: .*seems to be {encoding}: say `encoding: {encoding}`"):
            read(tmp_path / "rows.csv")
    table = read_file(tmp_path / "rows.csv", Format(encoding=encoding))
    assert len(table["text"]) == 20
    assert table["label"][0] == SAMPLES[encoding].split("\n")[0].split(",")[-1]


def test_one_accent_in_a_long_file_is_western_and_utf_8_is_read_with_and_without_its_mark(tmp_path):
    assert seems_encoded(b"text,label\n" + b"a plain row,pos\n" * 60 + "café,pos\n".encode("cp1252")) == "cp1252"
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "rows.csv").write_bytes("text,label\né,pos\n".encode(encoding))
        assert read_file(tmp_path / "rows.csv") == {"text": ["é"], "label": ["pos"]}
    with pytest.raises(ConfigError, match="is not UTF-16"):
        read_file(tmp_path / "rows.csv", Format(encoding="utf-16"))


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json"])
def test_compressed_files_and_large_letters_are_read(tmp_path, ending):
    content = {
        ".csv": "text,label\na,1\nb,2\n",
        ".tsv": "text\tlabel\na\t1\nb\t2\n",
        ".jsonl": '{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n',
        ".json": '[{"text": "a", "label": 1}, {"text": "b", "label": 2}]',
    }[ending]
    (tmp_path / f"rows{ending}.gz").write_bytes(gzip.compress(content.encode()))
    (tmp_path / f"ROWS{ending.upper()}").write_text(content)
    for name in (f"rows{ending}.gz", f"ROWS{ending.upper()}"):
        assert read_file(tmp_path / name) == {"text": ["a", "b"], "label": [1, 2]}
    (tmp_path / f"cut{ending}.gz").write_bytes(gzip.compress(content.encode())[:-12])
    with pytest.raises(ConfigError, match="cannot be read: "):
        read_file(tmp_path / f"cut{ending}.gz")


@pytest.mark.parametrize(
    ("name", "said"),
    [("rows.xls", "save the sheet as .xlsx or .csv"), ("rows.zip", "unpack it"), ("rows.txt", "give it the ending")],
)
def test_other_files_are_refused_with_what_to_do(tmp_path, name, said):
    (tmp_path / name).write_text("text,label\n")
    with pytest.raises(ConfigError, match=said):
        read_file(tmp_path / name)


def test_a_sheet_of_excel_is_read_and_what_is_no_table_refused(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["text", "label ", "n"], ["good", "pos", 1], ["007", None, 2.5], [None, None, None]):
        book.active.append(row)
    book.save(tmp_path / "rows.xlsx")
    assert read_file(tmp_path / "rows.xlsx") == {"text": ["good", "007"], "label": ["pos", None], "n": [1, 2.5]}
    book.create_sheet("more")
    book.save(tmp_path / "rows.xlsx")
    with pytest.raises(ConfigError, match=r"has 2 sheets, Sheet, more: save one as \.csv"):
        read_file(tmp_path / "rows.xlsx")
    (tmp_path / "no.xlsx").write_text("text,label\n")
    with pytest.raises(ConfigError, match="is no Excel file"):
        read_file(tmp_path / "no.xlsx")


def test_a_sheet_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"pip install 'autopeft\[excel\]', or save the sheet as \.csv"):
        read_file(tmp_path / "rows.xlsx")


def test_rows_to_be_predicted_are_read_as_the_training_rows_were(tmp_path):
    """An export holds how its data was written."""
    from pathlib import Path

    from autopeft.tasks._format import KEYS
    from autopeft.tasks.text_classification import TextClassification

    (tmp_path / "new.csv").write_bytes('text;other\n"café;1\nthé;2\n'.encode("cp1252"))
    data = {"text": "text", "separator": ";", "encoding": "cp1252", "quoting": "none"}
    assert set(KEYS) < set(data)
    rows = TextClassification().read_rows(Path(tmp_path / "new.csv"), data)
    assert list(rows["text"]) == ['"café', "thé"]
