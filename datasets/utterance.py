"""What a corpus reader gives."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Utterance:
    path: str  # audio file
    label: str
    speaker: str
    session: str | None = None
    gender: str | None = None  # 'm' or 'f'
    split: str | None = None  # 'train', 'dev' or 'test', where the corpus prescribes it; of MSP-Podcast 'Test1' ... for 'test'
    start: float | None = None  # s; None: the file's beginning
    end: float | None = None  # s; None: the file's end
    part: str | None = None  # of the corpus, where it has some: 'improvised' or 'scripted', or the letter of a scenario
    left_out: str | None = None  # why no experiment can use it, such as 'no majority'
