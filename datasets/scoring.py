"""Scores of predictions: UA, WA and macro F1 over all utterances at once, and the confusion matrix."""
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, confusion_matrix, f1_score, recall_score

from config import UserError
from datasets.dataset import SpeechDataset

LOWER = 'take a new --name and a lower learning rate'


class Diverged(UserError):
    """A loss, a gradient or a probability is not finite."""


def scores(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """'ua': mean recall of the classes that occur in labels; 'wa': accuracy; 'macro_f1': of those that occur or are predicted.

    Both arrays are class indices (n,).
    """
    present = np.unique(labels)
    return {'ua': float(recall_score(labels, predicted, labels=present, average='macro', zero_division=0)),
            'wa': float(accuracy_score(labels, predicted)),
            'macro_f1': float(f1_score(labels, predicted, average='macro', zero_division=0))}


def recalls(labels: np.ndarray, predicted: np.ndarray, names: list[str]) -> dict[str, tuple[float, int]]:
    """{class: (recall, n)} of the classes that occur in labels. Both arrays are class indices (n,). names: of all classes."""
    present = np.unique(labels)
    found = recall_score(labels, predicted, labels=present, average=None, zero_division=0)
    return {names[i]: (float(recall), int((labels == i).sum())) for i, recall in zip(present, found)}


def evaluate(forward: Callable, dataset: SpeechDataset, batch_size: int,
             class_weights: torch.Tensor) -> tuple[dict[str, float], np.ndarray]:
    """Scores of a dataset, with 'loss' (of the probabilities averaged over windows); and its probabilities (n, n_classes)."""
    probabilities = dataset.score(forward, batch_size)
    if lost := (~torch.isfinite(probabilities).all(dim=1)).nonzero().flatten().tolist():
        raise Diverged(f'training diverged: the network gives no probabilities to {len(lost)} of {len(dataset)} utterances, '
                       f'such as {dataset.utterances[lost[0]].path}; {LOWER}')
    loss = F.cross_entropy(probabilities.clamp_min(1e-12).log(), dataset.labels, class_weights)
    probabilities, labels = probabilities.cpu().numpy(), dataset.labels.cpu().numpy()
    return {'loss': float(loss), **scores(labels, probabilities.argmax(axis=1))}, probabilities


class Tally:
    """Losses and predictions of a training epoch, kept on the device until the epoch ends.

    alpha_losses: of the steps of alpha. skipped: number of steps whose gradients were not finite.
    """

    def __init__(self):
        self.steps, self.alpha_losses, self.skipped = [], [], 0

    def restore(self, state: dict, device: torch.device, mine: bool = True) -> None:
        """Goes on from `state`, of an epoch that was left in the middle. mine: true for one of several processes."""
        for loss, predicted, labels in state['steps']:
            step = (loss, predicted, labels) if mine else (torch.zeros_like(loss), predicted[:0], labels[:0])
            self.steps.append(tuple(t.to(device) for t in step))
        self.alpha_losses, self.skipped = [loss.to(device) for loss in state['alpha_losses']], state['skipped']

    def state(self, gather: Callable = lambda own: [own]) -> dict:
        """What a checkpoint needs: the steps of all processes as if of one. gather: as in `scores`."""
        own = [tuple(t.cpu() for t in step) for step in self.steps]
        shares = gather(own)
        if len(shares) > 1:
            own = [(sum(losses).double(), torch.cat(predicted), torch.cat(labels))
                   for losses, predicted, labels in (zip(*step) for step in zip(*shares))]
        return {'steps': own, 'alpha_losses': [loss.cpu() for loss in self.alpha_losses], 'skipped': self.skipped}

    def add(self, loss: torch.Tensor, logits: torch.Tensor, y: torch.Tensor) -> None:
        """Adds a step. loss: mean over the batch; if y is one process's share of the batch, its part of that mean."""
        self.steps.append((loss.detach(), logits.detach().argmax(dim=1), y))

    def scores(self, gather: Callable = lambda own: [own]) -> dict:
        """{'loss', 'ua', 'wa', 'macro_f1'} of the epoch, and 'skipped' if steps were. UserError if the loss is not finite.

        gather: object of this process -> list of those of all processes.
        """
        if not self.steps:
            raise Diverged(f'training diverged: no gradient of the epoch was finite; {LOWER}')
        losses, predicted, labels = zip(*self.steps)
        sizes = np.array([len(y) for y in labels])
        losses = torch.stack([loss.double() for loss in losses])  # those of several processes are sums in this precision
        own = losses.cpu().numpy(), sizes, torch.cat(predicted).cpu().numpy(), torch.cat(labels).cpu().numpy()
        losses, sizes, predicted, labels = zip(*gather(own))
        predicted, labels = np.concatenate(predicted), np.concatenate(labels)
        loss = float(np.dot(np.sum(losses, axis=0, dtype=float), np.sum(sizes, axis=0)) / len(labels))
        if not np.isfinite(loss):
            raise Diverged('training diverged: the loss is not finite; lower the learning rate')
        return {'loss': loss, **scores(labels, predicted), **({'skipped': self.skipped} if self.skipped else {})}


def plot_confusion(labels: np.ndarray, predicted: np.ndarray, names: list[str],
                   title: str | None = None, small: bool = False) -> 'matplotlib.figure.Figure':  # noqa: F821
    """Confusion matrix as a matplotlib Figure; each cell shows the share of its true class, and the count.

    labels, predicted: class indices (n,). names: of the classes. small: up to nine classes in the size that TensorBoard
    shows, so that it need not shrink the picture.
    """
    from matplotlib.figure import Figure  # slow to import
    counts = confusion_matrix(labels, predicted, labels=range(len(names)))
    recall = counts / counts.sum(axis=1, keepdims=True).clip(1)  # a class without utterances has an empty row
    small = small and len(names) <= 9
    side, font = (3.5, 6) if small else (2.2 + .75 * len(names), 9)  # inches, points
    figure = Figure(figsize=(side, side), layout='constrained')
    axes = figure.add_subplot()
    display = ConfusionMatrixDisplay(recall, display_labels=[name.replace('$', r'\$') for name in names])
    display.plot(ax=axes, xticks_rotation='vertical', colorbar=False, im_kw=dict(vmin=0., vmax=1., cmap='Blues'))
    for i, row in enumerate(display.text_):
        for j, text in enumerate(row):
            text.set(text=f'{recall[i, j]:.2f}\n{counts[i, j]}', fontsize=font)
    if small:
        axes.tick_params(labelsize=font + 1)
    axes.set_xlabel('predicted', fontsize=font + 1)
    axes.set_ylabel('true', fontsize=font + 1)
    axes.set_title(title, fontsize=font + 2 if small else None)
    for text in (axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a label may hold two $
    return figure
