"""The built-in corpus: a source-filter synthesiser, so that everything runs without a corpus.

Emotion shows in level, range and contour of the pitch, in rate, energy, spectral tilt and voice
quality. Speakers differ so much in pitch and vocal-tract length that absolute pitch alone does not
tell emotions apart. Scores on it say nothing about speech. SEED fixes every sample; the files are
made on first use.
"""
import itertools
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

import utils
from config import SAMPLE_RATE, UserError
from datasets.utterance import Utterance

SEED = 0
N_SPEAKERS = 10  # men have even numbers, women odd ones
N_TAKES = 12  # utterances of each speaker and emotion
SECONDS = (1.5, 2.5)  # shortest and longest utterance
# a i u e o: the three formants, Hz
VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])
BANDWIDTHS = np.array([80., 100., 140.])  # Hz, of the three formants
STALE = 3600  # s since a process last wrote to a folder that it was making
FADE = 320  # samples over which a syllable swells and fades, 20 ms


@dataclass(frozen=True)
class Manner:
    """How an emotion changes a voice; every utterance deviates from it at random."""
    pitch: float = 0.  # semitones above the speaker's own
    range: float = 2.  # semitones, standard deviation of the syllables' pitch
    slope: float = -2.  # semitones, from the first to the last syllable
    rate: float = 4.2  # syllables per second
    energy: float = 0.  # dB
    tilt: float = 0.  # dB per octave, added to the speaker's own
    breath: float = .05  # aspiration noise, relative to the voice
    jitter: float = .008  # relative variation of the pitch period from cycle to cycle
    open: float = .6  # open quotient of the glottal cycle: small is a pressed voice, large a lax one


MANNERS = {
    'neutral': Manner(),
    'angry': Manner(pitch=2., range=3., slope=-3., rate=5.0, energy=3.5, tilt=2.5, breath=.04, jitter=.02, open=.45),
    'happy': Manner(pitch=2.5, range=3.5, slope=1., rate=4.8, energy=2., tilt=1., breath=.06, jitter=.008, open=.55),
    'sad': Manner(pitch=-1., range=1.2, slope=-3., rate=3.4, energy=-3., tilt=-2., breath=.15, jitter=.012, open=.75),
}
TAKES = list(itertools.product(range(N_SPEAKERS), MANNERS, range(N_TAKES)))  # (speaker, emotion, take)


def scan(root: str | Path) -> list[Utterance]:
    """Utterances of the corpus in folder `root`, which is made if it does not exist or is empty."""
    root = Path(root)
    if not root.exists() or root.is_dir() and not any(root.iterdir()):
        _make(root)
    utterances = []
    for speaker, emotion, take in TAKES:
        path = root / _name(speaker, emotion, take)
        if not path.is_file():
            raise UserError(f'{root}: not a complete synthetic corpus, {path.name} is missing; choose another '
                            'folder with --cache')
        utterances.append(Utterance(str(path), emotion, f'{speaker:02d}', gender='fm'[speaker % 2 == 0]))
    return utterances


def synthesise(speaker: int, emotion: str, take: int) -> np.ndarray:
    """One utterance, float32 (n_samples,) in [-1, 1] at SAMPLE_RATE, fixed by the arguments."""
    voice = np.random.default_rng([SEED, speaker])  # draws what all utterances of the speaker share
    man = speaker % 2 == 0
    base_pitch = voice.uniform(100., 150.) if man else voice.uniform(150., 230.)  # Hz
    tract = voice.uniform(.92, 1.04) if man else voice.uniform(1.04, 1.18)  # factor of the formants in VOWELS
    own_tilt, own_rate, own_gain = voice.uniform(-1.5, 1.5), voice.uniform(.88, 1.12), voice.uniform(-2., 2.)

    rng = np.random.default_rng([SEED, speaker, list(MANNERS).index(emotion), take])
    m = MANNERS[emotion]
    seconds = rng.uniform(*SECONDS)
    n_syllables = max(3, round(seconds * m.rate * own_rate * rng.normal(1., .08)))
    bounds = np.linspace(0, seconds * SAMPLE_RATE, n_syllables + 1).astype(int)
    semitones = (m.pitch + rng.normal(0., 1.2)
                 + m.slope * rng.normal(1., .4) * np.linspace(-.5, .5, n_syllables)
                 + m.range * rng.normal(0., 1., n_syllables))
    track = np.interp(np.arange(bounds[-1]), (bounds[:-1] + bounds[1:]) / 2, semitones)  # (n_samples,)
    cycle = base_pitch * 2. ** (track / 12.) / SAMPLE_RATE  # cycles per sample
    drift = rng.normal(0., 1., len(cycle) // 80 + 2)  # of the period: one draw every 5 ms
    drift = np.interp(np.arange(len(cycle)) / 80., np.arange(len(drift)), drift)
    phase = np.cumsum(cycle * (1. + 3. * m.jitter * drift))
    source = _glottal_flow(phase % 1., np.clip(m.open + rng.normal(0., .04), .3, .9))
    source = np.diff(source, prepend=0.)  # the lips radiate the derivative
    source /= np.abs(source).mean() + 1e-9
    source += m.breath * rng.lognormal(0., .2) * 4. * rng.normal(0., 1., len(source))

    tilt = m.tilt + own_tilt + rng.normal(0., .5)  # dB per octave
    speech = np.zeros(len(source))
    for begin, end in zip(bounds[:-1], bounds[1:]):
        formants = VOWELS[rng.integers(len(VOWELS))] * tract * rng.normal(1., .03, 3)
        voiced = end - int((end - begin) * rng.uniform(.05, .25))  # the rest is a pause
        n = voiced - begin
        syllable = np.fft.irfft(np.fft.rfft(source[begin:voiced]) * _tract(n, formants, tilt), n)
        swell = np.minimum(1., np.minimum(np.arange(n), np.arange(n)[::-1]) / FADE)
        speech[begin:voiced] = syllable * swell * 10. ** (rng.normal(0., 1.5) / 20.)
    speech *= .05 / np.sqrt(np.mean(speech ** 2)) * 10. ** ((m.energy + own_gain + rng.normal(0., 1.5)) / 20.)
    speech += 3e-4 * rng.normal(0., 1., len(speech))  # noise of the room
    return np.clip(speech, -1., 1.).astype(np.float32)


def _glottal_flow(phase, open_quotient):
    """Air flow by phase in [0, 1): the glottis opens slowly, closes fast and stays closed (after Rosenberg 1971)."""
    rise, fall = open_quotient * .7, open_quotient * .3
    opening = .5 * (1. - np.cos(np.pi * phase / rise))
    closing = np.cos(.5 * np.pi * (phase - rise) / fall)
    return np.where(phase < rise, opening, np.where(phase < open_quotient, closing, 0.))


def _tract(n, formants, tilt):
    """Response at the frequencies of rfft of n samples: three resonances, and a tilt in dB per octave above 500 Hz."""
    f = np.fft.rfftfreq(n, 1. / SAMPLE_RATE)
    response = np.ones(len(f), complex)
    for formant, width in zip(formants, BANDWIDTHS):
        response *= formant ** 2 / (formant ** 2 - f ** 2 + 1j * f * width)
    return response * 10. ** (tilt * np.log2(np.maximum(f, 500.) / 500.) / 20.)


def _name(speaker, emotion, take):
    return f'{speaker:02d}_{emotion}_{take:02d}.wav'


FIRST = _name(*TAKES[0])  # a folder with this file holds the corpus


def _make(root):
    """Writes the corpus to a temporary folder, which is then renamed to `root`."""
    root.parent.mkdir(parents=True, exist_ok=True)
    for other in root.parent.glob(f'{root.name}.*'):  # of a process that was killed
        if time.time() - other.stat().st_mtime > STALE:
            shutil.rmtree(other, ignore_errors=True)
    aside = tempfile.mkdtemp(prefix=f'{root.name}.', dir=root.parent)
    try:
        for take in tqdm(TAKES, desc=f'synthesising {root}', disable=None, leave=False):
            wave = synthesise(*take)
            utils.write_aside(os.path.join(aside, _name(*take)), shared=True, write=lambda f, wave=wave: soundfile.write(
                f, wave, SAMPLE_RATE, format='WAV', subtype='PCM_16'))
        os.chmod(aside, 0o755)
        if root.exists():
            root.rmdir()
        os.rename(aside, root)
    except OSError:
        if not any(root.glob('*.wav')):  # another process may have made the corpus meanwhile
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
