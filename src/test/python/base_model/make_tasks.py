"""Makes the demo's two tasks from texts the base model has not seen: prompt and completion, one JSON object a line.

`definitions`: "Define: word" and a line feed, answered by the word's meaning. `verses`: "Psalms 23:1" and a line feed,
answered by that verse. A word, and a verse, occurs in one file only.
"""

import argparse
import json
from pathlib import Path

from prepare_data import TASK_BOOKS, entry_split
from sources import fetch, read_synsets, read_verses, share
from tokenizers import Tokenizer

MAX_TOKENS = 62
TRAIN, HELDOUT = 3000, 250


def definitions(synsets):
    """(name, prompt, completion) for each entry with one plain word; a word counts once."""
    seen = set()
    for synset in sorted(synsets, key=lambda s: share("definition " + s.key)):
        word, meaning = synset.words[0], synset.senses[0]
        plain = word.isascii() and word.isalpha() and word.islower() and len(word) > 2
        if entry_split(synset) == "task" and plain and word not in seen and 12 <= len(meaning) and "(" not in meaning:
            seen.add(word)
            yield f"Define: {word}\n", meaning


def poems(verses):
    """(prompt, completion) for each verse of the five books of poems; a text counts once."""
    seen = set()
    for verse in sorted(verses, key=lambda v: share(f"verse {v.book} {v.chapter}:{v.number}")):
        if verse.book in TASK_BOOKS and verse.text not in seen:
            seen.add(verse.text)
            book = verse.book.replace("SongofSongs", "Song of Songs")
            yield f"{book} {verse.chapter}:{verse.number}\n", verse.text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and made files")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the four task files")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    root = fetch(args.work / "data")
    args.out.mkdir(parents=True, exist_ok=True)
    tasks = {"definitions": definitions(read_synsets(root)), "verses": poems(read_verses(root))}
    for name, pairs in tasks.items():
        short = [pair for pair in pairs if len(tokenizer.encode(pair[0] + pair[1]).ids) <= MAX_TOKENS]
        parts = {"heldout": short[:HELDOUT], "train": short[HELDOUT:HELDOUT + TRAIN]}
        for part, chosen in parts.items():
            with (args.out / f"{name}.{part}.jsonl").open("w") as file:
                for prompt, completion in chosen:
                    file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
            print(f"{name}.{part}: {len(chosen)} of {len(short)}")


if __name__ == "__main__":
    main()
