"""Real English sentences that are on every machine: Python's own language reference, as pydoc ships it."""

import re
from pydoc_data.topics import topics

_CODE = re.compile(r"[`*_<>=\[\]{}|\\\"/#@]|\.\.|::|\d\.\d|[()]{2}")
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def english_sentences(count: int, *, words: tuple[int, int] = (4, 44)) -> list[str]:
    """`count` different sentences, evenly spread from the shortest to the longest, in a mixed fixed order.

    words: fewest and most words of a sentence.
    Raises ValueError when this Python's documentation holds fewer sentences.
    """
    found: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            for sentence in _END.split(" ".join(_without_terms(paragraph.splitlines()))):
                if _is_prose(sentence, words):
                    found.setdefault(sentence)
    if len(found) < count:
        raise ValueError(f"this Python's documentation holds {len(found)} sentences, {count} are wanted")
    by_length = sorted(found, key=lambda s: (len(s), s))
    step = len(by_length) / count
    spread = [by_length[int(i * step)] for i in range(count)]
    # A fixed shuffle: neighbours in the list shall not be of one length.
    return sorted(spread, key=lambda s: (sum(s.encode()) * 2654435761 % 2**32, s))


def _without_terms(lines: list[str]) -> list[str]:
    """The words of a paragraph, less the terms of a definition list (lines that stand out to the left)."""
    indent = [len(line) - len(line.lstrip()) for line in lines]
    return [line.strip() for i, line in enumerate(lines) if indent[i] >= max(indent[i:], default=0)]


def _is_prose(sentence: str, words: tuple[int, int]) -> bool:
    return (
        words[0] <= len(sentence.split()) <= words[1]
        and sentence[0].isupper()
        and sentence.endswith(".")
        and not _CODE.search(sentence)
    )


if __name__ == "__main__":
    for line in english_sentences(200):
        print(line)
