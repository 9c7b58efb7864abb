"""The bytes of tars, WAV headers and sidecars, against tarfile, wave and hostile JSON."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
import wave
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import wavfile

from data_shards.dataset import DatasetInfo, parse_dataset, shard_info, write_dataset
from data_shards.errors import CorpusError, DataError
from data_shards.format import TarWriter, member_name, parse_wav_header, wav_header
from data_shards.shard import encode, levels
from data_shards.sidecar import (
    MemberEntry,
    Reject,
    SampleEntry,
    Sidecar,
    columns_of,
    parse_sidecar,
    sidecar_bytes,
)


def wave_module_bytes(samples: np.ndarray, rate_hz: int, channels: int = 1) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes(samples.tobytes())
    return stream.getvalue()


@given(st.lists(st.integers(-32768, 32767), max_size=50), st.integers(4000, 192_000))
def test_a_wav_member_is_what_the_wave_module_writes(values, rate_hz):
    samples = np.array(values, np.int16)
    assert encode(samples, rate_hz, "wav") == wave_module_bytes(samples, rate_hz)


@given(st.integers(0, 2**30), st.integers(1, 10**6))
def test_a_wav_header_says_its_frames_and_rate(frames, rate_hz):
    assert parse_wav_header(wav_header(frames, rate_hz)) == (frames, rate_hz)


def test_other_wav_headers_are_refused():
    stereo = wave_module_bytes(np.zeros(8, np.int16), 44_100, channels=2)
    for header in (stereo, b"", wav_header(4, 44_100)[:43], bytes(44)):
        with pytest.raises(ValueError, match="header"):
            parse_wav_header(header)


def test_flac_holds_the_same_samples():
    import soundfile as sf

    samples = np.random.default_rng(1).integers(-32768, 32767, 5000).astype(np.int16)
    decoded, rate_hz = sf.read(io.BytesIO(encode(samples, 22_050, "flac")), dtype="int16")
    np.testing.assert_array_equal(decoded, samples)
    assert rate_hz == 22_050


@pytest.mark.parametrize("sizes", [[], [1], [512, 0, 513, 100_000]])
def test_a_tar_is_read_by_tarfile_with_data_at_the_offsets_given(sizes):
    stream = io.BytesIO()
    writer = TarWriter(stream)
    contents = [bytes([at + 1]) * size for at, size in enumerate(sizes)]
    offsets = [writer.add(member_name(at, "wav"), data) for at, data in enumerate(contents)]
    sha256 = writer.finish()
    data = stream.getvalue()
    assert hashlib.sha256(data).hexdigest() == sha256
    assert len(data) % 10_240 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [f"{at:08d}.wav" for at in range(len(sizes))]
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} <= {(946_684_800, 0, 0, 0o644)}
    for offset, content in zip(offsets, contents, strict=True):
        assert data[offset : offset + len(content)] == content


def test_what_is_rolled_back_leaves_no_trace():
    plain, undone = io.BytesIO(), io.BytesIO()
    writer = TarWriter(plain)
    writer.add("00000000.wav", b"kept")
    expected = writer.finish()
    writer = TarWriter(undone)
    writer.add("00000000.wav", b"kept")
    mark = writer.mark()
    writer.add("00000001.wav", b"taken back" * 1000)
    writer.rollback(mark)
    assert writer.finish() == expected
    assert undone.getvalue() == plain.getvalue()


def test_levels_of_a_sine_are_its_amplitude_and_that_over_root_two():
    sine = np.rint(16_384 * np.sin(2 * np.pi * np.arange(8000) / 80)).astype(np.int16)
    peak, rms = levels(sine)
    assert peak == 0.5
    assert rms == pytest.approx(0.5 / np.sqrt(2), rel=1e-4)


def test_damage_survives_pickling_with_all_its_places():
    error = DataError("short read", shard="fg-000001.tar", member="00000007.wav", offset=512).at(
        draw=9, rank=1
    )
    restored = pickle.loads(pickle.dumps(error))
    assert str(restored) == str(error)
    assert str(error) == "shard fg-000001.tar, member 00000007.wav, byte 512, draw 9, rank 1: short read"
    assert (restored.shard, restored.member, restored.offset) == ("fg-000001.tar", "00000007.wav", 512)
    assert (restored.draw, restored.rank) == (9, 1)


def example_sidecar() -> Sidecar:
    samples = []
    for number in range(3):
        member = MemberEntry(offset=512 + 1024 * number, size=64, crc32=number, peak=0.5, rms=0.25)
        samples.append(
            SampleEntry(number * 2, f"ä/{number}.wav", f"ä/{number}", 0, 10, 44_100, 2, {"wav": member})
        )
    return Sidecar(
        kind="fg",
        rate_hz=44_100,
        codec="wav",
        tar="fg-000000.tar",
        size=10_240,
        sha256="a" * 64,
        options_hash="b" * 64,
        inputs_hash="c" * 64,
        num_files=4,
        clipped=1,
        rejects=(Reject("x.wav", "silent"), Reject("y.wav", "silent", "0.00-1.00 s")),
        **columns_of(samples, ("wav",)),
    )


def test_a_sidecar_is_read_back_as_written():
    sidecar = example_sidecar()
    assert parse_sidecar(sidecar_bytes(sidecar), "here") == sidecar
    assert sidecar.sample(2).members["wav"].offset == 2560


def changed(**values: Any) -> bytes:
    return json.dumps({**json.loads(sidecar_bytes(example_sidecar())), **values}).encode()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"version": 2}, "version 2"),
        ({"tar": "../fg-000000.tar"}, "without a folder"),
        ({"tar": "/fg-000000.tar"}, "without a folder"),
        ({"tar": ".."}, "without a folder"),
        ({"kind": "voice"}, "`fg` or `bg` or `rir` or `pair`"),
        ({"rate_hz": True}, "needed an integer"),
        ({"frames": [10, 10, 2.0]}, "something else than integers"),
        ({"frames": [10, 10, True]}, "something else than integers"),
        ({"frames": [10, 10]}, "needed 3"),
        ({"frames": [10, 10, 11]}, "64 bytes for 11 frames"),
        ({"key": [0, 2, 2]}, "do not rise"),
        ({"bytes": 512}, "its members need"),
        ({"sha256": "A" * 64}, "64 hexadecimal digits"),
        ({"colour": 1}, "unknown key `colour`"),
        ({"clipped": -1}, "needed an integer from 0"),
        ({"source": [1, 2, 3]}, "something else than strings"),
        ({"rejects": [3]}, "not an object"),
    ],
)
def test_a_wrong_value_in_a_sidecar_is_named(values, text):
    with pytest.raises(CorpusError, match=text) as caught:
        parse_sidecar(changed(**values), "fg-000000.tar.json")
    assert str(caught.value).startswith("fg-000000.tar.json")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b"9" * 10_000,
        b"null",
        b"{}",
        b"[]",
    ],
)
def test_text_that_is_no_sidecar_is_a_corpus_error(data):
    with pytest.raises(CorpusError):
        parse_sidecar(data, "here")
    with pytest.raises(CorpusError):
        parse_dataset(data, "here")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_any_json_in_the_place_of_any_value_gives_a_corpus_error_or_a_sidecar(data):
    tree = json.loads(sidecar_bytes(example_sidecar()))
    node: Any = tree
    while True:
        key = data.draw(
            st.sampled_from(sorted(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1)
        )
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = data.draw(json_values)
        break
    accepted_or_refused(json.dumps(tree).encode())


@given(st.data())
def test_changed_bytes_give_a_corpus_error_or_a_sidecar(data):
    text = bytearray(sidecar_bytes(example_sidecar()))
    start = data.draw(st.integers(0, len(text)))
    text[start : start + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    accepted_or_refused(bytes(text))


def accepted_or_refused(text: bytes) -> None:
    try:
        sidecar = parse_sidecar(text, "here")
    except CorpusError:
        return
    assert len(sidecar) == len(sidecar.frames) == len(sidecar.members["wav"].offset)


def example_dataset() -> DatasetInfo:
    sidecar = example_sidecar()
    shards = (shard_info(sidecar, sidecar_bytes(sidecar)),)
    return DatasetInfo("fg", 44_100, "wav", "b" * 64, "c" * 64, 4, 1, 1, shards)


def test_a_dataset_is_read_back_as_written(tmp_path):
    write_dataset(tmp_path, example_dataset())
    assert parse_dataset((tmp_path / "dataset.json").read_bytes(), "here") == example_dataset()
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('"num_samples":3', '"num_samples":4', "sum over its shards"),
        ('"rate_hz": 44100', '"rate_hz": 48000', "fingerprint"),
        ('"fg-000000.tar"', '"../secret.tar"', "without a folder"),
        ('"version": 1', '"version": 9', "version 9"),
    ],
)
def test_a_changed_dataset_is_refused(tmp_path, old, new, text):
    write_dataset(tmp_path, example_dataset())
    data = (tmp_path / "dataset.json").read_text()
    assert old in data
    with pytest.raises(CorpusError, match=text):
        parse_dataset(data.replace(old, new).encode(), "dataset.json")


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=50), st.integers(4000, 192_000))
def test_a_float_member_is_what_scipy_and_libsndfile_read(values, rate_hz):
    samples = np.array(values, np.float32)
    data = encode(samples, rate_hz, "wav32f")
    found_hz, found = wavfile.read(io.BytesIO(data))
    assert found_hz == rate_hz and found.dtype == np.float32
    np.testing.assert_array_equal(found, samples)
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(data), dtype="float32")[0], samples)
    assert parse_wav_header(data[:44], "wav32f") == (len(samples), rate_hz)
    with pytest.raises(ValueError, match="PCM16"):
        parse_wav_header(data[:44])


def test_levels_of_float_samples_may_pass_full_scale():
    assert levels(np.array([3, -4, 0, 0], np.float32)) == (4.0, 2.5)
