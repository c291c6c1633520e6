"""The report of scripts/recipe.py."""
import numpy as np
from scipy.stats import t as student


def pooled(rows: list[dict], name: str, seeds: int, folds: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-loss, UA and utterances of a variant, (S, F) each; nan where a training is missing."""
    found = {(row['seed'], row['fold']): row for row in rows if row['variant'] == name}
    return tuple(np.array([[found[s, f][key] if (s, f) in found else np.nan for f in folds] for s in range(seeds)])
                 for key in ('loss', 'ua', 'n'))


def report(rows: list[dict], variants: dict, seeds: int, folds: list[int]) -> str:
    """Markdown: variants, the best first, by log-loss per utterance over all dev speakers. Only whole seeds count."""
    loss, ua, n = pooled(rows, 'base', seeds, folds)
    lines = []
    for name, settings in variants.items():
        its_loss, its_ua, its_n = pooled(rows, name, seeds, folds)
        whole = ~np.isnan(its_loss).any(axis=1)
        minutes = sum(row['core_minutes'] for row in rows if row['variant'] == name)
        if not whole.any():
            continue
        of_seeds = (its_loss * its_n).sum(axis=1)[whole] / its_n.sum(axis=1)[whole]
        spread = f'{of_seeds.std(ddof=1):.4f}' if len(of_seeds) > 1 else ''
        both = whole & ~np.isnan(loss).any(axis=1)
        difference = interval(((its_loss - loss) * n / n[both].mean())[both].ravel()) if name != 'base' and both.any() else ''
        changed = ', '.join(f'{key} {value}' for key, value in settings.items())
        lines.append((of_seeds.mean(), f'| {name} | {changed} | {len(of_seeds)} | {of_seeds.mean():.4f} | {spread} | '
                      f'{difference} | {100 * its_ua[whole].mean():.1f} | {minutes:.1f} |'))
    head = ('| variant | settings | seeds | log-loss | sd of seeds | minus base (95% interval) | UA, mean of folds | '
            'core-minutes |\n|---|---|---|---|---|---|---|---|')
    note = ('\nThe interval is of the paired differences of all seeds and folds: it covers other seeds, hardly other '
            'speakers, and is not corrected for the number of variants.')
    return '\n'.join([head, *(line for _, line in sorted(lines)), note])


def interval(differences: np.ndarray) -> str:
    """'mean (low to high)' of paired differences, by Student's t."""
    mean, n = differences.mean(), len(differences)
    if n < 2:
        return f'{mean:+.4f}'
    half = student.ppf(.975, n - 1) * differences.std(ddof=1) / np.sqrt(n)
    return f'{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})'
