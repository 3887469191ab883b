"""Sound files as samples: what every format holds, how it is resampled, and what is refused before it costs anything."""

from __future__ import annotations

import base64
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from handlers.errors import BadRequest, UnsoundArchive
from handlers.inputs.media.audio_file import AudioReader, Recording, recording_of

READER = AudioReader(16_000, 600.0)


def sound(seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """[samples, channels] float32: a rising tone, with noise of its own in each channel."""
    random = np.random.default_rng(0)
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)
    return (tone[:, None] + 0.05 * random.standard_normal((len(time), channels))).astype(np.float32)


def file_of(samples: np.ndarray, rate: int = 16_000, form: str = "WAV", subtype: str | None = None) -> bytes:
    """The samples as a file, written a second at a time: libvorbis overflows its stack on one large block."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, samples.shape[1], format=form, subtype=subtype) as file:
        for start in range(0, len(samples), rate):
            file.write(samples[start : start + rate])
    return buffer.getvalue()


def silence(seconds: int, form: str, subtype: str | None, rate: int = 16_000) -> bytes:
    return file_of(np.zeros((seconds * rate, 1), np.float32), rate, form, subtype)


def read(body: bytes, reader: AudioReader = READER) -> np.ndarray:
    return reader.read(Recording(body, "inputs"))


@pytest.mark.parametrize(
    ("form", "subtype", "furthest"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "FLOAT", 0),
        ("WAVEX", "PCM_16", 1e-4),
        ("WAV", "ULAW", 0.05),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", None),
        ("OGG", "OPUS", None),
        ("MP3", "MPEG_LAYER_III", None),
    ],
)
def test_every_format_gives_its_samples(form, subtype, furthest):
    samples = sound(2.5)
    found = read(file_of(samples, form=form, subtype=subtype))
    assert found.dtype == np.float32
    assert abs(len(found) - len(samples)) <= 1200  # mp3 fills its last frame
    if furthest is not None:
        assert np.abs(found - samples[:, 0]).max() <= furthest
    else:  # what is lossy keeps the tone
        assert np.corrcoef(found[: len(samples)], samples[: len(found), 0])[0, 1] > 0.95


def test_channels_are_averaged():
    samples = sound(channels=2)
    found = read(file_of(samples, subtype="FLOAT"))
    np.testing.assert_allclose(found, samples.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 192_000])
def test_resampling_in_blocks_is_soxrs_own(rate):
    samples = sound(3.3, rate)
    found = read(file_of(samples, rate, subtype="FLOAT"))
    expected = soxr.resample(samples[:, 0], rate, 16_000)
    assert abs(len(found) - len(expected)) <= 1
    shared_length = min(len(found), len(expected))
    np.testing.assert_allclose(found[:shared_length], expected[:shared_length], atol=1e-5)


def test_real_recordings(shared):
    files = sorted((shared / "data/librivox").glob("*.wav"))
    digits = sorted((shared / "data/spoken-digits").glob("*.wav"))[:20]
    assert files and digits
    for path in files:
        samples, rate = soundfile.read(path, dtype="float32")
        assert rate == 16_000
        np.testing.assert_array_equal(read(path.read_bytes()), samples)
        as_flac = file_of(samples[:, None], form="FLAC")
        np.testing.assert_allclose(read(as_flac), samples, atol=1e-4)
    for path in digits:
        samples, rate = soundfile.read(path, dtype="float32")
        assert rate == 8_000
        assert abs(len(read(path.read_bytes())) - 2 * len(samples)) <= 1


def test_a_recording_comes_as_bytes_or_in_base64():
    body = file_of(sound(0.1))
    text = base64.b64encode(body).decode()
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for value in (body, text, wrapped, f"data:audio/wav;base64,{text}"):
        assert recording_of(value, "inputs") == Recording(body, "inputs")
    assert Recording(body).to_text() == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", r"inputs\[1\] is a file of 0 bytes; a sound file .wav, flac, mp3 or ogg .* is expected"),
        ("", r"inputs\[1\] is a file of 0 bytes"),
        ("data:audio/wav;base64,", r"inputs\[1\] is a file of 0 bytes"),
        (7, r"inputs\[1\] is a number; a sound file .* is expected, as a text in base64"),
        ({"array": [0.0]}, r"inputs\[1\] is an object; a sound file .* is expected, as a text in base64"),
        ("no base64!", r"inputs\[1\] is a text that is not base64"),
        ("Ünicode", r"inputs\[1\] is a text that is not base64"),
        ("data:audio/wav,RIFF", r"inputs\[1\] is a data: URL without ';base64,'"),
        ("https://example.org/a.wav", r"inputs\[1\] is an address, and none is fetched"),
    ],
)
def test_what_is_no_recording_is_refused(value, message):
    with pytest.raises(BadRequest, match=message):
        recording_of(value, "inputs[1]")


def edited(body: bytes, place: int, value: int, size: int = 4) -> bytes:
    """The bytes with a little-endian number written into them."""
    return body[:place] + value.to_bytes(size, "little") + body[place + size :]


def flac_that_declares(samples: np.ndarray, frames: int) -> bytes:
    """A flac whose STREAMINFO block declares that many samples (36 bits, behind rate and channels)."""
    body = file_of(samples, form="FLAC")
    kept = int.from_bytes(body[18:26], "big") >> 36 << 36
    return body[:18] + (kept | frames).to_bytes(8, "big") + body[26:]


WAV = file_of(sound(2.0))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            b"plain text, no sound",
            r"inputs is no sound file that can be read: it begins with b'plain te'; allowed: wav",
        ),
        (b"\x1aE\xdf\xa3webm....", "inputs is no sound file that can be read"),
        (b"RIFF", "inputs is no sound file that can be read"),
        (b"\xff", "inputs is no sound file that can be read"),
        (WAV[:36], "inputs is a wav of 36 bytes without samples: it has no 'data' chunk"),
        (WAV[:44], "inputs is damaged or cut off: its header declares 64000 bytes of samples, 0 are there"),
        (file_of(np.zeros((0, 1), np.float32)), "inputs holds no samples"),
        (
            WAV[: len(WAV) // 2],
            "inputs is damaged or cut off: its header declares 64000 bytes of samples, 31978 are there",
        ),
        (edited(WAV, 40, 0x7FFFFFFF), "its header declares 2147483647 bytes of samples, 64000 are there"),
        (edited(WAV, 40, 0xFFFFFFFF), "its header declares 4294967295 bytes of samples, 64000 are there"),
        (edited(WAV, 40, 0), "inputs holds no samples"),
        (edited(WAV, 24, 1), "inputs has 1 samples a second; 1000 to 192000 are allowed"),
        (edited(WAV, 24, 4_000_000), "inputs has 4000000 samples a second; 1000 to 192000 are allowed"),
        (file_of(sound(0.1, channels=9)), "inputs has 9 channels; at most 8 are allowed"),
        (edited(WAV, 20, 0x1234, 2), "inputs cannot be read as a sound file: .*; allowed: wav"),
        (flac_that_declares(sound(2.0), 1 << 21), "its header declares 2097152 samples a channel, 32000 can be read"),
        (flac_that_declares(sound(2.0), (1 << 36) - 1), r"inputs holds 4294967\.3 seconds of sound; at most 600 are"),
        (file_of(sound(9.0), form="FLAC")[:50_000], "inputs cannot be read as a sound file"),
        (b"fLaC" + bytes(200), "inputs cannot be read as a sound file"),
        (b"OggS" + bytes(200), "inputs cannot be read as a sound file"),
        (b"ID3" + bytes(200), "inputs cannot be read as a sound file"),
        (
            file_of(np.full((100, 1), np.nan, np.float32), subtype="FLOAT"),
            "inputs has samples that are no finite numbers",
        ),
    ],
)
def test_bad_files_are_refused_with_their_numbers(body, message):
    with pytest.raises(BadRequest, match=message):
        read(body)


def test_a_file_that_was_written_into_a_pipe_is_read():
    """ffmpeg cannot go back in a pipe: a wav then declares 2³² − 1 bytes, a flac no length at all."""
    samples = sound(2.0)
    assert len(read(edited(edited(WAV, 4, 0xFFFFFFFF), 40, 0xFFFFFFFF))) == 32_000
    np.testing.assert_allclose(read(flac_that_declares(samples, 0)), samples[:, 0], atol=1e-4)


def test_an_undeclared_length_is_bounded_too():
    body = flac_that_declares(sound(30.0), 0)
    with pytest.raises(BadRequest, match="inputs holds more than 20 seconds of sound; at most 20 are allowed"):
        read(body, AudioReader(16_000, 20.0))
    with pytest.raises(BadRequest, match="inputs holds more than 7.5 seconds of sound; at most 7.5 are allowed"):
        READER.read(Recording(body, "inputs"), max_seconds=7.5)


@pytest.mark.parametrize(("form", "subtype", "rate"), [("FLAC", "PCM_16", 16_000), ("OGG", "VORBIS", 8_000)])
def test_hours_in_a_few_bytes_are_refused_before_they_are_decoded(form, subtype, rate):
    second = silence(1200, form, subtype, rate)  # 20 minutes: what counts is that they are above the bound
    assert len(second) < 200_000
    tracemalloc.start()
    with pytest.raises(BadRequest, match=r"inputs holds 1200\.0 seconds of sound; at most 600 are allowed"):
        read(second)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_an_archive_names_the_package_that_is_missing(tmp_path: Path):
    (tmp_path / "requirements.txt").write_text("numpy\nsoundfile>=99.0\nsoxr>=0.3\n")
    with pytest.raises(UnsoundArchive, match=r"this archive needs soundfile>=99\.0, this host has"):
        AudioReader.open(tmp_path, 16_000, 600.0)
    (tmp_path / "requirements.txt").write_text("soundfile>=0.12\nsoxr>=0.3\n")
    assert len(AudioReader.open(tmp_path, 8_000, 600.0).read(Recording(WAV))) == 16_000
