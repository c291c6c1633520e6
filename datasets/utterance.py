"""What the reader of a corpus returns."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Utterance:
    path: str  # audio file
    label: str
    speaker: str
    session: str | None = None
    gender: str | None = None  # 'm' or 'f'
    split: str | None = None  # the corpus' own: 'train', 'dev' or 'test'; in MSP-Podcast 'Test1' and so on for 'test'
    start: float | None = None  # s; None: the beginning of the file
    end: float | None = None  # s; None: the end of the file
    part: str | None = None  # of the corpus, as in --turns ('improvised') or --scenarios ('P')
    left_out: str | None = None  # why no experiment can use it, such as 'no majority'
    frames: str | None = None  # .npy file of frames, (D, T) or (L, D, T), which stands for the audio with --features frames
