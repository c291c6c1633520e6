"""Scores of predictions: UA, WA, macro F1, over all utterances at once."""
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score, recall_score

from config import UserError


def scores(labels, predicted):
    """Over all predictions at once: ua = mean recall of the classes that occur in labels, wa = accuracy, macro_f1."""
    present = np.unique(labels)
    return {'ua': float(recall_score(labels, predicted, labels=present, average='macro', zero_division=0)),
            'wa': float(accuracy_score(labels, predicted)),
            'macro_f1': float(f1_score(labels, predicted, average='macro', zero_division=0))}


def evaluate(forward, dataset, batch_size, class_weights):
    """Scores of a dataset with 'loss' (of the window-averaged probabilities), and its probabilities (n, n_classes) as numpy."""
    probabilities = dataset.score(forward, batch_size)
    loss = F.cross_entropy(probabilities.clamp_min(1e-12).log(), dataset.labels, class_weights)
    probabilities, labels = probabilities.cpu().numpy(), dataset.labels.cpu().numpy()
    return {'loss': float(loss), **scores(labels, probabilities.argmax(axis=1))}, probabilities


class Tally:
    """Losses and predictions of a training epoch, kept on the device until the epoch ends."""

    def __init__(self):
        self.steps = []

    def add(self, loss: torch.Tensor, logits: torch.Tensor, y: torch.Tensor):
        """Adds a step. loss: mean over the batch; if y is one process's share of the batch, its part of that mean."""
        self.steps.append((loss.detach(), logits.detach().argmax(dim=1), y))

    def scores(self, gather: Callable = lambda own: [own]) -> dict:
        """{'loss', 'ua', 'wa', 'macro_f1'} of the epoch. UserError if the loss is not finite.

        gather: object of this process -> list of those of all processes.
        """
        losses, predicted, labels = zip(*self.steps)
        sizes = np.array([len(y) for y in labels])
        own = torch.stack(losses).cpu().numpy(), sizes, torch.cat(predicted).cpu().numpy(), torch.cat(labels).cpu().numpy()
        losses, sizes, predicted, labels = zip(*gather(own))
        predicted, labels = np.concatenate(predicted), np.concatenate(labels)
        loss = float(np.dot(np.sum(losses, axis=0, dtype=float), np.sum(sizes, axis=0)) / len(labels))
        if not np.isfinite(loss):
            raise UserError('training diverged: the loss is not finite; lower the learning rate')
        return {'loss': loss, **scores(labels, predicted)}
