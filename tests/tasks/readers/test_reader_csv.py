"""Tables: their columns and options, one column for each class, and what no table is."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
from support.reader_samples import labels, names, pictures, problems, read, rows

from mtpeft.api import DataError, UsageError
from mtpeft.data.reader import open_reader

IMAGES = ("a.png", "b.png", "c.png")


def table(root: Path, text: str, name: str = "labels.csv", *images: str) -> str:
    pictures(root, *(images or IMAGES))
    (root / name).write_text(text, encoding="utf-8")
    return f"csv:{root / name}"


def test_a_column_of_splits(tmp_path):
    text = "label,split,path,width\ncat,Train,a.png,12\ncat,validation,b.png,12\ncat,test,c.png,12\n"
    data = table(tmp_path, text)
    assert [names(read(data, split)) for split in ("train", "val", "test")] == [["a.png"], ["b.png"], ["c.png"]]
    assert rows(f"csv:{tmp_path}") == rows(data)
    for split, hint in (("tset", 'did you mean "test"'), ("", "There is: test")):
        with pytest.raises(DataError, match=rf'labels.csv", line 2: split "{split}" is no split') as caught:
            read(table(tmp_path, f"path,label,split\na.png,cat,{split}\n"))
        assert hint in caught.value.hint


def test_options_name_the_columns(tmp_path):
    text = "id;breed;part\na;large dog, brown;train\nb;cat;train\n"
    data = table(tmp_path, text, "labels.txt", "pets/a.png", "pets/b.png")
    found = read(data + "?path=id&label=breed&split=part&suffix=.png&images=pets&delimiter=;")
    assert names(found) == ["a.png", "b.png"] and labels(found) == ["large dog, brown", "cat"]
    with pytest.raises(UsageError, match='delimiter: ";;" is not one character'):
        read(data + "?delimiter=;;")


@pytest.mark.parametrize("folder", ["", "images/", "Images/", "JPEGImages/"])
def test_images_are_found_below_their_folder(tmp_path, folder):
    data = table(tmp_path, "path\tlabel\na.png\tcat\n", "labels.tsv", f"{folder}a.png")
    assert names(read(data)) == ["a.png"]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("file,label\na.png,cat\n", 'labels.csv" has no column "path"', "?path=COLUMN"),
        ("paht,label\na.png,cat\n", 'no column "path"', 'did you mean "paht"'),
        ("path,lable\na.png,cat\n", 'no column "label"', 'did you mean "lable"'),
        ("path\na.png\n", 'no column "label"', "There is: path"),
        ("path,label,label\na.png,cat,cat\n", '2 columns named "label"', "of its own"),
        ("", "has no header", "path,label"),
        ("\n\n", "has no header", "path,label"),
        ("path,label\n", "has no rows", "path,label"),
        ("path,label\na.png,cat,dog\n", "line 2: it has 3 cells, and the header 2", "quotes"),
        ("path,label\n\n\na.png\n", "line 4: it has 1 cells, and the header 2", "quotes"),
        ("path,label\n,cat\n", "line 2 names no file", "relative"),
        ("path,label\na.png,\n", 'line 2: "a.png" has no label', "give it one"),
        ('path,label\n"a.png,cat\n', "cannot be read: unexpected end of data", "repair"),
        ("path,label\na.png," + "c" * 200_000, "cannot be read: field larger than", "repair"),
    ],
)
def test_a_table_that_is_refused(tmp_path, text, message, hint):
    with pytest.raises(DataError, match=message) as caught:
        read(table(tmp_path, text))
    assert "labels.csv" in caught.value.message and hint in caught.value.hint


def test_columns_that_are_asked_for_must_be_there(tmp_path):
    data = table(tmp_path, "path,label,part\na.png,cat,train\n")
    for option, column in (("label", "lable"), ("split", "fold"), ("path", "file")):
        with pytest.raises(DataError, match=f'has no column "{column}"') as caught:
            read(f"{data}?{option}={column}")
        assert f"?{option}=COLUMN" in caught.value.hint


def test_bad_rows_are_collected(tmp_path):
    text = "path,label\na.png,cat\nb.png\nx.png,cat\nc.png,nan\nb.png,dog\n"
    found, said = problems(table(tmp_path, text))
    assert sorted(names(found)) == ["a.png", "b.png"]
    assert [line in error.message for line, error in zip(("line 3", "line 4", "line 5"), said, strict=True)] == [
        True
    ] * 3


def test_other_encodings(tmp_path):
    data = table(tmp_path, "")
    (tmp_path / "labels.csv").write_bytes("path,label\na.png,größer\n".encode("utf-16"))
    with pytest.raises(DataError, match=r'labels.csv" is not UTF-8'):
        read(data)


def test_a_column_for_each_class(tmp_path):
    text = "path,dog,cat,emu,split\na.png,1,0,1,train\nb.png,0,1.0,False,val\nc.png,0,TRUE,0,test\nd.png,0,0,0,test\n"
    data = table(tmp_path, text, "labels.csv", *IMAGES, "d.png")
    assert read(data, gives="labels").classes == ("dog", "cat", "emu")
    expected = [("a.png", ["dog", "emu"]), ("b.png", ["cat"]), ("c.png", ["cat"]), ("d.png", [])]
    assert rows(data, gives="labels") == expected
    with pytest.raises(DataError, match=r'labels.csv", line 2: "a.png" has 2 labels \(dog, emu\)'):
        read(data)


def test_some_columns_are_classes(tmp_path):
    text = "path,width,dog,cat\na.png,12,1,0\nb.png,12,0,1\nc.png,12,0,maybe\n"
    data = table(tmp_path, text)
    with pytest.raises(DataError, match='no column "label"'):
        read(data, gives="labels")
    with pytest.raises(DataError, match=r'line 4: cat "maybe" is neither 0 nor 1') as caught:
        read(f"{data}?classes=dog,cat", gives="labels")
    assert "?classes=" in caught.value.hint
    found, said = problems(f"{data}?classes=dog,cat", gives="labels")
    assert len(said) == 1 and found.classes == ("dog", "cat")
    with pytest.raises(UsageError, match='no class "cta"') as wrong:
        read(f"{data}?classes=dog,cta", gives="labels")
    assert "dog" in wrong.value.hint


def test_folders_without_a_table(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read(f"csv:{tmp_path / 'none.csv'}")
    for names_ in ([], ["one.csv", "two.csv"]):
        for name in names_:
            table(tmp_path, "path,label\na.png,cat\n", name)
        with pytest.raises(DataError, match="has no table, or several") as caught:
            read(f"csv:{tmp_path}")
        assert "train.csv" in caught.value.hint


def test_what_is_recognised(tmp_path):
    reader, _ = open_reader(f"csv:{tmp_path}")
    assert not reader.recognises(tmp_path) and not reader.recognises(tmp_path / "none")
    table(tmp_path, "path,label\na.png,cat\n")
    assert reader.recognises(tmp_path) and reader.recognises(tmp_path / "labels.csv")
    assert not reader.recognises(tmp_path / "a.png")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    data = table(tmp_path, "PAR1", "labels.parquet")
    there = builtins.__import__

    def absent(name, *arguments, **keywords):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return there(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(DataError, match=r'labels.parquet" cannot be read without pyarrow') as caught:
        read(data)
    assert caught.value.hint == "pip install pyarrow"


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "labels.parquet"
    columns = {"path": list(IMAGES), "label": [1.0, 10.0, 2.0], "split": ["train", "val", "test"]}
    parquet.write_table(pyarrow.table(columns), file)
    data = f"csv:{pictures(tmp_path, *IMAGES)}"
    assert read(data).classes == ("1", "2", "10") and rows(data)[0] == ("a.png", "1")
    parquet.write_table(pyarrow.table(columns | {"label": [["a", "b"], ["b"], ["a"]]}), file)
    assert rows(data, gives="labels") == [("a.png", ["a", "b"]), ("b.png", ["b"]), ("c.png", ["a"])]
    for value, message in ((float("nan"), 'row 2: label "nan" is no class'), (None, 'row 2: "b.png" has no label')):
        parquet.write_table(pyarrow.table(columns | {"label": [1.0, value, 2.0]}), file)
        with pytest.raises(DataError, match=message):
            read(data)
    file.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r'labels.parquet" cannot be read'):
        read(data)
