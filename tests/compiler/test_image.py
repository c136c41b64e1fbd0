"""The image as a file: whole records only, whatever was cut off; another file in its place is noticed."""

import pytest

from numaemu.compiler.image import COMPLETE, Compiled, Image

F, G = Compiled(b"code of f", "f", ("word",), (1, "two")), Compiled(b"g" * 10_000, "g", (), ())


@pytest.fixture
def image(tmp_path):
    made = Image(tmp_path / "test.image")
    made.mend()
    return made


def test_a_reader_follows_who_appends(image):
    reader = Image(image.path)
    assert reader.read() == [] and not reader.grown()
    image.append("m.f", F)
    assert reader.grown() and reader.read() == ["m.f"] and not reader.grown()
    image.append("m.g", G)
    image.append(COMPLETE, None)
    assert reader.read() == ["m.g", COMPLETE]
    assert reader.functions == image.functions and reader.functions["m.g"] == G and reader.complete


def test_there_may_be_no_file_yet(tmp_path):
    image = Image(tmp_path / "none.image")
    assert image.read() == [] and not image.grown() and not image.complete


@pytest.mark.parametrize("missing", [1, 500, 10_000])
def test_the_rest_of_a_record_is_waited_for(image, missing):
    image.append("m.f", F)
    image.append("m.g", G)
    whole = image.path.read_bytes()
    image.path.write_bytes(whole[:-missing])
    reader = Image(image.path)
    assert reader.read() == ["m.f"] and reader.read() == []
    with open(image.path, "ab") as file:
        file.write(whole[-missing:])
    assert reader.read() == ["m.g"] and reader.functions["m.g"] == G


def test_a_record_that_was_cut_off_is_written_anew(image):
    image.append("m.f", F)
    with open(image.path, "ab") as file:
        file.write(b"\x10\x27")
    again = Image(image.path)
    again.mend()
    again.append("m.g", G)
    reader = Image(image.path)
    assert reader.read() == ["m.f", "m.g"] and reader.functions == {"m.f": F, "m.g": G}


def test_another_file_of_that_name_is_read_from_its_beginning(image):
    reader = Image(image.path)
    image.append("m.f", F)
    reader.read()
    image.path.unlink()
    assert not reader.grown() and reader.read() == []
    other = Image(image.path)
    other.mend()
    other.append("m.g", G)
    assert reader.grown() and reader.read() == ["m.g"]


def test_nothing_is_kept_twice(image):
    image.append("m.f", F)
    with pytest.raises(AssertionError, match=r"m\.f is compiled twice"):
        image.append("m.f", F)
