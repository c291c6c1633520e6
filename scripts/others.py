"""Predictions of other systems, which scripts/table.py compares with the models of an experiment."""
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from experiment import MODELS, read_table

import config as cf
from config import UserError

UTTERANCE = ['path', 'start', 'end']  # the columns that name one; the last two where utterances are parts of recordings
WANTED = 'it needs a row for each test utterance, with the columns path,predicted and, if you like, seed'


def added(files: Iterable[Path], runs: pd.DataFrame, predictions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """runs and predictions with those of other systems. A system is called as its file, without the ending.

    Speaker, label and fold of an utterance are those of the experiment. Without a column `seed` the predictions stand for every
    seed of the experiment, as those of an SVM do. UserError if the file has not every utterance of a fold that it has any of,
    or others, or other classes.
    """
    names = [name for name in UTTERANCE if name in predictions]
    truth = predictions.drop_duplicates([*names, 'fold'])[[*names, 'speaker', 'label', 'fold']]
    for file in files:
        if file.stem in {*MODELS, *runs['model']}:
            raise UserError(f'--add {file}: a model is called {file.stem} already; rename the file')
        its = read(file, names, predictions, truth)
        its = its.merge(truth, on=names).assign(model=file.stem)
        keys = its.drop_duplicates(['model', 'seed', 'fold'])[['model', 'seed', 'fold']]
        speakers = runs.dropna(subset='test_speakers').drop_duplicates('fold').set_index('fold')['test_speakers']
        runs = pd.concat([runs, keys.assign(state='finished', test_speakers=keys['fold'].map(speakers))], ignore_index=True)
        predictions = pd.concat([predictions, its[predictions.columns]], ignore_index=True)
    return runs, predictions


def read(file: Path, names: list[str], predictions: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """The columns of `names`, predicted and seed, checked."""
    its = read_table(file, dict.fromkeys([*names, 'predicted'], str), WANTED)
    for name in ('path', 'predicted'):
        its[name] = its[name].map(cf.from_csv_cell)
    if its.empty:
        raise UserError(f'--add {file} has no rows: {WANTED}')
    classes = {*predictions['label'], *predictions['predicted']}
    if (wrong := ~its['predicted'].isin(classes)).any():
        raise UserError(f'--add {file}: row {wrong.idxmax() + 2}: {cf.short(its["predicted"][wrong.idxmax()])} is none of the '
                        f'classes {", ".join(sorted(classes))}')
    for name in {*names} & {'start', 'end'}:  # 0 is 0.0
        texts = {_number(text): text for text in truth[name]}
        its[name] = [texts.get(_number(text), text) for text in its[name]]
    known = its[names].merge(truth.assign(known=True), on=names, how='left')['known'].isna()
    if known.any():
        stranger, example = (', '.join(map(cf.short, row[names])) for row in (its.loc[known.idxmax()], truth.iloc[0]))
        raise UserError(f'--add {file}: row {known.idxmax() + 2}: {stranger} is no test utterance of the experiment; its '
                        f'predictions.csv has {example}, for example')
    if 'seed' in its:
        if not its['seed'].str.fullmatch(r'\d{1,9}').all():
            raise UserError(f'--add {file}: seed must be a whole number in each row')
        its = its.astype({'seed': int})
        if not {*its['seed']} & {*predictions['seed']}:
            seeds = ' '.join(map(str, sorted({*predictions['seed']})))
            raise UserError(f'--add {file}: no row has a seed that is compared ({seeds}); leave the column seed out if the '
                            'predictions stand for all seeds')
    else:
        its = its.merge(pd.DataFrame({'seed': sorted({*predictions['seed']})}), how='cross')
    if (twice := its.duplicated([*names, 'seed'])).any():
        raise UserError(f'--add {file}: {cf.short(its["path"][twice.idxmax()])} is there twice')
    whole, found = truth['fold'].value_counts(), its.merge(truth, on=names).groupby(['seed', 'fold']).size()
    for (seed, fold), n in found.items():
        if n < whole[fold]:
            raise UserError(f'--add {file}: seed {seed} has {n} of the {whole[fold]} test utterances of fold {fold}')
    return its[[*names, 'predicted', 'seed']]


def _number(text: str):
    """A time as a number; the text itself if it is none, such as ''."""
    try:
        return float(text)
    except ValueError:
        return text
