"""The compiled reader of valgrind --tool=lackey --trace-mem=yes: lines like " L 1ffeffe7a8,8", "I  04001092,3"."""

import numba
import numpy as np

NEWLINE, SPACE, COMMA = 10, 32, 44
KIND_LETTERS = {"L": 0, "S": 1, "I": 2, "M": 3}
_L, _S, _I, _M = (ord(letter) for letter in KIND_LETTERS)


@numba.njit(cache=True)
def parse(text, out):
    """(accesses that the whole lines of `text` hold, where the rest begins, lines that are none)."""
    n, i, end, others = 0, 0, len(text), 0
    while end > 0 and text[end - 1] != NEWLINE:
        end -= 1
    while i < end:
        start = i
        while text[i] != NEWLINE:
            i += 1
        stop, i = i, i + 1
        if stop - start < 6 or text[start + 2] != SPACE or (text[start] != SPACE and text[start] != _I):
            others += 1
            continue
        letter = text[start] if text[start] == _I else text[start + 1]
        kind = 0 if letter == _L else 1 if letter == _S else 2 if letter == _I else 3
        address, size, j = np.uint64(0), np.int64(0), start + 3
        if text[start] == _I:
            good = text[start + 1] == SPACE
        else:
            good = letter == _L or letter == _S or letter == _M
        while j < stop and text[j] == SPACE:
            j += 1
        good = good and j < stop and text[j] != COMMA
        while j < stop and text[j] != COMMA:
            c = np.int64(text[j])
            digit = c - 48 if 48 <= c <= 57 else c - 87 if 97 <= c <= 102 else -1
            good = good and digit >= 0
            address = address << np.uint64(4) | np.uint64(max(digit, 0))
            j += 1
        good = good and j < stop
        for k in range(j + 1, stop):
            digit = np.int64(text[k]) - 48
            good = good and 0 <= digit <= 9
            size = size * 10 + digit
        if not good or size < 1 or size > 4096:
            others += 1
            continue
        out[n]["addr"], out[n]["size"], out[n]["thread"], out[n]["kind"] = address, size, 0, kind
        n += 1
    return n, end, others
