import pytest

from thorad.errors import ThoradError
from thorad.records import format_indices, parse_indices


@pytest.mark.parametrize(
    ("text", "indices"), [("95", [95]), ("90-92", [90, 91, 92]), (" 90 - 91 ", [90, 91]), ("0", [0]), ("7-7", [7])]
)
def test_slice_indices_are_parsed(text: str, indices: list[int]) -> None:
    assert parse_indices(text) == indices


@pytest.mark.parametrize("text", ["", "-", "-5", "90-", "92-90", "90-100-110", "1, 2", "1.5", "99999", "all", "1; rm"])
def test_what_names_no_slices_is_refused(text: str) -> None:
    with pytest.raises(ThoradError, match="expected a slice index or a range of them"):
        parse_indices(text)


def test_indices_are_formatted_as_their_first_and_last() -> None:
    assert [format_indices(indices) for indices in ([], [95], [90, 91, 92])] == ["none", "95", "90 to 92"]
