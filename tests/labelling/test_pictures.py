"""What can be named: files, lists as text and Parquet, shards with and without classes, tables of `datasets`."""

import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.labelling.small import BAD, classifier, label, rows, write_pictures
from transept.data.images import read_image
from transept.errors import TranseptError, UsageError
from transept.labelling.inputs import Inputs
from transept.labelling.pictures import Pictures, find_pictures


def pixels(pictures: Pictures, number: int) -> np.ndarray:
    return np.asarray(read_image(pictures.source(number), name=pictures.path(number)))


def write_shard(path: Path, files: list[Path], *, classes: bool = False) -> None:
    with tarfile.open(path, "w") as tar:
        for number, file in enumerate(files):
            tar.add(file, file.name)
            if classes:
                member = tarfile.TarInfo(f"{file.stem}.cls")
                member.size = 1
                tar.addfile(member, BytesIO(str(number % 3).encode()))


def test_files_folders_patterns_and_lists(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    paths = write_pictures(tmp_path / "in", 9)
    (tmp_path / "list.txt").write_text("in/003.png\nin/001.png\n")
    parquet.write_table(pyarrow.table({"id": [1, 2], "path": ["in/004.png", "in/003.png"]}), tmp_path / "list.parquet")
    words = [f"@{tmp_path / 'list.txt'}", f"@{tmp_path / 'list.parquet'}", str(tmp_path / "in" / "00[25].png")]
    pictures = find_pictures(words)
    assert [pictures.path(i) for i in range(len(pictures))] == [paths[i] for i in (3, 1, 4, 2, 5)]
    assert np.array_equal(pixels(pictures, 2), np.asarray(Image.open(paths[4])))
    assert pictures.digest() == find_pictures(words).digest()
    assert pictures.digest() != find_pictures(words[1:] + words[:1]).digest()


def test_lists_in_parquet_that_name_nothing(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    file = tmp_path / "list.parquet"
    for table, said in (
        ({"file": ["a.png"]}, "has the columns file; give it a column 'path' of paths"),
        ({"path": pyarrow.array([None], pyarrow.string())}, "has the column 'path' without paths"),
    ):
        parquet.write_table(pyarrow.table(table), file)
        with pytest.raises(TranseptError, match=said):
            find_pictures([f"@{file}"])
    file.write_bytes(b"PAR1 of another kind")
    with pytest.raises(TranseptError, match="is no Parquet file that can be read"):
        find_pictures([f"@{file}"])
    with pytest.raises(TranseptError, match="is no Parquet file that can be read"):
        find_pictures([f"@{tmp_path / 'none.parquet'}"])


@pytest.mark.parametrize("classes", [False, True])
def test_webdataset_shards(tmp_path: Path, classes: bool):
    pytest.importorskip("webdataset")
    paths = write_pictures(tmp_path / "in", 9)
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "train-000.tar", paths[:6], classes=classes)
    write_shard(tmp_path / "shards" / "train-001.tar", paths[6:], classes=classes)
    for word in (f"wds:{tmp_path / 'shards'}", f"wds:{tmp_path / 'shards'}/train-{{000..001}}.tar"):
        pictures = find_pictures([word, str(tmp_path / "in" / "002.png")])
        assert len(pictures) == 10
        assert pictures.path(1) == tmp_path / "shards" / "train-000.tar" / "001.png"
        assert np.array_equal(pixels(pictures, 8), np.asarray(Image.open(paths[8])))
        assert pictures.path(9) == paths[2]
    with tarfile.open(tmp_path / "none.tar", "w") as tar:
        tar.add(Path(__file__), "test.txt")
    with pytest.raises(TranseptError, match="has no samples; a sample is a picture$"):
        find_pictures([f"wds:{tmp_path / 'none.tar'}"])


def test_tables_of_datasets(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    paths = write_pictures(tmp_path / "in", 9)
    bytes_of: list[dict[str, Any]] = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    parts = {
        name: datasets.Dataset.from_dict({"image": some, "caption": ["-"] * len(some)}, features=features)
        for name, some in (("train", bytes_of[:6]), ("test", bytes_of[6:]))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    pictures = find_pictures([str(tmp_path / "set")])
    assert len(pictures) == 9
    assert pictures.path(8).name == "test[2]"
    assert np.array_equal(pixels(pictures, 8), np.asarray(Image.open(paths[8])))
    task = classifier()
    label(task, tmp_path / "set", tmp_path / "out", task.inference(), workers=1)
    assert [row["error"] is None for row in rows(tmp_path / "out")] == [number != BAD for number in range(9)]


def test_a_picture_on_standard_input_is_no_job(monkeypatch: pytest.MonkeyPatch):
    class Stdin:
        buffer = BytesIO(b"picture")

    monkeypatch.setattr("sys.stdin", Stdin)
    with pytest.raises(UsageError, match="has no name to go on with; save it, and give its file"):
        find_pictures(["-"])


def test_one_warning_of_pictures_that_look_black(tmp_path: Path):
    for i in range(3):
        Image.fromarray(np.full((20, 20), 900, np.uint16)).save(tmp_path / f"{i}.png")
    task = classifier()
    inputs = Inputs(find_pictures([str(tmp_path)]), task.reading, task.input_of())
    with pytest.warns(UserWarning, match="has 16 bits and uses less than an eighth of them") as said:
        assert [len(chunk.numbers) for chunk in inputs.chunks([range(2), range(2, 3)], 2, workers=0)] == [2, 1]
    assert len(said) == 1
