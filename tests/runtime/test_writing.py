import os
import stat

import pytest

from tapeprop.runtime.writing import whole_file, write_text


def test_text_and_bytes(tmp_path):
    with whole_file(tmp_path / "text") as file:
        file.write("é\n")
        assert not (tmp_path / "text").exists()
    with whole_file(str(tmp_path / "bytes"), binary=True) as file:
        file.write(b"\xff\r\n")
    assert (tmp_path / "text").read_bytes() == "é\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\xff\r\n"
    assert sorted(os.listdir(tmp_path)) == ["bytes", "text"]


def half_written(path, error):
    with whole_file(path) as file:
        file.write("half of ")
        raise error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError("no number")])
def test_an_exception_leaves_what_was_there(error, tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(type(error)):
        half_written(path, error)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_the_mode_of_a_new_file_and_a_link(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "file") as file:
            file.write("one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    (tmp_path / "link").symlink_to("file")
    with whole_file(tmp_path / "link") as file:
        file.write("two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "two"


@pytest.mark.parametrize("place", ["absent/file", "file/below", "folder"])
def test_places_that_cannot_be_written(place, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    path = tmp_path / place
    with pytest.raises(OSError, match=place) as caught, whole_file(path) as file:
        file.write("text")
    assert caught.value.filename == str(path)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_no_device_becomes_a_file():
    with whole_file(os.devnull) as file:
        file.write("gone")
    assert not os.path.isfile(os.devnull)


def test_text_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    assert write_text(path, ["one ", "two"]) == path
    assert path.read_text() == "one two"

    def parts():
        yield "half"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_text(path, parts())
    assert path.read_text() == "one two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    for bad in (tmp_path / "none" / "a.txt", tmp_path):
        with pytest.raises(OSError, match=str(bad)):
            write_text(bad, ["x"])


def test_what_is_to_last_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "a", []
    monkeypatch.setattr("os.fsync", lambda number: synced.append(path.exists()))
    with whole_file(path, binary=True, durable=True) as file:
        file.write(b"x")
    assert synced == [False]
    with whole_file(path, binary=True) as file:
        file.write(b"y")
    assert (synced, path.read_bytes()) == ([False], b"y")
