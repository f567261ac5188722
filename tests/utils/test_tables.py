"""Tables in Markdown that hostile names do not break, checked by the Markdown reader that TensorBoard uses."""

from html.parser import HTMLParser

import markdown
import pytest

from utils.tables import markdown_cell, markdown_table, readable_cell

HOSTILE = ["<script>alert(1)</script>", "a'b\"c&amp;", "|a\\|b", "雪 Ёлка", "$x_1^$ `b`\n*c* __d__", "[a](http://b)"]


class Reader(HTMLParser):
    """The tags of a page, and the text of each cell."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data.strip("\n")


def test_a_table_has_its_keys_as_header_and_a_line_for_each_row():
    rows = [{"size": 235, "top-1 %": "78.826"}, {"top-1 %": None, "size": 236}]
    assert markdown_table(rows) == "| size | top-1 % |\n|---|---|\n| 235 | 78.826 |\n| 236 | None |"


def test_a_row_without_a_key_of_the_header_is_an_error():
    with pytest.raises(KeyError, match="b"):
        markdown_table([{"a": 1, "b": 2}, {"a": 3}])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_rendered_table_shows_a_name_as_it_is(name):
    page = Reader(markdown.markdown(markdown_table([{"class": markdown_cell(name), "n": 1}]), extensions=["tables"]))
    assert page.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert [cell.replace("\n", "") for cell in page.cells] == ["class", "n", name.replace("\n", ""), "1"]


def test_plain_names_stay_readable():
    assert markdown_cell("Ankle boot-2.png") == readable_cell("Ankle boot-2.png") == "Ankle boot-2.png"
    assert markdown_cell("<b>|") == "&#60;b&#62;&#124;"
    assert readable_cell("mfm_bce <b>") == "mfm_bce <b>"


def test_a_readable_cell_has_no_bar_and_no_line_break():
    assert readable_cell(" a|b\r\n  c ") == "a\\|b c"
