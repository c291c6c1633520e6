"""How tests/reliability/fuzz.py damages valid input: bytes, words and trees."""
import copy
import json
import random
import re

import torch

LONG = 20_000  # characters of a line that is not repeated
NUMBERS = ['0', '-1', '1e308', '-1e308', '1e-308', 'nan', 'inf', '10' * 10, '1' * 5_000, '0x' + 'f' * 5_000, '1.5', '2' * 20,
           '١٢', '1_0', '1:1:1', '0o7', '+3', '--3', '1e', '999999999', '-0.0', '65536', '4294967296', '1e38', '1' * 320]
WORDS = ['', ' ', '\0', '\n', '\r\n', '\t', '"', "'", ',', ';', '\\', '[', ']', '{', '}', '(', ')', ':', '- ', '? ', '&a ',
         '*a', '<<: ', '!!int x', '!!timestamp y', '!!bool x', '!!binary x', '!!set {a}',
         '!!python/object/apply:os.system ["x"]',
         '2024-13-45', '2024-01-01', 'true', 'null', '~', '%TAG', '---', '...', '\ufeff', '\u200b', '\u202e', '\ud800', 'é',
         'e\u0301', '=cmd|x', '$\\bad$', '<img src=x>', '../../x', '/etc/passwd', 'x' * 300, 'x' * 5_000, '\x1b[31m',
         '__import__("os")',
         'range(0,10**9)', 'NaN', 'Infinity', '1e999', 'lambda: 0', '[' * 900 + ']' * 900, '{"a":' * 900, '(' * 150 + ')' * 150,
         ', '.join(['1'] * 2_000), 'x.raw', '[a]' * 1_000, '# ', '|', '`', '%s%n', '{0}', '\x7f', '\x85', '\u2028']
VALUES = [None, True, 5, -1, 10 ** 20, 1e308, float('nan'), float('inf'), '', 'x', 'x' * 5_000, [], {}, [{}], [[]], {'a': {}},
          (), b'x', 0, '\0', [1] * 2_000, '=1+1', '$\\bad$']
TENSORS = [torch.zeros(0), torch.zeros(3), torch.zeros(2, 2), torch.full((1,), float('nan')), torch.tensor(1),
           torch.ones(5, 1).bool(), torch.zeros(1, dtype=torch.complex64)]


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits, bytes and slices changed, removed, doubled or moved."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        i, n = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, 64, 1_000))
        how = rng.randrange(7)
        if how == 0 and i < len(data):
            data[i] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[i:i + n] = rng.randbytes(n)
        elif how == 2:
            data[i:i] = data[i:i + n] * rng.choice((1, 3, 100))
        elif how == 3:
            del data[i:i + n]
        elif how == 4:
            del data[i:]
        elif how == 5:
            data[i:i + 4] = rng.choice((b'\0\0\0\0', b'\xff\xff\xff\xff', b'\xff\xff\xff\x7f', b'\1\0\0\0', b'\0\0\xc0\x7f'))
        else:
            data[i:i] = rng.choice(WORDS).encode('utf-8', 'surrogatepass')
    return bytes(data)


def damaged_text(text: str, rng: random.Random) -> bytes:
    """Words, numbers and lines replaced, removed or doubled; sometimes bytes."""
    if rng.random() < .2:
        return damaged_bytes(text.encode(), rng)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if len(text) > 10 * LONG:
            break
        places = [m.span() for m in re.finditer(r'-?\d+(\.\d+)?|\w+|\W', text)]
        begin, end = rng.choice(places) if places else (0, 0)
        how = rng.randrange(6)
        if how == 0:
            text = text[:begin] + rng.choice(NUMBERS) + text[end:]
        elif how == 1:
            text = text[:begin] + rng.choice(WORDS) + text[end:]
        elif how == 2:
            text = text[:begin] + rng.choice(WORDS) + text[begin:]
        elif how == 3:
            text = text[:begin] + text[end:]
        elif how == 4:
            lines = text.splitlines(keepends=True) or ['']
            line = rng.choice(lines)
            text = text.replace(line, line * (rng.choice((0, 2, 50)) if len(line) < LONG else 0), 1)
        else:
            other = rng.choice(places) if places else (0, 0)
            text = text[:begin] + text[other[0]:other[1]] + text[end:]
    return text.encode('utf-8', 'surrogatepass')


def damaged_tree(tree, rng: random.Random, tensors: bool = False):
    """A copy in which values are replaced by others, removed or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 4))):
        parents = list(_containers(tree))
        if not parents:
            return tree
        parent = rng.choice(parents)
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        value = rng.choice(VALUES + TENSORS * tensors)
        if not keys:
            continue
        key, how = rng.choice(keys), rng.randrange(5)
        if how == 0:
            del parent[key]
        elif how == 1:
            parent[key] = copy.deepcopy(parent[rng.choice(keys)])
        elif how == 2 and isinstance(parent, dict):
            parent[rng.choice(['x', '', 'y' * 300])] = value
        else:
            parent[key] = copy.deepcopy(value)
    return rng.choice(VALUES) if rng.random() < .01 else tree


def _containers(tree):
    if isinstance(tree, dict | list):
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(value)


def damaged_json(tree, rng: random.Random) -> bytes:
    """JSON of a damaged tree, or damaged JSON."""
    if rng.random() < .5:
        return damaged_text(json.dumps(tree, indent=1), rng)
    tree = damaged_tree(tree, rng)
    return json.dumps(tree, default=repr).encode('utf-8', 'surrogatepass')
