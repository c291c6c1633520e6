"""Export a trained network as ONNX: waveform in, probabilities out, with a model card beside it.

    python scripts/export.py runs/augment/demo --out demo.onnx

The file needs nothing of this project: features, trimming, windows and their average are inside. Its input `waveform` is
float32 (1, n_samples), mono at 16 kHz; its output `probabilities` is (1, n_classes). Its metadata names the classes.

A network that reads frames of an encoder becomes two files: demo.onnx, whose input is `frames`, and demo.encoder.onnx, which
makes them of a waveform.
"""
import argparse
import contextlib
import io
import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np  # noqa: E402
import torch  # noqa: E402

import utils  # noqa: E402
from config import SAMPLE_RATE, UserError  # noqa: E402
from datasets.dataset import scaled  # noqa: E402
from datasets.features import MIN_SAMPLES  # noqa: E402
from models.predictor import Predictor, load, read_best  # noqa: E402
from models.waveform import MIN_FRAMES, PIECE, bands, exported, exported_encoder, for_onnx, frames_shape, takes_speaker, whose  # noqa: E402
from scripts.card import card  # noqa: E402
from scripts.predict import OF_FRAMES, SUFFIXES, complain, recordings  # noqa: E402

TOLERANCE = 1e-3  # of probabilities; more says that a network does something that the export does not know
SPEAKER = ('speaker_mean', 'speaker_std')  # optional inputs, (n_rows, 1)
Run = Callable[[np.ndarray], np.ndarray]  # a wave (n_samples,), or frames without their batch axis -> the output without it


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('run', metavar='RUN', help='folder of augment.py, or its best.pt')
    parser.add_argument('--out', metavar='FILE', required=True,
                        help='file to write; the model card is written beside it, as .md. The encoder of a network that reads '
                        'its frames is written beside it too')
    parser.add_argument('--torch_export', action='store_true', help='write a .pt2 of torch.export instead of ONNX')
    parser.add_argument('--speaker_files', metavar='FOLDER', help='recordings of the one speaker whom the file is for; only '
                        'for a network trained with --normalise speaker')
    parser.add_argument('--encoder', metavar='FOLDER', help='the encoder that the network was trained with, if it is no longer '
                        'where the training found it')
    args = parser.parse_args(argv)
    out, suffix = Path(args.out), '.pt2' if args.torch_export else '.onnx'
    beside = out.with_suffix(f'.encoder{suffix}')
    if out.suffix != suffix:
        raise UserError(f'--out {out}: must end in {suffix}')
    if not out.parent.is_dir():
        raise UserError(f'--out {out}: there is no folder {out.parent}')
    if not args.torch_export:
        need_onnx()
    predictor = load(args.run, encoder=args.encoder, warn=complain)
    if args.speaker_files:
        suffixes = OF_FRAMES if predictor.config.features == 'frames' else SUFFIXES
        predictor = predictor.of_speaker(recordings([args.speaker_files], suffixes), warn=complain)
    elif predictor.needs_speaker:
        predictor = of_nobody(predictor)
    with quiet():
        fixed = args.torch_export  # its inputs cannot be left out
        moments = predictor.moments if takes_speaker(predictor) and not fixed else ()
        names = ['frames' if predictor.config.frames else 'waveform', *(SPEAKER if moments else ())]
        write, run = rendered(exported(predictor, fixed), suffix, names, 'probabilities', metadata(predictor), moments)
        check(predictor, run)
        encoder, why = encoder_of(predictor, run, suffix) if predictor.config.features == 'encoder' else (None, '')
        utils.write_aside(out, write)
        if encoder:
            utils.write_aside(beside, encoder)
    page = out.with_suffix('.md')
    utils.write_aside(page, lambda f: f.write(card(args.run, read_best(args.run), predictor, out).encode()))
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB, classes {", ".join(predictor.labels)}; the model card is {page}')
    if encoder:
        print(f'{beside}: {beside.stat().st_size / 1e6:.1f} MB, the encoder: its output `frames` is the input of {out}')
    elif predictor.config.frames:
        print(f'its input is frames{why}; docs/encoders.md says how to make them')


def need_onnx():
    """UserError if the packages of requirements-onnx.txt are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f'{error.name} is not installed: pip install -r requirements-onnx.txt') from None


def of_nobody(predictor: Predictor) -> Predictor:
    """The predictor for a voice of which nothing is known: it has the average of the training speakers. UserError."""
    if predictor.prior is None:
        raise UserError('this best.pt was made before statistics of the corpus were kept in it: name a folder with recordings '
                        'of one speaker, --speaker_files FOLDER')
    predictor.moments = predictor.prior
    return predictor


@contextlib.contextmanager
def quiet():
    """Keeps the many notes of PyTorch's exporters off the screen."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def metadata(predictor: Predictor) -> dict[str, str]:
    """What a user of the file must know, as texts."""
    config = predictor.config
    facts = {'classes': json.dumps(predictor.labels), 'normalise': config.normalise, 'window_seconds': str(config.duration)}
    if predictor.needs_speaker:
        facts['speaker'] = whose(predictor)
    if config.frames:
        names = ['features', 'frame_shape', 'frames_per_s']
        names += ['encoder', 'encoder_revision', 'encoder_layers'] * (config.features == 'encoder')
        return facts | {name: str(getattr(config, name)) for name in names}
    return {**facts, 'sample_rate': str(SAMPLE_RATE), 'min_samples': str(MIN_SAMPLES), 'trim_db': str(config.trim_db),
            'features': f'{bands(config)}, a frame every {config.hop_ms * config.time_pool:g} ms'}


def rendered(program: torch.export.ExportedProgram, suffix: str, inputs: list[str], output: str, facts: dict,
             moments: tuple = ()) -> tuple[Callable, Run]:
    """(write, run): write(f) writes the program to an open file of this suffix, and run computes what is in it.

    moments: of the speaker, as default of the last inputs, which a user of an ONNX file may leave out.
    """
    if suffix == '.pt2':
        extra = {'metadata.json': json.dumps(facts)}
        return lambda f: torch.export.save(program, f, extra_files=extra), run_program(program)
    model = onnx_model(program, inputs, output, facts, moments)
    return lambda f: f.write(model), run_onnx(model, inputs[0])


def onnx_model(program: torch.export.ExportedProgram, inputs: list[str], output: str, facts: dict, moments: tuple) -> bytes:
    """The ONNX file. UserError if there can be none."""
    import onnx
    try:
        model = torch.onnx.export(for_onnx(program), dynamo=True, verbose=False, input_names=inputs, output_names=[output],
                                  dynamic_shapes=None).model_proto
        model.graph.initializer.extend(onnx.numpy_helper.from_array(moment.numpy(), name)
                                       for name, moment in zip(inputs[1:], moments))
        onnx.helper.set_model_props(model, facts)
        onnx.checker.check_model(model)
        return model.SerializeToString()
    except Exception as error:  # the exporter raises many kinds; the first of the chain names the operation
        while error.__cause__:
            error = error.__cause__
        raise UserError(f'ONNX cannot hold this network ({str(error)[:150]}); try --torch_export') from None


def run_program(program: torch.export.ExportedProgram) -> Run:
    module = program.module()
    return lambda x: module(torch.from_numpy(x)[None])[0].detach().numpy()


def run_onnx(model: bytes, name: str) -> Run:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warning that the optional inputs are optional
    session = onnxruntime.InferenceSession(model, options)
    return lambda x: session.run(None, {name: x[None]})[0][0]


def check(predictor: Predictor, run: Run):
    """UserError if the exported network does not give the probabilities of the predictor, on inputs of several lengths."""
    compare(run, of_frames(predictor) if predictor.config.frames else of_waves(predictor))


def compare(run: Run, pairs: Iterable[tuple[np.ndarray, np.ndarray]]):
    """UserError if run(x) is not the probabilities expected of x, for the pairs (x, expected)."""
    for x, expected in pairs:
        if not np.abs(run(x) - expected).max() <= TOLERANCE:
            raise UserError('this network cannot be exported: the file would not give the probabilities of scripts/predict.py')


def of_waves(predictor: Predictor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Waves (n_samples,) and the probabilities of the predictor."""
    rng = np.random.default_rng(0)
    size = predictor.config.duration * SAMPLE_RATE
    sizes = MIN_SAMPLES, int(.7 * size) + MIN_SAMPLES, int(3.3 * size)
    for n in sizes if not predictor.config.frames else np.minimum(sizes[1:], PIECE):
        t = np.linspace(-4, 4, n)
        wave = (rng.standard_normal(n) * np.exp(-t ** 2) * .1).astype(np.float32)  # swells from silence and fades
        yield wave, np.array(list(predictor(wave).probabilities.values()))


def of_frames(predictor: Predictor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames, (D, T) or (L, D, T), and the probabilities of the predictor."""
    rng, config = np.random.default_rng(0), predictor.config
    moments = predictor.moments if predictor.needs_speaker else (predictor.mean, predictor.std)
    mean, std = (moment.numpy() for moment in moments)
    for n in (MIN_FRAMES, math.ceil(.7 * config.n_frames) + 1, math.ceil(3.3 * config.n_frames) + 1):
        noise = rng.standard_normal((config.n_rows, 1)) + rng.standard_normal((config.n_rows, n))
        x = (mean + std * noise).astype(np.float16)
        features = scaled(x, moments) if predictor.needs_speaker else x
        yield x.astype(np.float32).reshape(*frames_shape(config), n), predictor.probabilities([features])[0]


def encoder_of(predictor: Predictor, run: Run, suffix: str) -> tuple[Callable | None, str]:
    """write(f) of the encoder, and ''; or None, and why there is none. run: the exported network, which reads its frames."""
    facts = {**metadata(predictor), 'sample_rate': str(SAMPLE_RATE), 'max_samples': str(PIECE)}
    try:
        write, frames = rendered(exported_encoder(predictor.config), suffix, ['waveform'], 'frames', facts)
        compare(lambda wave: run(frames(wave)), of_waves(predictor))
    except UserError as error:
        return None, f'. Its encoder cannot be exported ({error})'
    return write, ''


if __name__ == '__main__':
    utils.cli(main)
