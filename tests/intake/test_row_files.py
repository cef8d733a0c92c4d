"""Records of files that other programs wrote, whatever their separators, encodings and envelopes."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.intake.row_files import FileFormat, RecordSet, get_by_path, read_records, scan_records
from tests.support.sheets import write_sheets


def scan(folder: Path, name: str, content: str | bytes, **file_format: str) -> RecordSet:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return scan_records(path, FileFormat(**file_format))


def values(found: RecordSet) -> list[Any]:
    assert found.problems == []
    return [record.value for record in found.records]


ROWS = [{"text": "Grüße, wo ist es?", "area": "shop; web"}, {"text": "zwei\nZeilen", "area": "x"}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_separator_of_a_csv_file_is_detected(tmp_path: Path, delimiter: str, end: str) -> None:
    lines = [["text", "area"], *([f'"{value}"' for value in row.values()] for row in ROWS)]
    found = scan(tmp_path, "a.csv", "".join(delimiter.join(line) + end for line in lines))
    assert values(found) == ROWS
    assert [record.line for record in found.records] == [2, 3]
    assert [delimiter != ","] * len(found.remarks) == [True] * len(found.remarks)
    assert len(found.remarks) == (delimiter != ",")


def test_texts_with_other_separators_do_not_mislead(tmp_path: Path) -> None:
    rows = "question;x,kind\nWhere; is it; now?,a\nAnd; this?,b\nhm,c\n"
    assert list(values(scan(tmp_path, "a.csv", rows))[0]) == ["question;x", "kind"]
    rows = "text;price\nabout a lamp, red, large, new;0,5\ncheap, isn't it;1,5\n"
    assert values(scan(tmp_path, "b.csv", rows))[0] == {"text": "about a lamp, red, large, new", "price": "0,5"}
    assert values(scan(tmp_path, "c.csv", "text\none column; no more\n")) == [{"text": "one column; no more"}]
    assert values(scan(tmp_path, "d.csv", "text;area\na|b|c;x\n")) == [{"text": "a|b|c", "area": "x"}]


def test_a_separator_can_be_declared(tmp_path: Path) -> None:
    assert values(scan(tmp_path, "a.csv", "sep=;\r\na;b\r\n1,2;3\r\n")) == [{"a": "1,2", "b": "3"}]
    found = scan(tmp_path, "b.csv", "a:b\n1,2:3\n", delimiter=":")
    assert values(found) == [{"a": "1,2", "b": "3"}]
    assert found.remarks == []
    assert values(scan(tmp_path, "c.tsv", 'a\tb\n"1\t2"\t3,4\n')) == [{"a": "1\t2", "b": "3,4"}]
    with pytest.raises(DistillError, match="cannot separate columns"):
        scan(tmp_path, "d.csv", "a,b\n", delimiter=";;")
    with pytest.raises(DistillError, match="is for CSV files"):
        scan(tmp_path, "d.jsonl", "{}\n", delimiter=";")


@pytest.mark.parametrize(
    "content",
    [
        "text;area;;\nhello;x;;\n;;;\n\n",
        "\n;;\ntext;area\nhello;x;;;\n",
        '"text";" area "\r\nhello;x\r\n',
        "text;area\rhello;x\r",
    ],
)
def test_what_spreadsheets_leave_behind_is_left_out(tmp_path: Path, content: str) -> None:
    assert values(scan(tmp_path, "a.csv", content)) == [{"text": "hello", "area": "x"}]


def test_a_column_without_a_name_has_one_and_a_quote_may_be_escaped(tmp_path: Path) -> None:
    assert values(scan(tmp_path, "a.csv", ",text\n0,hello\n")) == [{"column 1": "0", "text": "hello"}]
    assert values(scan(tmp_path, "b.csv", 'a,b\n"say \\"hi\\", now",x\n')) == [{"a": 'say "hi", now', "b": "x"}]
    assert values(scan(tmp_path, "c.csv", 'a,b\n"C:\\",x\n')) == [{"a": "C:\\", "b": "x"}]


def test_a_long_cell_is_a_cell(tmp_path: Path) -> None:
    long = "word " * 100_000
    assert values(scan(tmp_path, "a.csv", f'id,text\n1,"{long}"\n2,short\n'))[0]["text"] == long


def test_broken_lines_of_a_csv_file_are_named_and_the_others_read(tmp_path: Path) -> None:
    found = scan(tmp_path, "a.csv", 'a;b\n"x"y;2\n1;2;3\n4;5\n')
    assert [record.value for record in found.records] == [{"a": "4", "b": "5"}]
    assert [(problem.line, problem.message) for problem in found.problems] == [
        (2, "malformed CSV: ';' expected after '\"'."),
        (3, "3 cells, while the first line names 2 columns."),
    ]
    assert "separated by semicolons: quote" in found.problems[1].remedy
    assert "--delimiter" in found.problems[1].remedy


ENCODED = "text;area\nGrüße – wo ist mein Päckchen? 5 €;shop\n"


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (ENCODED.encode(), None),
        (codecs.BOM_UTF8 + ENCODED.encode(), None),
        (ENCODED.encode("utf-16"), None),
        (codecs.BOM_UTF16_BE + ENCODED.encode("utf-16-be"), None),
        (ENCODED.encode("utf-32"), None),
        (ENCODED.encode("utf-16-le"), None),
        (ENCODED.encode("cp1252"), "cp1252"),
    ],
)
def test_the_encoding_of_a_csv_file_is_detected(tmp_path: Path, content: bytes, encoding: str | None) -> None:
    found = scan(tmp_path, "a.csv", content)
    assert values(found) == [{"text": "Grüße – wo ist mein Päckchen? 5 €", "area": "shop"}]
    guesses = [remark for remark in found.remarks if "--encoding" in remark]
    assert len(guesses) == (encoding is not None)
    assert all(str(encoding) in guess for guess in guesses), "what is a guess is said"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("текст;метка\nГде моя посылка? Верните деньги, пожалуйста;доставка\n", "cp1251"),
        ("本文;ラベル\n荷物はどこですか。返金をお願いします。;配送\n", "shift_jis"),
        ("文本;标签\n我的包裹在哪里,请退款,谢谢;物流\n", "gb18030"),
    ],
)
def test_other_encodings_of_spreadsheets(tmp_path: Path, text: str, encoding: str) -> None:
    first = text.partition("\n")[0].split(";")[0]
    assert first in values(scan(tmp_path, "a.csv", text.encode(encoding)))[0]
    assert first in values(scan(tmp_path, "b.csv", text.encode(encoding), encoding=encoding))[0]
    with pytest.raises(DistillError, match="unknown encoding 'x-y'"):
        scan(tmp_path, "c.csv", text, encoding="x-y")


def test_a_broken_utf8_file_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.csv:3: invalid UTF-8 at byte 28"):
        scan(tmp_path, "a.csv", "text\nGrüße, schöne Tage\nx".encode() + b"\xff\n")
    with pytest.raises(InputError, match="--encoding"):
        scan(tmp_path, "a.jsonl", b'{"text": "caf\xe9"}\n')
    assert values(scan(tmp_path, "b.jsonl", b'{"text": "caf\xe9"}\n', encoding="latin-1")) == [{"text": "café"}]
    assert values(scan(tmp_path, "c.jsonl", '{"text": "é"}\n'.encode("utf-16"))) == [{"text": "é"}]


def test_sheets(tmp_path: Path) -> None:
    path = write_sheets(
        tmp_path / "a.xlsx",
        {"Cover": [], "Data": [["", ""], ["text", "stars", ""], ["Grüße", 5, ""], ["", "", ""], ["ok <b>", 0.5, ""]]},
    )
    found = scan_records(path)
    assert [(r.line, r.value) for r in found.records] == [
        (3, {"text": "Grüße", "stars": "5"}),
        (5, {"text": "ok <b>", "stars": "0.5"}),
    ]
    assert any("'Data'" in remark and "--sheet" in remark for remark in found.remarks)
    assert scan_records(path, FileFormat(sheet="Data")).remarks == []
    with pytest.raises(DistillError, match=r"has no sheet 'Other'\. It has: Cover, Data"):
        scan_records(path, FileFormat(sheet="Other"))
    with pytest.raises(InputError, match="contains no record"):
        scan_records(path, FileFormat(sheet="Cover"))
    (tmp_path / "b.xlsx").write_bytes(b"PK no")
    with pytest.raises(InputError, match="not a readable file of sheets"):
        scan_records(tmp_path / "b.xlsx")


JSON_SHAPES = {
    "list.json": '[{"a": 1}, {"a": 2}]',
    "export.json": '{"object": "list", "data": [{"a": 1}, {"a": 2}], "has_more": false}',
    "page.json": '{"data": [{"a": 1}, {"a": 2}], "meta": {"page": 1}}',
    "rows.json": '{"features": [], "rows": [{"row_idx": 0, "row": {"a": 1}}, {"row_idx": 1, "row": {"a": 2}}]}',
    "lines.json": '{"a": 1}\n{"a": 2}\n',
    "list.jsonl": '[\n{"a": 1},\n{"a": 2}\n]\n',
    "pretty.jsonl": '[\n  {\n    "a": 1\n  },\n  {\n    "a": 2\n  }\n]\n',
    "pages.jsonl": '{"object": "list", "data": [{"a": 1}]}\n{"object": "list", "data": [{"a": 2}]}\n',
    "lines.ndjson": '\ufeff{"a": 1}\r\n\r\n{"a": 2}',
}


@pytest.mark.parametrize("name", JSON_SHAPES)
def test_the_records_of_a_json_file_in_any_envelope(tmp_path: Path, name: str) -> None:
    assert values(scan(tmp_path, name, JSON_SHAPES[name])) == [{"a": 1}, {"a": 2}]


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_a_chat_is_one_record_and_people_with_roles_are_several(tmp_path: Path) -> None:
    assert values(scan(tmp_path, "a.json", json.dumps(CHAT))) == [CHAT]
    assert values(scan(tmp_path, "b.jsonl", json.dumps(CHAT) + "\n")) == [CHAT]
    shared = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert values(scan(tmp_path, "c.json", json.dumps(shared))) == [shared]
    people = [{"role": "manager", "text": "q"}, {"role": "user", "text": "r"}]
    assert values(scan(tmp_path, "d.json", json.dumps(people))) == people
    jobs = [{"role": "clerk", "content": "q"}, {"role": "system engineer", "content": "r"}]
    assert values(scan(tmp_path, "e.json", json.dumps(jobs))) == jobs
    users = [{"role": "user", "content": "late", "id": 1}, {"role": "user", "content": "lost", "id": 2}]
    assert values(scan(tmp_path, "g.json", json.dumps(users))) == users
    labelled = [{"role": "user", "content": "late", "label": "x"}]
    assert values(scan(tmp_path, "h.json", json.dumps(labelled))) == labelled
    record = {"data": [{"a": 1}], "text": "a record with a list"}
    assert values(scan(tmp_path, "f.json", json.dumps(record))) == [record]
    record = {"name": "Ann", "data": [{"a": 1}]}
    assert values(scan(tmp_path, "i.jsonl", json.dumps(record) + "\n")) == [record], "a line is a record"


def test_records_without_a_line_are_named_by_number_and_id(tmp_path: Path) -> None:
    rows: list[Any] = [{"id": 7}, {"text": "no id"}, {"custom_id": "c-3"}, {"id": {"no": "id"}}, "text"]
    found = scan(tmp_path, "a.json", json.dumps(rows))
    names = [str(record.make_problem("it is odd.", "Fix it.", "x")) for record in found.records]
    starts = ["record 1 (id 7)", "record 2", "record 3 (id c-3)", "record 4", "record 5"]
    assert names == [f"{tmp_path / 'a.json'} [x]: {start}: it is odd. Fix it." for start in starts]


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    rows = [{"text": f"before{sign}after"} for sign in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"]
    plain = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert values(scan(tmp_path, "a.jsonl", plain)) == rows
    table = "text,n\n" + "".join(f"{row['text']},1\n" for row in rows)
    found = scan(tmp_path, "a.csv", table)
    assert [row["text"] for row in values(found)] == [row["text"] for row in rows]
    assert [record.line for record in found.records] == list(range(2, 10))


def test_a_duplicate_key_is_a_problem_at_any_depth(tmp_path: Path) -> None:
    found = scan(tmp_path, "a.jsonl", '{"a": 1, "a": 2}\n{"b": [{"c": 1, "c": 1}]}\n{"d": 1}\n')
    assert [(p.line, p.message) for p in found.problems] == [(1, "duplicate field 'a'."), (2, "duplicate field 'c'.")]
    with pytest.raises(InputError, match="duplicate field 'a'"):
        scan(tmp_path, "b.json", '[{"a": 1, "a": 1}]')


def test_class_numbers_of_hugging_face_have_names_in_parquet(tmp_path: Path) -> None:
    features = {"label": {"names": ["billing", "login"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}
    frame = pl.DataFrame({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    frame.write_parquet(tmp_path / "a.parquet", metadata={"huggingface": json.dumps({"info": {"features": features}})})
    assert [record.value["label"] for record in read_records(tmp_path / "a.parquet")] == ["login", "billing", -1]


def test_leftovers_of_other_programs_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("a.jsonl", "deep/b.json", "deep/._b.json", ".c.jsonl", "deep/.ipynb_checkpoints/b.json", "d.jsonl~"):
        (tmp_path / name).write_text(json.dumps({"name": name}))
    assert [record.value["name"] for record in read_records(tmp_path)] == ["a.jsonl", "deep/b.json"]


def test_a_path_leads_into_json_in_a_text() -> None:
    record = {"request": '{"messages": [{"content": "q"}]}', "a.b": "whole", "text": "plain", "odd": "{no"}
    assert get_by_path(record, "request.messages.-1.content") == "q"
    assert get_by_path(record, "/request/messages/0/content") == "q"
    assert get_by_path(record, "a.b") == "whole"
    assert get_by_path(record, "text.0") is None
    assert get_by_path(record, "odd.x") is None
