"""Files that are read and written by more than one wing."""

from pathlib import Path

import pytest

from sft_recipes.files import json_lines


def test_json_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "one\u2028line"}\r\n\n[2]\n3'.encode())
    assert json_lines(path) == [{"text": "one\u2028line"}, [2], 3]
    path.write_bytes(b"")
    assert json_lines(path) == []


def test_a_last_line_that_was_cut_off_is_left_out_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes('{"step": 1}\n{"step": 2, "text": "é'.encode()[:-1])
    assert json_lines(path, cut_off=True) == [{"step": 1}]
    with pytest.raises(ValueError):
        json_lines(path)
    path.write_text('{"step": 1\n{"step": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError):
        json_lines(path, cut_off=True)
