"""Augmentation of whole batches, on the device of the batch."""
import math
from dataclasses import dataclass, fields
from functools import cache
from typing import NamedTuple

import torch

from config import UserError
from datasets.features import F_MAX, F_MIN, WIN_LENGTH, mel_spectrogram
from datasets.stored import columns

VTLP_MAX = 4_800.  # Hz; below it the warp is linear (Jaitly & Hinton 2013)


@dataclass(frozen=True)
class SpecAugment:
    """SpecAugment (Park et al. 2019) without time warping: every utterance gets its own masks.

    n_masks: bands along frequency, and as many along time. Widths are uniform from 0 to max_freq or
    max_time, which are fractions of F and T; if that is no whole number of bands or frames, the next one is drawn at times.
    """
    n_masks: int
    max_freq: float
    max_time: float

    def __call__(self, x: torch.Tensor, generator: torch.Generator | None = None,
                 n: int | None = None, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """Returns a masked copy of x (N, L, F, T), which is normalised: zero is the mean.

        If x is the share of process `rank`, n is the size of the whole batch: every process draws
        the masks of all its utterances, so that generators stay in step.
        """
        for axis, fraction in ((2, self.max_freq), (3, self.max_time)):
            size = x.shape[axis]
            u = torch.rand(2, self.n_masks, n or len(x), 1, generator=generator)[:, :, rank::world_size]
            u = u.to(x.device, non_blocking=True)
            width = (u[0] * (fraction * size + 1)).floor()  # (n_masks, N, 1)
            begin = (u[1] * (size - width + 1)).floor()
            position = torch.arange(size, device=x.device)
            masked = ((position >= begin) & (position < begin + width)).any(dim=0)  # (N, size)
            masked = masked[:, None, :, None] if axis == 2 else masked[:, None, None, :]
            x = x.masked_fill(masked, 0.)
        return x


class Recast(NamedTuple):
    """What happens to the utterances of an epoch: tensors (n,), in one table so that they travel to the device together."""
    start: torch.Tensor  # first frame of the window, after the change of speed; negative for padding in front
    offset: torch.Tensor  # of the utterance among the frames of all utterances
    length: torch.Tensor  # frames of the utterance
    pasted_offset: torch.Tensor  # of the utterance that is appended
    pasted_length: torch.Tensor  # frames that are appended
    speed: torch.Tensor  # 1: as recorded
    warp: torch.Tensor  # of the vocal tract; 1: as recorded
    snr: torch.Tensor  # dB; inf: no noise
    slope: torch.Tensor  # power of the noise at frequency f is f^-slope; 0: white, 1: pink


@dataclass(frozen=True)
class Voices:
    """New voices from recorded ones, by their log-mel features. Every utterance gets its own draws in every epoch.

    speed: utterances are played at 1 - speed to 1 + speed times their speed, which moves frequencies too. vtlp: the same
    bounds for the vocal tract (Jaitly & Hinton 2013). copypaste: probability that an utterance of the speaker is drawn and a
    part of it appended (Pappagari et al. 2021, arXiv 2010.14602), one of the same emotion or a neutral one. It takes half of
    the window at most, and the label is kept; if it is the utterance itself, nothing is appended. noise: probability of
    stationary noise, between white and pink, at an SNR from snr_low to snr_high dB.

    All of it approximates a change of the waveform. Time and mel axis are interpolated linearly: on utterances of EMO-DB,
    features at speed 0.9 and 1.1 correlate .96 to .98 with those of the resampled wave. The bands above the highest
    frequency of a slowed recording repeat the last one, where a resampled wave is empty. Noise has its mean power in every
    frame; its phase is ignored, and the SNR is that of the power in all mel bands of the window.
    """
    speed: float = 0.
    vtlp: float = 0.
    copypaste: float = 0.
    copypaste_with: str = 'emotion'
    noise: float = 0.
    snr_low: float = 10.
    snr_high: float = 30.

    @classmethod
    def of(cls, config, labels: list[str]) -> 'Voices | None':
        """The voices that a configuration asks for; None if it asks for none. UserError if no label is neutral."""
        voices = cls(**{f.name: getattr(config, f.name) for f in fields(cls)})
        if voices.copypaste and voices.copypaste_with == 'neutral' and not any(map(_is_neutral, labels)):
            raise UserError(f'--copypaste_with neutral: no class begins with "neu"; classes are {", ".join(labels)}')
        return voices if voices.speed or voices.vtlp or voices.copypaste or voices.noise else None

    def draw(self, order: torch.Tensor, dataset, generator: torch.Generator | None = None) -> torch.Tensor:
        """The table (9, n) of a Recast for the utterances `order` (n,), with start 0. Partners are among them."""
        u = torch.rand(7, len(order), generator=generator, dtype=torch.double)
        length, speed = dataset.lengths[order], 1 + self.speed * (2 * u[0] - 1)
        partner = self._partners(order.tolist(), dataset.utterances, u[2] < self.copypaste, u[3]) if self.copypaste else order
        pasted = torch.minimum(dataset.lengths[partner], (speed * dataset.n_frames / 2).floor())
        snr = torch.where(u[4] < self.noise, self.snr_low + u[5] * (self.snr_high - self.snr_low), torch.inf)
        return torch.stack(Recast(
            start=torch.zeros_like(speed), offset=dataset.offsets[order], length=length, pasted_offset=dataset.offsets[partner],
            pasted_length=torch.where(partner == order, 0., pasted), speed=speed, warp=1 + self.vtlp * (2 * u[1] - 1), snr=snr,
            slope=u[6]))

    def _partners(self, order, utterances, chosen, u):
        """Utterance to append to each of `order`; the utterance itself where nothing is appended, (n,)."""
        pools = {}
        for i in order:
            neutral = self.copypaste_with == 'neutral' and _is_neutral(utterances[i].label)
            pools.setdefault((utterances[i].speaker, 'neutral' if neutral else utterances[i].label), []).append(i)
        found = []
        for i, is_chosen, place in zip(order, chosen.tolist(), u.tolist()):
            wanted = 'neutral' if self.copypaste_with == 'neutral' else utterances[i].label
            pool = pools.get((utterances[i].speaker, wanted), [i])
            found.append(pool[int(place * len(pool))] if is_chosen else i)
        return torch.tensor(found)

    def cut(self, frames: torch.Tensor, n_frames: int, table: torch.Tensor) -> torch.Tensor:
        """Windows (F, N, n_frames) from frames (F, T); columns outside the utterance are to be padded."""
        r = Recast(*table[:, :, None])
        t = (r.start + torch.arange(n_frames, device=table.device)) * r.speed  # (N, n_frames), frames as recorded

        def at(t):
            t = t.clamp(min=0).minimum(r.length + r.pasted_length - 1)
            column = torch.where(t < r.length, r.offset + t, r.pasted_offset + t - r.length).long()
            return columns(frames, column.flatten()).view(len(frames), *column.shape).float()
        whole = t.floor()
        return torch.lerp(at(whole), at(whole + 1), (t - whole).float()) if self.speed else at(whole)

    def change(self, x: torch.Tensor, valid: torch.Tensor, table: torch.Tensor,
               to_logmel: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """x (F, N, T) with the mel axis moved, and with noise in valid frames (N, T).

        to_logmel: scale and shift (F, N) that give log-mel from x, for the noise; None if x is log-mel, or there is no noise.
        """
        r = Recast(*table)
        if self.speed or self.vtlp:
            band = source_bands(len(x), r.speed, r.warp)  # (F, N)
            low = band.floor().clamp(max=max(0, len(x) - 2))
            below, above = (x.gather(0, i.long()[..., None].expand_as(x)) for i in (low, (low + 1).clamp(max=len(x) - 1)))
            x = torch.lerp(below, above, (band - low).float()[..., None])
        if self.noise:
            scale, shift = (part[..., None] for part in to_logmel) if to_logmel else (1., 0.)
            logmel = x * scale + shift
            power = (logmel.exp() * valid).sum(dim=(0, 2)) / valid.sum(dim=1)  # (N,), of a frame
            noise = noise_bands(len(x), r.slope) * power * 10 ** (-r.snr / 10)  # (F, N)
            x = (torch.logaddexp(logmel, noise.log().float()[..., None]) - shift) / scale
        return x


def _is_neutral(label):
    return label.lower().startswith('neu')


def n_frames_of(table: torch.Tensor) -> torch.Tensor:
    """Frames (n,) of the utterances of a Recast table: what is appended and the change of speed included."""
    r = Recast(*table)
    return ((r.length + r.pasted_length) / r.speed).floor().clamp(min=1).long()


def source_bands(n_mels: int, speed: torch.Tensor, warp: torch.Tensor) -> torch.Tensor:
    """Band (F, N), with fractions, from which each mel band gets its content, at these speeds and warps (N,).

    The warp moves frequency f to warp * f up to VTLP_MAX, and linearly from there so that the highest frequency stays; then
    the speed multiplies frequencies.
    """
    lowest, highest = (2_595 * math.log10(1 + f / 700) for f in (F_MIN, F_MAX))  # mel
    step = (highest - lowest) / (n_mels + 1)
    mel = lowest + step * torch.arange(1, n_mels + 1, dtype=torch.double, device=speed.device)[:, None]
    f = 700 * (10 ** (mel / 2_595) - 1) / speed  # Hz, before the change of speed
    knee = VTLP_MAX * warp.clamp(max=1.)  # after the warp; before it, knee / warp
    beyond = F_MAX - (F_MAX - f) * (F_MAX - knee / warp) / (F_MAX - knee)
    f = torch.where(f <= knee, f / warp, beyond)
    return ((2_595 * torch.log10(1 + f / 700) - lowest) / step - 1).clamp(0, n_mels - 1)


def noise_bands(n_mels: int, slope: torch.Tensor) -> torch.Tensor:
    """Share (F, N) of each mel band in noise whose power at frequency f is f^-slope, (N,)."""
    filters = mel_filters(n_mels, slope.device)  # (n_frequencies, F)
    f = torch.linspace(0, F_MAX, len(filters), dtype=torch.double, device=slope.device).clamp(min=F_MIN)
    bands = filters.T @ f[:, None] ** -slope
    return bands / bands.sum(dim=0)


@cache
def mel_filters(n_mels: int, device: torch.device) -> torch.Tensor:
    """The mel filters of the features, (n_frequencies, n_mels), on a device."""
    return mel_spectrogram(n_mels, WIN_LENGTH).mel_scale.fb.double().to(device)
