"""Sounds: decoded by soundfile, mixed to one channel, resampled; and the log-mel patches that YAMNet reads."""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, EnvironmentFault, Fault

SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".mp3")
UNREAD = (".m4a", ".aac", ".wma", ".opus", ".amr", ".aiff", ".aif", ".au", ".caf", ".mp4", ".webm")

# YAMNet's input (github.com/tensorflow/models, research/audioset/yamnet/params.py), in samples of its rate, and frames.
RATE, WINDOW, HOP, FFT = 16_000, 400, 160, 512
BANDS, LOWEST_HERTZ, HIGHEST_HERTZ, OFFSET = 64, 125.0, 7_500.0, 1e-3
PATCH, PATCH_HOP = 96, 48


def read_sound(value: Any, rate: int | None = None, seconds: float | None = None) -> np.ndarray:
    """Decodes a sound to one channel: (n_samples,) fp32 in [-1, 1].

    Args:
        value: A path, the bytes of a file, a row of `datasets.Audio`, or {"array": samples, "sampling_rate": rate}.
        rate: Samples a second of the result; None for the sound's own.
        seconds: Longest result; what follows is not read. None for the whole sound.

    Raises:
        ConfigError: The sound cannot be decoded, or is empty.
    """
    wave, own = _samples(value, seconds)
    if not len(wave):
        raise _fault(value, "is empty")
    if not np.isfinite(wave).all():
        raise _fault(value, "has samples that are no finite number")
    return wave if rate in (None, own) else resample(wave, own, rate)


def resample(wave: np.ndarray, own: int, rate: int) -> np.ndarray:
    """Resamples from `own` to `rate` samples a second, by scipy's polyphase filter."""
    from scipy.signal import resample_poly

    ratio = Fraction(rate, own)
    found: np.ndarray = resample_poly(wave, ratio.numerator, ratio.denominator).astype(np.float32)
    return found


def seconds_of(value: Any) -> float:
    """Returns the length of a sound from its header; 0 if there is none, as a reader will say."""
    if isinstance(value, Mapping) and value.get("array") is not None:
        return len(value["array"]) / float(value["sampling_rate"])
    sound = soundfile()
    try:
        with sound.SoundFile(_file(value)) as file:
            return float(file.frames / file.samplerate)
    except (sound.SoundFileError, OSError, TypeError):
        return 0.0


def soundfile() -> Any:
    """Imports the library that decodes sounds.

    Raises:
        EnvironmentFault: It is not installed.
    """
    try:
        import soundfile as module
    except (ImportError, OSError) as fault:  # OSError: the library that it wraps is not there
        raise EnvironmentFault(f"sounds are decoded by soundfile: pip install 'autopeft[audio]' ({fault})") from fault
    return module


def _samples(value: Any, seconds: float | None) -> tuple[np.ndarray, int]:
    """Returns one channel, the mean of all, and the samples a second."""
    if isinstance(value, Mapping) and value.get("array") is not None:
        wave, rate = np.asarray(value["array"], dtype=np.float32), int(value["sampling_rate"])
        wave = wave.mean(axis=-1) if wave.ndim == 2 else wave
        return wave if seconds is None else wave[: int(seconds * rate)], rate
    sound = soundfile()
    try:
        with sound.SoundFile(_file(value)) as file:
            frames = file.frames if seconds is None else min(file.frames, int(seconds * file.samplerate))
            wave, rate = file.read(frames, dtype="float32", always_2d=True), int(file.samplerate)
    except sound.SoundFileError as fault:
        why = " ".join(str(fault).split()).partition(": ")[2] or str(fault)
        raise _fault(value, f"is no sound that can be decoded, or a damaged one ({why})") from fault
    except (OSError, TypeError) as fault:
        raise _fault(value, f"cannot be read: {fault}") from fault
    if len(wave) < frames:
        raise _fault(value, f"ends after {len(wave):,} of its {frames:,} samples")
    return wave.mean(axis=1), rate


def _file(value: Any) -> Any:
    """Returns what soundfile opens: a path, or an open file of bytes."""
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") else value["path"]
    return io.BytesIO(value) if isinstance(value, bytes) else str(value)


def _fault(value: Any, what: str) -> ConfigError:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or "a sound of samples"
    which = f"a sound of {len(value):,} bytes" if isinstance(value, bytes) else str(value)
    return ConfigError([Fault("data", f"{which} {what}: mend it, or take it out")])


def patches(wave: np.ndarray) -> np.ndarray:
    """Computes log-mel patches (n_patches, 1, 96, 64), fp32, of 0.96 s each, one every 0.48 s, as YAMNet reads them.

    Frames of 25 ms every 10 ms, periodic Hann window; magnitudes of a Fourier transform; log(mel + 0.001). The sound
    is padded with zeros, so that each of its samples is in a patch.

    Args:
        wave: (n_samples,) at 16 kHz, in [-1, 1].
    """
    of_patch = WINDOW + (PATCH - 1) * HOP
    more = max(0, -(-(len(wave) - of_patch) // (PATCH_HOP * HOP)))
    padded = np.pad(wave.astype(np.float64), (0, of_patch + more * PATCH_HOP * HOP - len(wave)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    log_mel = np.log(np.abs(np.fft.rfft(frames * hann, FFT)) @ mel_filters() + OFFSET)
    cut = np.lib.stride_tricks.sliding_window_view(log_mel, PATCH, axis=0)[::PATCH_HOP]
    return np.ascontiguousarray(cut.transpose(0, 2, 1)[:, None], dtype=np.float32)


@lru_cache(maxsize=1)
def mel_filters() -> np.ndarray:
    """Returns the weights of bins in bands, (257, 64): triangles on the HTK mel scale, as TensorFlow makes them."""

    def mel(hertz: Any) -> Any:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    bins = mel(np.linspace(0, RATE / 2, FFT // 2 + 1))[:, None]
    edges = np.linspace(mel(LOWEST_HERTZ), mel(HIGHEST_HERTZ), BANDS + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    weights: np.ndarray = np.maximum(
        0.0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    )
    return weights
