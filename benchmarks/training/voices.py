"""A voice as another one, and a recording as if made elsewhere: what a few speakers' recordings are varied by."""

import numpy as np

RATE = 16_000
WINDOW, HOP = 512, 128  # samples
SPEECH = 4000 / 8000  # share of the spectrum below 4 kHz, where formants are moved


def another_voice(samples: np.ndarray, speed: float, formants: np.ndarray) -> np.ndarray:
    """A phase vocoder that says the same faster or slower, with all frequencies moved by a smooth curve.

    Args:
        samples: [n] float32. speed: 2 takes half the time. formants: [k] which frequency is heard at one, as its share, at
            k places from 0 Hz to the end of SPEECH; beyond as at the last.
    Returns: [about n / speed] float32, as loud.
    """
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    padded = np.pad(samples, (WINDOW // 2, WINDOW))
    frames = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * window, axis=1)
    places = np.arange(0, len(frames) - 1, speed)
    before = np.minimum(places.astype(int), len(frames) - 2)
    part = (places - before)[:, None]
    loud = (1 - part) * np.abs(frames[before]) + part * np.abs(frames[before + 1])
    bins = np.arange(WINDOW // 2 + 1)
    expected = 2 * np.pi * HOP * bins / WINDOW
    turn = np.angle(frames[before + 1] * np.conj(frames[before])) - expected
    turn += expected - 2 * np.pi * np.round(turn / (2 * np.pi))
    source = np.clip(
        bins * np.interp(bins, np.linspace(0, SPEECH * len(bins), len(formants)), formants), 0, len(bins) - 2
    )
    lower = source.astype(int)
    share = source - lower
    loud = loud[:, lower] * (1 - share) + loud[:, lower + 1] * share
    turn = (turn[:, lower] * (1 - share) + turn[:, lower + 1] * share) * bins / np.maximum(source, 1e-3)
    start = np.angle(frames[before[:1]])
    phase = np.concatenate([start, start + np.cumsum(turn[:-1], axis=0)])
    pieces = np.fft.irfft(loud * np.exp(1j * phase), WINDOW, axis=1) * window
    found = np.zeros(HOP * (len(pieces) - 1) + WINDOW)
    for place, piece in enumerate(pieces):
        found[place * HOP : place * HOP + WINDOW] += piece
    return (found[WINDOW // 2 :] / 1.5).astype(np.float32)  # 1.5: the sum of four squared windows


def other_consonants(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """What is softer than the vowels softer still, or less so, and cut off at both ends where some threshold cuts it off.

    Speakers differ by 20 dB in how loud an s is beside a vowel, and recordings are cut by loudness: some lose theirs.
    The envelope e ≤ 1, over 10 ms, becomes e^(1 + k), k from −0.25 to 0.75; every other time ends below −60 to −20 dB go.
    """
    size = RATE // 100
    parts = -(-len(samples) // size)
    power = (np.pad(samples, (0, parts * size - len(samples))) ** 2).reshape(parts, size).mean(axis=1)
    envelope = np.sqrt(power / power.max() + 1e-7)
    gain = envelope ** random.uniform(-0.25, 0.75)
    found = samples * np.interp(np.arange(len(samples)), (np.arange(parts) + 0.5) * size, gain)
    if random.random() < 0.5:
        loud = np.flatnonzero(envelope * gain > 10 ** (random.uniform(-60, -20) / 20))
        if len(loud):
            found = found[loud[0] * size : (loud[-1] + 1) * size]
    result: np.ndarray = found.astype(np.float32)
    return result


def in_a_room(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Another microphone and another noise: a random smooth filter of ± 5 dB, and noise 15 to 60 dB below the voice.

    Every other time some band of a fifth to an octave is 15 dB softer, so that no sound is told by one band alone.
    """
    size = -(-len(samples) // 2048) * 2048  # a length that is quick to transform
    spectrum = np.fft.rfft(samples, size)
    knots = random.uniform(-5, 5, 8) / 20
    spectrum *= 10 ** np.interp(np.linspace(0, 7, len(spectrum)), np.arange(8), knots)
    if random.random() < 0.5:
        first = len(spectrum) * random.uniform(0.02, 0.4)
        spectrum[int(first) : int(first * random.uniform(1.2, 2.0))] *= 0.18
    noise = random.standard_normal((2, len(spectrum))) * np.linspace(1e-3, 1, len(spectrum)) ** -random.uniform(0, 0.5)
    # Not by numpy's norm: BLAS starts threads for it, and takes ten times as long beside torch's.
    louder = np.sqrt((np.abs(spectrum) ** 2).sum() / (noise**2).sum()) * 10 ** (-random.uniform(15, 60) / 20)
    heard = np.fft.irfft(spectrum + louder * (noise[0] + 1j * noise[1]), size)
    return heard[: len(samples)].astype(np.float32)
