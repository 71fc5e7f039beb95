"""Rows "path traversal by names" and "HTML/CSV injection in reports": names of data are data, wherever they are written.

One search has them all: as labels, as columns, as texts, as the name of a folder. Then its reports are read as a browser, a
spreadsheet and a Markdown viewer read them.
"""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser

import pytest

from autopeft import app, config, yaml_file
from autopeft.errors import AutoPEFTError, ConfigError
from autopeft.guess.tasks import Guess
from autopeft.guess.text import written
from tests.security.stranger import call, snapshot, write_rows, write_search

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
LINK = "[x](javascript:alert(1)) ![y](http://evil.example/z)"
LABELS = ("../../evil", EVIL, "=cmd|' /C calc'!A0", LINK, "@SUM(A1)", "-1+1")
RUN = f"runs/{EVIL.replace('/', '')}"
FOLDER = "job '$(touch mark)`touch mark` <b>"  # MLflow takes no quotation marks of both kinds: it writes SQL with them
TEXT, LABEL = "../evil", "=label"


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder in which a search ran: its config, its data, its runs."""
    outside = tmp_path_factory.mktemp("names")
    folder = outside / "a" / FOLDER
    folder.mkdir(parents=True)
    write_rows(folder / "rows.csv", TEXT, LABEL, LABELS, tail=f" {EVIL} {LINK}")
    data = {"train": "rows.csv", "text": TEXT, "label": LABEL, "validation_share": 0.3, "test_share": 0.2}
    write_search(folder, data=data, trackers=["console", "mlflow"])
    before = snapshot(outside)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for words in (
            ("search", "my.yaml", "--name", RUN.removeprefix("runs/")),
            ("track", RUN),
            ("export", RUN, "--to", "out"),
            *(("leaderboard", RUN, "--output", f"board.{ending}") for ending in ("csv", "html", "md")),
            ("predict", "out", "rows.csv", "--output", "answers.csv"),
        ):
            code, said = call(*words, cwd=folder)
            assert code == 0, said
    return outside, folder, before


def test_names_of_data_are_no_paths(searched):
    """All that was written lies where it should, under names of autopeft's own."""
    outside, folder, before = searched
    after = snapshot(outside)
    assert before.items() <= after.items(), "nothing that was there has changed"
    place = str(folder.relative_to(outside))
    new = [path.removeprefix(f"{place}/") for path in after.keys() - before.keys()]
    assert {path.split("/")[0] for path in new} == {"runs", "out", "board.csv", "board.html", "board.md", "answers.csv"}
    inside = [path.split("/", 2)[2] for path in new if path.startswith("runs/<")]
    assert inside
    assert not [path for path in inside if not re.fullmatch(r"[\w./-]+", path)]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "..", ".", "a/b", "a\\..\\b", ""])
def test_a_run_s_name_is_one_folder_s(tmp_path, name):
    write_rows(tmp_path / "rows.csv")
    path = write_search(tmp_path)
    with pytest.raises((ConfigError, AutoPEFTError)):
        app.search(config.load(path, [f"name={name}"] if name else ["name=''"]))
    if "\\" not in name and name:
        with pytest.raises(AutoPEFTError, match="one folder's name"):
            app.new_folder(config.load(path), name)


def test_a_class_folder_is_a_label_and_no_path(tmp_path):
    """Names of folders and files of pictures: what they hold is read, and labels are their last part."""
    from PIL import Image

    from autopeft.tasks.image_classification import ImageClassification

    for label in ("e..vil", "<b>", "=1"):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"$(touch mark) {index}.png")
    found = ImageClassification().read({"train": str(tmp_path / "pictures"), "validation_share": 0.3}, 0)
    assert set(found.about["label_names"]) == {"e..vil", "<b>", "=1"}


@pytest.mark.parametrize(
    "name", ["!!python/object/apply:os.system [x]", "a\nmetrics: {b: c}", "x # y", "\u2028seed: 9", EVIL, "'\"\\"]
)
def test_a_guessed_config_has_names_of_data_as_texts(tmp_path, name):
    """`autopeft init` writes columns and labels into YAML, and its reasons into comments."""
    guesses = (
        Guess("data.text", name, f"a column\nseed: 9\u2028seed: 9 {name}"),
        Guess("data.label_names", [name, "b"], ""),
    )
    path = tmp_path / "my.yaml"
    path.write_text(written(guesses, tmp_path), encoding="utf-8")
    assert yaml_file.read(path, "my.yaml").content == {"data": {"text": name, "label_names": [name, "b"]}}


class Page(HTMLParser):
    """What a browser would run or fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts, self.unsafe, self.is_script = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.is_script = tag == "script"
        if self.is_script:
            self.scripts.append("")
        names = [name for name, _ in attributes if name.startswith("on")]
        links = [
            v
            for k, v in attributes
            if k in ("href", "src", "action", "xlink:href") and v and not v.startswith(("#", "data:image/"))
        ]
        if names or links or tag in ("img", "iframe", "object", "embed", "base"):
            self.unsafe.append((tag, attributes))

    def handle_endtag(self, tag):
        self.is_script = False

    def handle_data(self, data):
        if self.is_script:
            self.scripts[-1] += data


def reports(folder, ending):
    return [path for path in folder.rglob(f"*{ending}") if "model" not in path.parts]


def test_no_name_runs_in_html(searched):
    _, folder, _ = searched
    found = reports(folder, ".html")
    assert {path.name for path in found} >= {"report.html", "pareto.html", "board.html"}
    for path in found:
        text = path.read_text(encoding="utf-8")
        page = Page(text)
        assert not page.unsafe, path
        assert len(page.scripts) <= 1
        assert not any("alert" in script for script in page.scripts), path
        assert "default-src 'none'" in text, "and nothing could be fetched"
    assert "alert(1)" in (next((folder / "runs").glob("<*")) / "report.html").read_text(), "the labels are shown"


def test_no_name_is_markup_in_markdown(searched):
    """Out of code, nothing is a tag, a link or a picture of a name's own."""
    _, folder, _ = searched
    found = reports(folder, ".md")
    assert {path.name for path in found} >= {"report.md", "board.md", "README.md"}
    for path in found:
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
        assert not re.search(r"(?<!\\)<(script|img|/script)", text), path
        links = re.findall(r"(?<!\\)\]\(([^)]*)\)", text)
        assert not [link for link in links if not link.startswith(("#", "front.png", "https://huggingface.co/"))], path


def test_no_cell_is_a_formula(searched):
    _, folder, _ = searched
    found = [path for path in reports(folder, ".csv") if path.name not in ("rows.csv", "answers.csv")]
    assert {path.name for path in found} >= {"front.csv", "pareto.csv", "board.csv"}
    for path in found:
        for row in csv.reader(path.open(encoding="utf-8", newline="")):
            for cell in row:
                assert not cell.startswith(("=", "+", "@", "\t", "\r")), path
                assert not cell.startswith("-") or float(cell) < 0, path


def test_answers_are_data_and_not_changed(searched):
    """`predict` writes labels as they are, for programs: SECURITY.md says so."""
    _, folder, _ = searched
    with open(folder / "answers.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert {f"p({label})" for label in LABELS} == set(header) - {"label"}
    assert {row[header.index("label")] for row in rows} <= set(LABELS)
