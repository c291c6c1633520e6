"""Corpora of the shape of the licensed ones, quirks included, made up: empty files, or the synthesiser's speech."""
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import soundfile

from datasets.readers import synthetic

VOICES = dict(ang='angry', hap='happy', exc='happy', neu='neutral', sad='sad', anger='angry', happiness='happy',
              neutral='neutral', sadness='sad')
SECONDS = .7  # of the synthesiser's speech a file


@cache
def _voice(speaker, manner):
    return synthetic.synthesise(speaker, manner, 0)


def touch(folder, *names):
    """Makes empty files; returns the folder."""
    for name in names:
        empty(folder / name)
    return folder


def empty(path, *_):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def spoken(path, speaker, label):
    """Real audio: speaker is a number, label a class that may have no manner of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = 160 * (sum(map(ord, path.stem)) % 60)  # files of one voice and manner differ
    wave = _voice(speaker, VOICES.get(label, 'neutral'))[begin:begin + round(SECONDS * synthetic.SAMPLE_RATE)]
    soundfile.write(path, wave, synthetic.SAMPLE_RATE)


def protocol(dataset, root, **said):
    """What datasets.select reads of a configuration."""
    unsaid = dict(cache='unused', folds='default', labels=None, turns=None, scenarios=None)
    return SimpleNamespace(**{**unsaid, **said}, dataset=dataset, data_path=str(root))


def iemocap(root, turns, write=empty, silent=()):
    """turns: [(Ses01F_impro01_F000, emotion), ...]; those in `silent` get no audio. Returns the release's folder."""
    release, blocks = Path(root) / 'IEMOCAP_full_release', {}
    for i, (turn, emotion) in enumerate(turns):
        session, dialog = f'Session{turn[4]}', turn.rpartition('_')[0]
        blocks.setdefault((session, dialog), []).append(
            f'[{2.5 * i:.4f} - {2.5 * i + 1.9455:.4f}]\t{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n'
            'C-E2:\tNeutral;\t()\nC-F1:\tAnger; Sadness;\t(tone is d\xe9cid\xe9)\nA-E3:\tval 3; act 2; dom  2;\t()\n')
        if turn not in silent:
            write(release / session / 'sentences/wav' / dialog / f'{turn}.wav',
                  2 * int(turn[4]) - (turn.rpartition('_')[2][0] == 'F'), emotion)
    for (session, dialog), found in blocks.items():
        labels = release / session / 'dialog/EmoEvaluation'
        for folder in ('Attribute', 'Categorical', 'Self-evaluation'):
            (labels / folder).mkdir(parents=True, exist_ok=True)
        text = '% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n' + '\n'.join(found)
        (labels / f'{dialog}.txt').write_bytes(text.encode('latin-1'))
        (labels / f'._{dialog}.txt').write_bytes(b'\x00\x05\x16\x07\x00Mac OS X')
        (labels / 'Categorical' / f'{dialog}_e2_cat.txt').write_text(f'{dialog}_F000 :Anger; ()\n')
        empty(release / session / 'sentences/wav' / dialog / f'._{dialog}_F000.wav')
    return release


def msp_improv(root, turns, write=empty, audio='', labels='Evalution.txt', silent=()):
    """turns: [(S01A-F01-S-FM01, emotion), ...]. audio: a folder above the sessions."""
    root, text = Path(root), ''
    for turn, emotion in turns:
        sentence, actor, scenario, number = turn.split('-')
        text += (f'UTD-IMPROV-{turn}.avi; {emotion}; A:3.000000 ; V:3.500000 ; D:NaN ; N:4.0;\n'
                 '20121211_E01; Angry; Angry,Frustrated; A:4.000000; V:2.000000; D:NaN; N:4.000000;\n\n')
        if turn not in silent:
            write(root / audio / f'session{actor[-1]}' / sentence / scenario / f'MSP-IMPROV-{turn}.wav', 2 * int(actor[-1]) - 1,
                  dict(A='anger', H='happiness', S='sadness').get(emotion))
    root.mkdir(parents=True, exist_ok=True)
    (root / labels).write_text(text)
    return root


def msp_podcast(root, rows, write=empty, table='labels_consensus.csv', silent=()):
    """rows: [(file, EmoClass, SpkrID, Gender, Split_Set), ...]"""
    (Path(root) / 'Labels').mkdir(parents=True)
    (Path(root) / 'Labels' / table).write_text(
        'FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n'
        + ''.join(f'{file},{emotion},4.2,3.8,4.0,{",".join(rest)}\n' for file, emotion, *rest in rows))
    for file, emotion, speaker, *_ in rows:
        if file not in silent:
            write(Path(root) / 'Audios' / file, int(speaker) if speaker.isdigit() else 0,
                  dict(A='anger', H='happiness', S='sadness').get(emotion))
    return Path(root)


def cremad(root, names, write=empty):
    for name in names:
        write(Path(root) / 'AudioWAV' / f'{name}.wav', int(name[:4]) - 1000, dict(ANG='anger', SAD='sadness').get(name[9:12]))
    actors = sorted({name[:4] for name in names})
    (Path(root) / 'VideoDemographics.csv').write_text('ActorID,Age,Sex,Race,Ethnicity\n' + ''.join(
        f'{actor},30,{"Male" if int(actor) % 2 else "Female"},Caucasian,Not Hispanic\n' for actor in actors))
    return Path(root)


def savee(root, names, write=empty, flat=False):
    """names: [DC_a01, ...]"""
    for name in names:
        file = f'{name}.wav' if flat else f'AudioData/{name.replace("_", "/")}.wav'
        write(Path(root) / file, 2 * ('DC', 'JE', 'JK', 'KL').index(name[:2]), dict(a='anger', sa='sadness').get(name[3:-2]))
    return Path(root)


def nemo(root, rows, write=empty, suffix='.wav', silent=()):
    """rows: [(EB0_neutral_13, emotion, speaker, gender), ...]; texts hold quotation marks, speakers stray spaces."""
    root.mkdir(parents=True, exist_ok=True)
    (root / 'data.tsv').write_text('file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n' + ''.join(
        f'{name}.wav\t{emotion}\t"Ach, rzek\u0142.\tach rzek\u0142\t        {speaker}\t{gender}\t27\n'
        for name, emotion, speaker, gender in rows))
    (root / 'samples').mkdir()
    for name, emotion, speaker, _ in rows:
        if name not in silent:
            write(root / 'samples' / f'{name}{suffix}', sum(map(ord, speaker)) % 10, emotion)
    return root
