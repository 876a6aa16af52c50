"""The API's page and its tables."""

from pathlib import Path

import pytest

from scripts import api_page
from scripts.api_page import ACCEPTED, ENDPOINTS, HONOURED, PAGE, REFUSED, render, rows


def test_the_page_is_as_the_types_say() -> None:
    page = PAGE.read_text()
    assert render(page) == page, "run python -m scripts.api_page"
    for path in ("endpoints", *ENDPOINTS):
        assert f"<!-- made: {path} -->" in page


def test_a_field_is_in_one_row_only() -> None:
    for endpoint in ENDPOINTS.values():
        names = [row.field for row in rows(endpoint)]
        assert len(set(names)) == len(names)


def test_rows_say_what_the_types_and_lists_say() -> None:
    found = {row.field: row for row in rows(ENDPOINTS["/v1/chat/completions"])}
    n, stop, suffix = found["n"], found["stream_options.include_usage"], found["logits_processors"]
    assert (n.values, n.treatment) == ("integer 1 … 16", HONOURED)
    assert (stop.treatment, stop.note) == (
        HONOURED,
        "One more event before the end, with the usage and no choices.",
    )
    assert (suffix.values, suffix.treatment) == ("only `null`, `[]`", REFUSED)
    assert found["user"].treatment == ACCEPTED
    assert found["messages[].content[].text"].treatment == HONOURED


def test_an_unknown_table_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        render("<!-- made: /v2/nothing -->\n<!-- end -->")


def test_the_command_writes_and_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "api.md"
    page.write_text("<!-- made: /detokenize -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(api_page, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["api_page", "--check"])
    assert api_page.main() == 1
    assert "run python -m scripts.api_page" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["api_page"])
    assert api_page.main() == 0
    assert "`tokens`" in page.read_text()
    monkeypatch.setattr("sys.argv", ["api_page", "--check"])
    assert api_page.main() == 0
