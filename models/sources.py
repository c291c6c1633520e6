"""What networks do with the frames of a speech encoder: they mix its layers, and their maps have one row."""
import torch
import torch.nn as nn
from torch import Tensor


class LayerMix(nn.Module):
    """Mean over layers with learned weights, softmax(scores), at first all equal: (N, L, D, T) -> (N, D, 1, T)."""

    def __init__(self, n_layers: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(n_layers))

    def weights(self) -> Tensor:
        """Weight of every layer, (L,)"""
        return torch.softmax(self.scores, dim=0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum('l,nldt->ndt', self.weights(), x).unsqueeze(2)


class Network(nn.Module):
    """A network that reads a spectrogram or frames.

    C_in: input channels; D of frames. n_sources: 0 for a spectrogram (N, C_in, F, T), 1 for frames (N, D, 1, T), L for the
    frames of L layers (N, L, D, T), which `mixed` brings to (N, D, 1, T).
    """

    def __init__(self, C_in: int, n_sources: int = 0):
        super().__init__()
        self.C_in, self.n_sources = C_in, n_sources
        self.mix = LayerMix(n_sources) if n_sources > 1 else None

    def layer_weights(self) -> list[float]:
        """What the network has learned of the layers it mixes: one weight each, their sum is 1; [] if it mixes none."""
        return [] if self.mix is None else self.mix.weights().tolist()

    def mixed(self, x: Tensor) -> Tensor:
        """The input as a map. ValueError if it has another shape than this network reads."""
        expected = [self.n_sources, self.C_in] if self.mix else [self.C_in, 1] if self.n_sources else [self.C_in]
        if x.ndim != 4 or list(x.shape[1:1 + len(expected)]) != expected:
            sizes = ', '.join(map(str, expected + ['F'] * (not self.n_sources)))
            raise ValueError(f'expected (N, {sizes}, T), got {tuple(x.shape)}')
        return self.mix(x) if self.mix else x


def one_row(net: nn.Module):
    """Gives every convolution of `net` a kernel of one row: in maps (N, C, 1, T) other rows would read nothing but padding."""
    for conv in net.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size[0] > 1:
            # Rows may be skipped where there is one. models/fast knows steps that are equal along F and T.
            conv.kernel_size, conv.padding, conv.stride = (1, conv.kernel_size[1]), (0, conv.padding[1]), 2 * conv.stride[1:]
            conv.weight = nn.Parameter(conv.weight[:, :, :1].detach().clone())
            conv.reset_parameters()


def window_shape(config, n_frames: int) -> tuple[int, int, int]:
    """Shape of one window as a network reads it, (C_in, F, T), or (L, D, T) for frames of several layers."""
    if config.frames and config.frames[0] > 1:
        return *config.frames, n_frames
    return config.inputs['C_in'], config.height, n_frames


def of_layers(net: Network, config) -> dict:
    """{'layers': {number: weight}}, numbered as in --encoder_layers; {} of a network that mixes no layers."""
    first, _, several = config.encoder_layers.partition('-')
    first = int(first) if several and config.features == 'encoder' else 0
    weights = {str(i): weight for i, weight in enumerate(net.layer_weights(), first)}
    return {'layers': weights} if weights else {}


def describe(layers: dict) -> str:
    """The weights that `of_layers` found, on one line."""
    return 'weights of the layers: ' + ', '.join(f'{number}: {weight:.3f}' for number, weight in layers.items())
