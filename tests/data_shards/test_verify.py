"""Damage of every sort is found and named."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
import shard_inputs as audio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.build import build_corpus
from data_shards.corpus import Corpus
from data_shards.errors import CorpusError
from data_shards.options import BuildOptions
from data_shards.reader import Reader
from data_shards.verify import Damage, verify_corpus


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Two shards of two samples."""
    source = audio.folder_of(tmp_path / "in", count=4, seconds=0.4)
    options = BuildOptions("fg", rate_hz=audio.RATE_HZ, shard_mb=0.02, workers=1)
    return build_corpus("fg", [source], tmp_path / "out", options).folder


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def flip(path: Path, offset: int) -> None:
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 1]))


def members_of(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return tar.getmembers()


def places(found: list[Damage]) -> list[tuple[str, str | None, int | None]]:
    return [(damage.shard, damage.member, damage.offset) for damage in found]


def test_a_whole_corpus_has_no_damage_and_every_byte_is_counted(corpus):
    seen = []
    assert verify_corpus(corpus, lambda *progress: seen.append(progress)) == []
    total = sum(path.stat().st_size for path in corpus.glob("*.tar"))
    assert seen[-1] == ("verifying", total, total)


def test_a_flipped_byte_of_audio_names_shard_member_and_place(corpus):
    shard = corpus / "fg-000001.tar"
    member = members_of(shard)[1]
    flip(shard, member.offset_data + 1000)
    found = verify_corpus(corpus)
    assert places(found) == [("fg-000001.tar", "00000003.wav", member.offset_data)]
    assert f"bytes {member.offset_data} to {member.offset_data + member.size - 1}" in found[0].problem


@pytest.mark.parametrize("part", ["header", "padding", "end"])
def test_a_flipped_byte_outside_the_audio_is_named_to_the_byte(corpus, part):
    shard = corpus / "fg-000000.tar"
    member = members_of(shard)[1]
    offset = {
        "header": member.offset + 124,
        "padding": member.offset_data + member.size + 3,
        "end": shard.stat().st_size - 9,
    }[part]
    flip(shard, offset)
    assert places(verify_corpus(corpus)) == [
        ("fg-000000.tar", None if part == "end" else member.name, offset)
    ]


def test_a_zeroed_page_names_every_member_it_touches(corpus):
    shard = corpus / "fg-000000.tar"
    first, second = members_of(shard)
    overwrite(shard, second.offset - 2048, bytes(4096))
    found = places(verify_corpus(corpus))
    assert ("fg-000000.tar", first.name, first.offset_data) in found
    assert ("fg-000000.tar", second.name, second.offset) in found
    assert ("fg-000000.tar", second.name, second.offset_data) in found
    assert len(found) == 3


def test_a_cut_shard_says_where_it_ends(corpus):
    shard = corpus / "fg-000001.tar"
    member = members_of(shard)[1]
    cut_at = member.offset_data + 100
    os.truncate(shard, cut_at)
    found = verify_corpus(corpus)
    assert places(found) == [("fg-000001.tar", member.name, cut_at)]


def test_appended_bytes_are_damage(corpus):
    shard = corpus / "fg-000000.tar"
    size = shard.stat().st_size
    overwrite(shard, size, b"more")
    assert places(verify_corpus(corpus)) == [("fg-000000.tar", None, size)]


def test_a_missing_shard_and_a_missing_sidecar_are_named(corpus):
    (corpus / "fg-000000.tar").unlink()
    (corpus / "fg-000001.tar.json").unlink()
    found = verify_corpus(corpus)
    assert [damage.shard for damage in found] == ["fg-000000.tar", "fg-000001.tar.json"]
    assert all("is missing" in damage.problem for damage in found)


def test_without_its_sidecar_a_shard_is_still_checked_as_a_whole(corpus):
    (corpus / "fg-000001.tar.json").unlink()
    flip(corpus / "fg-000001.tar", 5000)
    assert [damage.shard for damage in verify_corpus(corpus)] == ["fg-000001.tar.json", "fg-000001.tar"]


def test_the_sidecar_of_another_file_is_named(corpus):
    other = (corpus / "fg-000000.tar.json").read_bytes()
    (corpus / "fg-000001.tar.json").write_bytes(other)
    found = verify_corpus(corpus)
    assert [damage.shard for damage in found] == ["fg-000001.tar.json"]
    assert "of another file: fg-000000.tar" in found[0].problem


def test_a_shard_that_is_not_listed_is_named(corpus):
    (corpus / "fg-000007.tar").write_bytes(b"")
    assert places(verify_corpus(corpus)) == [("fg-000007.tar", None, None)]


def test_a_folder_that_is_no_corpus_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="does not exist"):
        verify_corpus(tmp_path / "nowhere")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_any_byte_of_any_file_goes_unseen(corpus, data):
    path = data.draw(st.sampled_from([*sorted(corpus.glob("fg-*")), corpus / "dataset.json"]))
    before = path.read_bytes()
    offset = data.draw(st.integers(0, len(before) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(before[:offset])
    else:
        overwrite(path, offset, bytes([before[offset] ^ data.draw(st.integers(1, 255))]))
    try:
        try:
            found = verify_corpus(corpus)
        except CorpusError:
            # The whole corpus cannot be read when dataset.json is broken.
            assert path.name == "dataset.json"
        else:
            harmless = path.name == "dataset.json"
            assert harmless or {damage.shard for damage in found} == {path.name}
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
@pytest.mark.parametrize("name", ["../outside", "/etc/outside"])
def test_links_devices_and_names_in_a_tar_lead_nowhere(corpus, kind, name):
    """Nothing is ever unpacked: the sidecar says where audio lies, and a member of another name or kind is damage."""
    path = corpus / "fg-000000.tar"
    member = members_of(path)[0]
    evil = tarfile.TarInfo(name)
    evil.type, evil.linkname, evil.size = kind, "/etc/passwd", member.size
    before = Reader(Corpus.open(corpus, "fg")).whole(0)
    overwrite(path, member.offset, evil.tobuf(tarfile.USTAR_FORMAT))
    assert (Reader(Corpus.open(corpus, "fg")).whole(0) == before).all()
    assert verify_corpus(corpus)[0].member == member.name
