"""The compiled reader of valgrind --tool=lackey --trace-mem=yes: lines like " L 1ffeffe7a8,8", "I  04001092,3"."""

import numba
import numpy as np

NEWLINE, SPACE, COMMA = 10, 32, 44
KIND_LETTERS = {"L": 0, "S": 1, "I": 2, "M": 3}
_L, _S, _I, _M = (ord(letter) for letter in KIND_LETTERS)
_NO_DIGIT = 255
_DIGITS = np.full(256, _NO_DIGIT, np.uint8)  # by character: of a hexadecimal number
_DIGITS[[ord(digit) for digit in "0123456789abcdef"]] = np.arange(16)
_KINDS = np.full((256, 256), _NO_DIGIT, np.uint8)  # by the first two characters of a line
for _letter, _kind in KIND_LETTERS.items():
    _KINDS[(ord("I"), SPACE) if _letter == "I" else (SPACE, ord(_letter))] = _kind


@numba.njit(cache=True)
def parse(text, out):
    """(accesses that the whole lines of `text` hold, where the rest begins, lines that are none).

    One pass: each loop ends at the first character that it does not take, at the latest at the newline that ends the last line.
    """
    n, i, end, others = 0, 0, len(text), 0
    while end > 0 and text[end - 1] != NEWLINE:
        end -= 1
    while i < end:
        good = False
        if text[i] != NEWLINE and text[i + 1] != NEWLINE and text[i + 2] == SPACE:
            kind = _KINDS[text[i], text[i + 1]]
            i += 3
            while text[i] == SPACE:
                i += 1
            address, size, first = np.uint64(0), np.int64(0), i
            digit = _DIGITS[text[i]]
            while digit != _NO_DIGIT:
                address = address << np.uint64(4) | np.uint64(digit)
                i += 1
                digit = _DIGITS[text[i]]
            if kind != _NO_DIGIT and i > first and text[i] == COMMA:
                i += 1
                digit = text[i] - np.uint8(48)
                while digit <= 9:
                    size = size * 10 + digit
                    i += 1
                    digit = text[i] - np.uint8(48)
                good = bool(text[i] == NEWLINE and 1 <= size <= 4096)
        if good:
            access = out[n]
            access["addr"], access["size"], access["thread"], access["kind"] = address, size, 0, kind
            n += 1
        else:
            others += 1
            while text[i] != NEWLINE:
                i += 1
        i += 1
    return n, end, others
