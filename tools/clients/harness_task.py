"""What a task of lm-eval or lmms-eval asks of a line of questions; runs where there is no `fuse`.

`harness_tasks.py` writes this file into the task's folder. A line has `key`, `text`, `images` (paths), `answers`,
`choices` and `skill`.
"""

import unicodedata

from PIL import Image

MARK = "<image>"  # both harnesses write an image so, and put the model's own token there


def images(doc):
    """The pictures of a question, as they are in their files."""
    return [Image.open(path) for path in doc["images"]]


def prompt(doc):
    """The question behind a mark for every image, as lm-eval wants it."""
    return MARK * len(doc["images"]) + doc["text"]


def question(doc):
    """The words of the question; lmms-eval puts the images before them itself."""
    return doc["text"]


def answer(doc):
    """The first right answer."""
    return doc["answers"][0]


def chosen(doc):
    """The number of the right choice."""
    return doc["choices"].index(doc["answers"][0])


def exact(doc, results):
    """1 where the reply equals an answer after `plain` on both sides, else 0: metric `exact` of `fuse eval`."""
    said = results[0][0] if isinstance(results[0], list) else results[0]
    return {"exact": float(plain(said) in {plain(one) for one in doc["answers"]})}


def plain(text):
    """As `fuse.evaluate.metrics.plain`."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.rstrip(".,;:!?").rstrip() or folded
