"""The two Debian packages the base model is made from, fetched with apt-get and read as plain text.

`bible-kjv-text` holds the King James Version packed for the `bible` program (package `bible-kjv`), which prints it.
`wordnet-base` holds the WordNet 3.0 data files. Nothing is installed: the packages are only unpacked.
"""

import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {
    "bible-kjv": ("4.38", "amd64"),
    "bible-kjv-text": ("4.38", "all"),
    "wordnet-base": ("1:3.0-37", "all"),
}

# SHA-256 of the unpacked files the recipe reads.
INPUTS = {
    "usr/lib/bible.data": "6c746c2acc8a34bfded980883ff1701a5d68934a1c853ebf88a07b978fe0ae0e",
    "usr/share/wordnet/data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "usr/share/wordnet/data.verb": "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2",
    "usr/share/wordnet/data.adj": "c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7",
    "usr/share/wordnet/data.adv": "444a63bf3955080ab7524f5079cfc07ff9bc682cb98bdb1db73b0fb9829f1139",
}

BOOKS = """Genesis Exodus Leviticus Numbers Deuteronomy Joshua Judges Ruth 1Samuel 2Samuel 1Kings 2Kings 1Chronicles
2Chronicles Ezra Nehemiah Esther Job Psalms Proverbs Ecclesiastes SongofSongs Isaiah Jeremiah Lamentations Ezekiel
Daniel Hosea Joel Amos Obadiah Jonah Micah Nahum Habakkuk Zephaniah Haggai Zechariah Malachi Matthew Mark Luke John
Acts Romans 1Corinthians 2Corinthians Galatians Ephesians Philippians Colossians 1Thessalonians 2Thessalonians
1Timothy 2Timothy Titus Philemon Hebrews James 1Peter 2Peter 1John 2John 3John Jude Revelation""".split()


@dataclass(frozen=True)
class Verse:
    """One verse: the book's name, chapter and verse number from 1, and the text."""

    book: str
    chapter: int
    number: int
    text: str


@dataclass(frozen=True)
class Synset:
    """One WordNet entry: its key (`n00001740`), words, meanings, example sentences and the keys of its hypernyms."""

    key: str
    words: tuple
    senses: tuple
    examples: tuple
    hypernyms: tuple


def fetch(folder):
    """Downloads and unpacks the packages below `folder`, once, and checks the files; returns the unpacked root."""
    folder = Path(folder)
    root = folder / "root"
    if not root.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{name}={version}" for name, (version, _) in PACKAGES.items()]
        subprocess.run(["apt-get", "download", *names], cwd=folder, check=True)
        for package in sorted(folder.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    for name, expected in INPUTS.items():
        found = hashlib.sha256((root / name).read_bytes()).hexdigest()
        if found != expected:
            raise SystemExit(f"{name}: SHA-256 is {found}, the recipe was made with {expected}; "
                             f"remove {folder} and fetch {dict(PACKAGES)} again")
    return root


def read_verses(root):
    """The King James Version in order, as the `bible` program prints it."""
    printed = subprocess.run([str(root.absolute() / "usr/bin/bible"), "-f", "-l100000", "ge1:1-re22:21"],
                             cwd=root / "usr/lib", check=True, capture_output=True, text=True).stdout
    verses, short = [], None
    position = -1
    for line in printed.splitlines():
        match = re.match(r"(\d?[A-Za-z]+)\s?(\d+):(\d+) (.*)$", line)
        if not match:
            raise ValueError(f"not a verse: {line[:80]!r}")
        if match[1] != short:
            short = match[1]
            position += 1
        verses.append(Verse(BOOKS[position], int(match[2]), int(match[3]), match[4].strip()))
    if position + 1 != len(BOOKS) or len(verses) != 31102:
        raise ValueError(f"expected 66 books and 31102 verses, found {position + 1} and {len(verses)}")
    return verses


def split_gloss(gloss):
    """Splits a gloss at the semicolons outside quotes and parentheses into meanings and quoted example sentences."""
    parts, depth, quoted, start = [], 0, False, 0
    for i, char in enumerate(gloss):
        if char == '"':
            quoted = not quoted
        elif not quoted:
            depth += (char == "(") - (char == ")")
            if char == ";" and depth <= 0:
                parts.append(gloss[start:i])
                start = i + 1
    parts.append(gloss[start:])
    parts = [part.strip() for part in parts if part.strip()]
    senses = tuple(part for part in parts if '"' not in part)
    examples = tuple(match.strip(" ,") for part in parts for match in re.findall(r'"([^"]{8,})"', part))
    return senses, examples


def read_synsets(root):
    """Every WordNet entry with at least one meaning, in the order noun, verb, adjective, adverb."""
    synsets = []
    for kind, name in (("n", "noun"), ("v", "verb"), ("a", "adj"), ("r", "adv")):
        for line in (root / f"usr/share/wordnet/data.{name}").read_text("utf-8", errors="strict").splitlines():
            if line.startswith("  "):
                continue
            data, gloss = line.split(" | ", 1)
            fields = data.split()
            count = int(fields[3], 16)
            words = tuple(re.sub(r"\((a|p|ip)\)$", "", word).replace("_", " ") for word in fields[4:4 + 2 * count:2])
            pointers = fields[5 + 2 * count:]
            total = int(fields[4 + 2 * count])
            hypernyms = tuple("n" + pointers[4 * i + 1] for i in range(total) if pointers[4 * i] == "@")
            senses, examples = split_gloss(gloss.strip())
            if senses:
                synsets.append(Synset(kind + fields[0], words, senses, examples, hypernyms if kind == "n" else ()))
    return synsets


def share(text):
    """A number in [0, 1) that depends on the text alone; the splits are drawn with it."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2.0**64


def wordnet_licence(root):
    """The licence text at the head of the WordNet files, without the line numbers."""
    lines = []
    for line in (root / "usr/share/wordnet/data.noun").read_text("utf-8").splitlines():
        if not line.startswith("  "):
            break
        lines.append(re.sub(r"^\s+\d+ ?", "", line).rstrip())
    return "\n".join(lines).strip() + "\n"
