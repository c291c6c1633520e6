"""MSP-Podcast (Lotfian and Busso 2019): Audios/MSP-PODCAST_0001_0008.wav, Labels/labels_consensus.csv.

Up to release 1.9 the labels were in labels_concensus.csv.
"""
from functools import partial
from pathlib import Path

from config import UserError
from datasets.files import audio_in, labelled, table_rows
from datasets.utterance import Utterance

EMOTIONS = {'A': 'anger', 'H': 'happiness', 'S': 'sadness', 'N': 'neutral', 'U': 'surprise', 'F': 'fear',
            'D': 'disgust', 'C': 'contempt', 'O': 'other'}
NO_AGREEMENT = 'X'
SPLITS = {'Train': 'train', 'Development': 'dev', 'Validation': 'dev', 'Test1': 'Test1', 'Test2': 'Test2',
          'Test3': 'Test3'}
GENDERS = {'Male': 'm', 'Female': 'f', 'Unknown': None, '': None}
UNKNOWN = ('Unknown', '')  # speakers who could be in two sets
COLUMNS = ('FileName', 'EmoClass', 'SpkrID', 'Gender', 'Split_Set')
LABEL_FILES = ('labels_consensus.csv', 'labels_concensus.csv')

EXAMPLE = 'anger,happiness,neutral,sadness'
DEFAULT_FOLDS = 'official'


def scan(root: str | Path) -> list[Utterance]:
    """Utterances below `root`, the folder that holds Labels/ and Audios/."""
    root = Path(root)
    tables = [path for folder in (root / 'Labels', root) for name in LABEL_FILES
              if (path := folder / name).is_file()]
    audio = [p for name in ('Audios', 'Audio') if (p := root / name).is_dir()]
    if len(tables) != 1 or len(audio) != 1:
        raise UserError(f'--data_path {root}: needs one Labels/{LABEL_FILES[0]} (there are {len(tables)}) '
                        f'and one folder Audios (there are {len(audio)})')
    return labelled(table_rows(tables[0], COLUMNS), partial(_utterance, audio[0]), audio_in(audio))


def _utterance(folder, row, where):
    """(name, Utterance) of a row."""
    if row is None:
        raise UserError(f'{where}: the number of fields differs from the header')
    file, emotion, speaker, gender, split = row
    if Path(file).name != file or not file.endswith('.wav'):
        raise UserError(f'{where}: FileName {file!r} is not a name such as MSP-PODCAST_0001_0008.wav')
    for column, value, valid in (('EmoClass', emotion, (*EMOTIONS, NO_AGREEMENT, '')),
                                 ('Gender', gender, GENDERS), ('Split_Set', split, SPLITS)):
        if value not in valid:
            raise UserError(f'{where}: {column} {value!r} is none of {" ".join(filter(None, valid))}')
    left_out = 'unknown speaker' if speaker in UNKNOWN else None
    left_out = {NO_AGREEMENT: 'no agreement', '': 'no label'}.get(emotion, left_out)
    return file.removesuffix('.wav'), Utterance(
        str(folder / file), EMOTIONS.get(emotion, ''), speaker, gender=GENDERS[gender], split=SPLITS[split],
        left_out=left_out)
