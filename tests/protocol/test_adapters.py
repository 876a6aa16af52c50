"""`--lora NAME=FOLDER`."""

import pytest

from protocol.adapters import MOST_ADAPTERS, adapter_folders, adapter_names
from protocol.errors import StartupError


def test_names_and_folders_in_the_order_given() -> None:
    given = ("sql=/adapters/sql", "org/poet=a=b")
    assert adapter_folders(given, ("base",)) == {"sql": "/adapters/sql", "org/poet": "a=b"}
    assert adapter_names(given) == ("sql", "org/poet")
    assert adapter_folders(()) == {}


@pytest.mark.parametrize("entry", ["sql", "sql=", "=folder", " sql=folder", "x" * 257 + "=folder"])
def test_what_is_no_name_and_folder(entry: str) -> None:
    with pytest.raises(StartupError, match="expected NAME=FOLDER"):
        adapter_folders((entry,))


def test_a_name_is_given_once_and_is_not_the_models() -> None:
    with pytest.raises(StartupError, match="--lora sql=b: 'sql' is a already"):
        adapter_folders(("sql=a", "sql=b"))
    with pytest.raises(StartupError, match="'base' is the name of the model itself"):
        adapter_folders(("base=a",), ("other", "base"))


def test_there_are_so_many_at_most() -> None:
    given = tuple(f"a{i}=folder" for i in range(MOST_ADAPTERS + 1))
    assert len(adapter_folders(given[1:])) == MOST_ADAPTERS
    with pytest.raises(StartupError, match=f"at most {MOST_ADAPTERS}"):
        adapter_folders(given)
