"""The HTML report: complete, escaped, loads nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from autopeft.history import History
from autopeft.reports import html, leaderboard
from tests.reports import histories as h
from tests.reports.test_figure import CASES

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"
LOADS = {"src", "srcset", "poster", "data", "action", "formaction", "background", "cite", "manifest", "ping"}


class Page(HTMLParser):
    """Tags with attributes, and text, as a browser would see them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.sources: dict[str, list[str]] = {"script": [], "style": []}
        self._in = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag if tag in self.sources else ""

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in:
            self.sources[self._in].append(data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def assert_loads_nothing(source: str) -> None:
    page = Page(source)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "img", "audio", "video", "base", "use", "image"), tag
        assert not LOADS & set(attributes), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "style" not in attributes
        if "href" in attributes:
            assert tag == "a"
    styles = " ".join(page.sources["style"])
    assert "url(" not in styles
    assert "@import" not in styles
    script = " ".join(page.sources["script"])
    for word in ("fetch(", "XMLHttpRequest", "WebSocket", "sendBeacon", "import(", "eval(", "innerHTML", "http"):
        assert word not in script


@pytest.mark.parametrize("name", CASES)
def test_every_history_has_a_report(name):
    source = html.render(History(CASES[name]), h.describe, name=name)
    assert_loads_nothing(source)
    assert name in Page(source).text


def test_a_full_report_has_every_section():
    events = h.confirmed(h.search(60))
    events.insert(
        40, {"event": "resume", "seconds": 700.0, "config": h.header()["config"], "changes": ["budget: 40 → 60"]}
    )
    source = html.render(History(events), h.describe, name="sst2-1")
    page = Page(source)
    sections = [attributes["id"] for attributes in page.of("section")]
    assert sections == [
        "front",
        "baselines",
        "curves",
        "importance",
        "trials",
        "failures",
        "refusals",
        "resumes",
        "provenance",
    ]
    for words in (
        "Hypervolume over trials",
        "Learning curves: accuracy",
        "validation, one seed",
        "mean ± 95 % CI",
        "the training loss is nan at step 33",
        "OutOfMemoryError",
        "over the budget of 100,000",
        "budget: 40 → 60",
        "abc1234",
        "majority class",
        "frozen head",
        "full fine-tuning",
        "random forest",
        "Limits:",
        "drop",
        "12 min",
    ):
        assert words in page.text, words
    rows = re.findall(r'<tr[^>]*data-status="(\w+)"[^>]*>', source)
    assert len(rows) >= 60


def test_the_front_alone_begins_with_the_verdict_and_the_figure():
    """As MLflow's frame shows it: small, so that what is not the front would hide it."""
    history = History(h.search(12))
    source = html.front(history, h.describe, name="sst2-1")
    assert_loads_nothing(source)
    page = Page(source)
    assert len(page.of("section")) == 0
    assert source.index('class="verdict"') < source.index("<figure>") < source.index("<table")
    assert len(page.of("button")) > 1, "methods can be switched off"
    assert all(f"trial {record.number}" in page.text for record in history.front())
    assert html.front(History(h.search(12)[:1]), h.describe).count("There is no front yet.") == 1


def test_hostile_names_stay_text():
    events = [
        h.header(
            id=EVIL,
            model={"name": EVIL, "n_layers": 2, "parameters": 10_000},
            provenance={EVIL: EVIL},
            config={"task": EVIL, "note": EVIL},
        ),
        h.ask(0, {"method": EVIL, "x.modules": [EVIL]}, 500),
        h.report(0, 1, train_loss=1.0),
        h.tell(0, {"accuracy": 0.5, "trainable_parameters": 500}),
        h.ask(1, {"method": "lora"}),
        h.tell(1, {}, "FAILED", EVIL),
        h.refuse(2, {"method": "lora"}, EVIL),
    ]
    history = History(events)
    source = html.render(history, lambda params: EVIL + params["method"], name=EVIL)
    assert_loads_nothing(source)
    page = Page(source)
    assert len(page.of("script")) == 1
    assert "alert(1)" not in " ".join(page.sources["script"])
    assert "{{ 7*7 }}" in page.text  # shown as it is: no template was made of it
    assert_loads_nothing(html.fragment(history, lambda params: EVIL))
    assert_loads_nothing(html.front(history, lambda params: EVIL, name=EVIL))
    assert_loads_nothing(leaderboard.render([leaderboard.Entry(EVIL, history, lambda params: EVIL)], "html"))


def test_only_its_own_script_may_run():
    source = html.render(History(h.search(12)), h.describe)
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for a in Page(source).of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_light_and_dark_and_a_phone():
    source = html.render(History(h.search(12)), h.describe)
    assert "@media (prefers-color-scheme:dark)" in source
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in source
    assert "@media(max-width:640px)" in source


def test_front_rows_are_where_the_figure_points():
    history = History(h.search(40))
    source = html.render(history, h.describe)
    for record in history.front():
        assert f'id="front-{record.number}"' in source
        assert f'data-trial="{record.number}"' in source


def test_a_large_search_stays_a_small_page():
    assert len(html.render(History(h.search(600)), h.describe)) < 1_500_000


def test_the_same_history_gives_the_same_page(tmp_path):
    history = History(h.search(30))
    first = html.write(history, tmp_path / "a.html", h.describe, name="x").read_bytes()
    assert first == html.write(history, tmp_path / "b.html", h.describe, name="x").read_bytes()


def test_a_notebook_shows_picture_and_table():
    source = html.fragment(History(h.search(12)), h.describe)
    page = Page(source)
    assert page.of("svg")
    assert page.of("table")
    assert not page.of("script")
