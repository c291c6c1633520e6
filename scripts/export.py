"""Export a trained network as ONNX: waveform in, probabilities out, with a model card beside it.

    python scripts/export.py runs/augment/demo --out demo.onnx

The file needs nothing of this project: features, trimming, windows and their average are inside. Its input `waveform` is
float32 (1, n_samples), mono at 16 kHz; its output `probabilities` is (1, n_classes). Its metadata names the classes.
"""
import argparse
import contextlib
import io
import json
import logging
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np  # noqa: E402
import torch  # noqa: E402

import utils  # noqa: E402
from config import SAMPLE_RATE, UserError  # noqa: E402
from datasets.features import MIN_SAMPLES  # noqa: E402
from models.predictor import Predictor, load, read_best  # noqa: E402
from models.waveform import exported, for_onnx  # noqa: E402
from scripts.card import card  # noqa: E402
from scripts.predict import complain, recordings  # noqa: E402

TOLERANCE = 1e-3  # of probabilities; more says that a network does something that the export does not know
SPEAKER = ('speaker_mean', 'speaker_std')  # optional inputs, (n_mels, 1)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('run', metavar='RUN', help='folder of augment.py, or its best.pt')
    parser.add_argument('--out', metavar='FILE', required=True,
                        help='file to write; the model card is written beside it, as .md')
    parser.add_argument('--torch_export', action='store_true', help='write a .pt2 of torch.export instead of ONNX')
    parser.add_argument('--speaker_files', metavar='FOLDER', help='recordings of the one speaker whom the file is for; only '
                        'for a network trained with --normalise speaker')
    args = parser.parse_args(argv)
    out, suffix = Path(args.out), '.pt2' if args.torch_export else '.onnx'
    if out.suffix != suffix:
        raise UserError(f'--out {out}: must end in {suffix}')
    if not out.parent.is_dir():
        raise UserError(f'--out {out}: there is no folder {out.parent}')
    if not args.torch_export:
        need_onnx()
    predictor = load(args.run)
    if args.speaker_files:
        predictor = predictor.of_speaker(recordings([args.speaker_files]), warn=complain)
    elif predictor.needs_speaker:
        predictor = of_nobody(predictor)
    with quiet():
        program = exported(predictor)
        check(predictor, run_program(program, predictor))
        facts = metadata(predictor)
        if args.torch_export:
            utils.write_aside(out, lambda f: torch.export.save(program, f, extra_files={'metadata.json': json.dumps(facts)}))
        else:
            model = onnx_model(program, predictor, facts)
            check(predictor, run_onnx(model, predictor))
            utils.write_aside(out, lambda f: f.write(model))
    page = out.with_suffix('.md')
    utils.write_aside(page, lambda f: f.write(card(args.run, read_best(args.run), predictor, out).encode()))
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB, classes {", ".join(predictor.labels)}; the model card is {page}')


def need_onnx():
    """UserError if the packages of requirements-onnx.txt are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f'{error.name} is not installed: pip install -r requirements-onnx.txt') from None


def of_nobody(predictor: Predictor) -> Predictor:
    """A predictor whose speaker, unless the user of the file names another, is the average of the training speakers."""
    if predictor.net.speaker_norm is not None:
        raise UserError('a network trained with --embedding speaker cannot be exported; scripts/predict.py runs it')
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
    return {'classes': json.dumps(predictor.labels), 'sample_rate': str(SAMPLE_RATE), 'min_samples': str(MIN_SAMPLES),
            'features': f'{config.features}, {config.n_mels} bands, a frame every {config.hop_ms * config.time_pool:g} ms',
            'normalise': config.normalise, 'window_seconds': str(config.duration), 'trim_db': str(config.trim_db)}


def onnx_model(program: torch.export.ExportedProgram, predictor: Predictor, facts: dict) -> bytes:
    """The ONNX file. The speaker's statistics are inputs with a default, which a user may leave out."""
    import onnx
    names = ['waveform', *(SPEAKER if predictor.needs_speaker else ())]
    try:
        made = torch.onnx.export(for_onnx(program), dynamo=True, verbose=False, input_names=names,
                                 output_names=['probabilities'], dynamic_shapes=None)
    except Exception as error:  # the exporter raises many kinds; the first of the chain names the operation
        while error.__cause__:
            error = error.__cause__
        raise UserError(f'ONNX cannot hold this network ({str(error)[:150]}); try --torch_export') from None
    model = made.model_proto
    if predictor.needs_speaker:
        model.graph.initializer.extend(onnx.numpy_helper.from_array(moment.numpy(), name)
                                       for name, moment in zip(SPEAKER, predictor.moments))
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def run_program(program: torch.export.ExportedProgram, predictor: Predictor):
    """wave -> probabilities (n_classes,)"""
    module = program.module()
    moments = predictor.moments if predictor.needs_speaker else ()
    return lambda wave: module(torch.from_numpy(wave)[None], *moments)[0].detach().numpy()


def run_onnx(model: bytes, predictor: Predictor):
    """wave -> probabilities (n_classes,)"""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warning that the optional inputs are optional
    session = onnxruntime.InferenceSession(model, options)
    return lambda wave: session.run(None, {'waveform': wave[None]})[0][0]


def check(predictor: Predictor, run):
    """UserError if the exported network does not give the probabilities of the predictor, on waves of several lengths."""
    rng = np.random.default_rng(0)
    size = predictor.config.duration * SAMPLE_RATE
    for n in (MIN_SAMPLES, int(.7 * size) + MIN_SAMPLES, int(3.3 * size)):
        t = np.linspace(-4, 4, n)
        wave = (rng.standard_normal(n) * np.exp(-t ** 2) * .1).astype(np.float32)  # swells from silence and fades
        expected = np.array(list(predictor(wave).probabilities.values()))
        if not np.abs(run(wave) - expected).max() <= TOLERANCE:
            raise UserError('this network cannot be exported: the file would not give the probabilities of scripts/predict.py')


if __name__ == '__main__':
    utils.cli(main)
