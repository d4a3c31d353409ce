"""Grades that a grader has given already: a policy says the same again and again."""

import collections
import hashlib

from cgrpo_jax.rewards.answers import Grade

_REMEMBERED = 1 << 14  # grades


class KnownGrades:
    """The newest grades, by kind of grader, response and gold answer."""

    def __init__(self):
        self._grades: collections.OrderedDict[bytes, Grade] = collections.OrderedDict()

    def recall(self, kind: str, response: str, answer: str) -> Grade | None:
        """Returns a grade, None if it is not known."""
        key = _key(kind, response, answer)
        if key in self._grades:
            self._grades.move_to_end(key)
        return self._grades.get(key)

    def remember(self, kind: str, response: str, answer: str, found: Grade) -> None:
        """Keeps a grade, in the place of the one that was asked for the longest ago."""
        self._grades[_key(kind, response, answer)] = found
        if len(self._grades) > _REMEMBERED:
            self._grades.popitem(last=False)


def _key(kind: str, response: str, answer: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for text in (kind, response, answer):
        encoded = text.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()
