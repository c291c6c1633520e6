"""Functionals of openSMILE, one row an utterance, in the cache: the only file that imports `opensmile`, and only when asked."""
import os
from concurrent.futures import ThreadPoolExecutor

import joblib
import librosa
import numpy as np

import utils
from config import SAMPLE_RATE, UserError
from datasets.faults import Faults
from datasets.features import THREADS, TRIM_FRAME, TRIM_HOP, index_of, load_audio, trim
from datasets.utterance import Utterance

VERSION = 1  # part of every cache key; raise it when the arithmetic below changes
SETS = {'egemaps': 'eGeMAPSv02', 'compare': 'ComParE_2016'}  # --functionals: name of the set in opensmile
LOUDEST = 1 - 2. ** -15  # opensmile makes 16-bit samples of a wave, in which a louder one would change its sign


class Smile:
    """smile(wave) -> (D,) float32, the functionals of a wave (n_samples,) at SAMPLE_RATE."""

    def __init__(self, chosen: str):
        """chosen: a key of SETS. UserError without the package."""
        try:
            import opensmile
        except ImportError:
            raise UserError(f'--functionals {chosen} needs the package opensmile, which is free for research and education '
                            'only: pip install -r requirements-opensmile.txt') from None
        self.version, self.set = opensmile.__version__, SETS[chosen]
        self.smile = opensmile.Smile(getattr(opensmile.FeatureSet, self.set), opensmile.FeatureLevel.Functionals)
        self.n = self.smile.num_features

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        return self.smile.process_signal(np.clip(wave, -1., LOUDEST), SAMPLE_RATE).to_numpy(np.float32)[0]


def cached_functionals(utterances: list[Utterance], smile: Smile, trim_db: float, cache_dir: str, workers: int = 0,
                       quiet: bool = False) -> np.ndarray:
    """Functionals (n, D) float32 of utterances, from the cache, or computed and put there; one UserError of all faults.

    Some may not be finite. Every utterance has its own file, so that an interrupted extraction continues where it stopped.
    workers: as in features.cached_features.
    """
    made_by = 'opensmile', VERSION, smile.version, smile.set, SAMPLE_RATE, librosa.__version__
    made_by += (trim_db, TRIM_FRAME, TRIM_HOP) if trim_db else ()
    index, faults = index_of(cache_dir, made_by), Faults()
    with utils.progress(len(utterances), f'functionals in {cache_dir}', quiet) as bar:
        def row(u):
            found = None
            with faults.collect():
                key = index.key(u)
                path = os.path.join(cache_dir, key[:2], f'{key}.f4')
                found = _read(path, smile.n)
                if found is None:
                    wave = load_audio(u)
                    found = smile(trim(wave, trim_db) if trim_db else wave)
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    utils.write_aside(path, lambda f: f.write(found.tobytes()), shared=True)
            bar.update()
            return found
        with ThreadPoolExecutor(workers or min(THREADS, joblib.cpu_count())) as pool:
            rows = [*pool.map(row, utterances)]
    index.save()
    faults.messages.sort()  # threads report theirs in any order
    faults.check()
    return np.stack(rows)


def _read(path, n):
    """The functionals in a file; None if there is none, or it is damaged."""
    try:
        with open(path, 'rb') as f:
            data = f.read(4 * n + 1)
    except OSError:
        return None
    return np.frombuffer(data, '<f4') if len(data) == 4 * n else None
