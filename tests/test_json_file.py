"""Files of JSON that somebody else wrote."""

import os

import pytest

from mla_numba.base.json_file import parse_object, read_object


def test_an_object():
    assert parse_object('{"a": [1, 2.5, null]}', "here") == {"a": [1, 2.5, None]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a JSON object, got list"),
        ("null", "expected a JSON object, got NoneType"),
        ('{"a": NaN}', "the number NaN"),
        ('{"a": -Infinity}', "the number -Infinity"),
        ('{"a": ' + "9" * 5000 + "}", "expected JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "expected JSON"),
    ],
)
def test_what_is_refused(text, said):
    with pytest.raises(ValueError, match=f"^here: .*{said}"):
        parse_object(text, "here")


def test_read_object(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_object(path) == {"a": 1}
    with pytest.raises(ValueError, match=r"a\.json: expected at most 4 bytes of JSON, got more"):
        read_object(path, 4)
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "b.json")
    with pytest.raises(ValueError, match="expected a regular file"):
        read_object(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="expected a regular file"):  # opening it would wait for ever
        read_object(tmp_path / "fifo")
