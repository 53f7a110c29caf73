"""Makes the base model's training corpus and its held-out texts: `corpus.jsonl`, `heldout.jsonl` in the work folder.

Each line is {"register": "bible" | "wordnet", "text": ...}. A document is one chapter with a verse a line, or one
WordNet entry as plain sentences. What the tasks of the demo use is left out of both files: five books, six
in a hundred WordNet entries, and the form "Define: word" or "Book 1:1". The splits depend on the texts' names alone.
"""

import argparse
import json
from pathlib import Path

from sources import fetch, read_synsets, read_verses, share, wordnet_licence

TASK_BOOKS = ("Psalms", "Proverbs", "Ecclesiastes", "SongofSongs", "Lamentations")
TASK_ENTRIES = 0.06
HELDOUT_ENTRIES = 0.01
HELDOUT_CHAPTERS = 0.02


def entry_split(synset):
    """`task`, `heldout` or `train`."""
    drawn = share("entry " + synset.key)
    if drawn < TASK_ENTRIES:
        return "task"
    return "heldout" if drawn < TASK_ENTRIES + HELDOUT_ENTRIES else "train"


def chapter_split(book, chapter):
    """`task`, `heldout` or `train`."""
    if book in TASK_BOOKS:
        return "task"
    return "heldout" if share(f"chapter {book} {chapter}") < HELDOUT_CHAPTERS else "train"


def sentence(text):
    """The text with a capital first letter and a mark at its end."""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


def entry_text(synset, by_key):
    """The entry as sentences, one a line; about half of the nouns and verbs name their word first."""
    word = synset.words[0]
    meaning = "; ".join(synset.senses)
    named = share("named " + synset.key) < 0.5 and word.isascii() and word.islower()
    lines = [sentence(meaning)]
    if named and synset.key[0] == "v":
        lines = [sentence(f"to {word} is to {meaning}")]
    elif named and synset.hypernyms:
        kind = by_key.get(synset.hypernyms[0])
        if kind is not None:
            article = "an" if word[0] in "aeiou" else "a"
            lines.insert(0, sentence(f"{article} {word} is a kind of {kind.words[0]}"))
    return "\n".join(lines + [sentence(example) for example in synset.examples])


def documents(verses, synsets):
    """Yields (split, register, text) for every document outside the tasks."""
    chapters = {}
    for verse in verses:
        chapters.setdefault((verse.book, verse.chapter), []).append(verse.text)
    for (book, chapter), lines in chapters.items():
        yield chapter_split(book, chapter), "bible", "\n".join(lines)
    by_key = {synset.key: synset for synset in synsets}
    for synset in synsets:
        yield entry_split(synset), "wordnet", entry_text(synset, by_key)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and made files")
    work = parser.parse_args().work
    root = fetch(work / "data")
    files = {"train": (work / "corpus.jsonl").open("w"), "heldout": (work / "heldout.jsonl").open("w")}
    (work / "LICENSE-WORDNET").write_text(wordnet_licence(root))
    counts = {}
    for split, register, text in documents(read_verses(root), read_synsets(root)):
        documents_seen, characters = counts.get((split, register), (0, 0))
        counts[split, register] = documents_seen + 1, characters + len(text)
        if split in files:
            files[split].write(json.dumps({"register": register, "text": text}, ensure_ascii=False) + "\n")
    for file in files.values():
        file.close()
    for (split, register), (documents_seen, characters) in sorted(counts.items()):
        print(f"{split:8} {register:8} {documents_seen:7} documents {characters:9} characters")


if __name__ == "__main__":
    main()
