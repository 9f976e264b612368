"""Collect freely licensed text from Debian packages, split it by document, train a BPE, tokenise.

Four kinds of text: ``prose``, ``python``, ``c`` and ``markup``. Every document goes wholly to the
training part or wholly to the held-out part, decided by a hash of its name. Run with the packages
of README.md installed (or unpacked below ``--root``)::

    python corpus.py --out /tmp/tiny_olmoe_corpus
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

KINDS = ("prose", "python", "c", "markup")
END = "<|endoftext|>"
VOCABULARY = 2048
HELDOUT_PERCENT = 8
KIND_LIMIT_BYTES = 8_000_000
BLOCK_BYTES = 60_000
EXCERPT_DOCUMENTS = 16
EXCERPT_BYTES = 26_000
BOOK_CODES = (
    "gen exo lev num deu jos jdg rut 1sa 2sa 1ki 2ki 1ch 2ch ezr neh est job psa pro ecc son isa jer lam "
    "eze dan hos joe amo oba jon mic nah hab zep hag zec mal mat mar luk joh act rom 1co 2co gal eph phi "
    "col 1th 2th 1ti 2ti tit phm heb jam 1pe 2pe 1jo 2jo 3jo jud rev"
)

# (kind, folder or file, patterns, most bytes taken)
TREES = (
    ("prose", "usr/share/doc/debian-handbook/html/en-US", ("*.html",), 2_000_000),
    ("python", "usr/lib/python3.11", ("*.py",), 8_000_000),
    ("c", "usr/include/python3.11", ("*.h",), 1_000_000),
    ("c", "usr/include/openssl", ("*.h",), 1_500_000),
    ("c", "usr/include/tcl8.6", ("*.h",), 1_200_000),
    ("c", "usr/include/X11", ("*.h",), 1_000_000),
    ("c", "usr/include/GL", ("*.h",), 600_000),
    ("c", "usr/include/unicode", ("*.h",), 1_200_000),
    ("c", "usr/include/linux", ("*.h",), 1_500_000),
    ("c", "usr/include/llvm-14", ("*.h",), 2_500_000),
    ("markup", "usr/share/doc/python3.11/html/_sources", ("*.txt",), 4_500_000),
)
BOOKS = (
    ("prose", "usr/share/doc/jargon-text/jargon.txt.gz"),
    ("prose", "usr/share/debian-reference/debian-reference.en.txt.gz"),
    ("prose", "usr/share/developers-reference/developers-reference.txt.gz"),
    ("prose", "usr/share/doc/debian-policy/policy.txt.gz"),
)


class _Text(HTMLParser):
    """Visible text of an HTML page, one line per block element."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.hidden += tag in ("script", "style", "head")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style", "head")
        if tag in ("p", "div", "li", "h1", "h2", "h3", "h4", "pre", "tr"):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(" ".join(data.split("\n")))


def plain(html: str) -> str:
    parser = _Text()
    parser.feed(html)
    lines = (" ".join(line.split()) for line in "".join(parser.parts).splitlines())
    return "\n".join(line for line in lines if line)


def order_key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def is_heldout(name: str) -> bool:
    return int(order_key("split:" + name)[:8], 16) % 100 < HELDOUT_PERCENT


def find(roots: list[Path], path: str) -> Path | None:
    return next((root / path for root in roots if (root / path).exists()), None)


def tree_documents(
    roots: list[Path], kind: str, path: str, patterns: tuple[str, ...], limit: int
) -> Iterator:
    top = find(roots, path)
    if top is None:
        print(f"absent: {path}")
        return
    files = [
        f for p in patterns for f in top.rglob(p) if f.is_file() and "/test" not in str(f)[len(str(top)) :]
    ]
    total = 0
    for file in sorted(files, key=lambda f: order_key(str(f.relative_to(top)))):
        text = file.read_text(encoding="utf-8", errors="ignore")
        if kind == "prose":
            text = plain(text)
        if not 400 < len(text) < 300_000:
            continue
        total += len(text)
        if total > limit:
            return
        yield kind, f"{path}/{file.relative_to(top)}", text


def book_documents(roots: list[Path]) -> Iterator:
    for kind, path in BOOKS:
        file = find(roots, path)
        if file is None:
            print(f"absent: {path}")
            continue
        text = gzip.decompress(file.read_bytes()).decode("utf-8", errors="ignore")
        for at in range(0, len(text), BLOCK_BYTES):
            yield kind, f"{path}#{at}", text[at : at + BLOCK_BYTES]
    books = BOOK_CODES.split()
    program, data = find(roots, "usr/bin/bible"), find(roots, "usr/lib/bible.data")
    if program is None or data is None:
        print("absent: bible-kjv")
        return
    for book, following in zip(books, [*books[1:], None], strict=True):
        last = f"{following}1:1" if following else "rev22:21"
        command = [str(program), "-p", str(data.parent), "-f", f"{book}1:1-{last}"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if following:
            text = text[: text.rstrip("\n").rfind("\n") + 1]  # the first verse of the next book
        yield "prose", f"bible/{book}", text


def collect(roots: list[Path]) -> dict[str, dict[str, list[tuple[str, str]]]]:
    parts: dict = {part: {kind: [] for kind in KINDS} for part in ("train", "heldout")}
    seen: set[str] = set()
    used = dict.fromkeys(KINDS, 0)

    def documents() -> Iterator:
        yield from book_documents(roots)
        for kind, path, patterns, limit in TREES:
            yield from tree_documents(roots, kind, path, patterns, limit)

    for kind, name, text in documents():
        digest = order_key(text)
        if digest in seen or used[kind] > KIND_LIMIT_BYTES:
            continue
        seen.add(digest)
        used[kind] += len(text)
        parts["heldout" if is_heldout(name) else "train"][kind].append((name, text))
    for part in parts.values():
        for documents_of_kind in part.values():
            documents_of_kind.sort(key=lambda item: order_key(item[0]))
    return parts


def excerpts(texts: list[str]) -> list[str]:
    """A run of whole lines from the middle of each of some documents: what routing is captured on."""
    texts = texts[:EXCERPT_DOCUMENTS]
    size = EXCERPT_BYTES // len(texts)
    found = []
    for text in texts:
        at = text.rfind("\n", 0, max(1, (len(text) - size) // 2)) + 1
        end = text.find("\n", at + size)
        found.append(text[at : end + 1 if end > 0 else None])
    return found


def train_tokenizer(texts: list[str]):  # noqa: ANN201
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", action="append", type=Path, help="where packages are unpacked, besides /")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    parts = collect([Path("/"), *(options.root or [])])
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer([text[:20_000] for kind in KINDS for _, text in parts["train"][kind]])
    tokenizer.save(str(options.out / "tokenizer.json"))
    report = {}
    for part, kinds in parts.items():
        for kind, documents in kinds.items():
            encoded = tokenizer.encode_batch([text for _, text in documents])
            ids = np.concatenate([np.array([*item.ids, 0], np.uint16) for item in encoded])
            np.save(options.out / f"{part}_{kind}.npy", ids)
            size = sum(len(text.encode()) for _, text in documents)
            report[f"{part}_{kind}"] = {"documents": len(documents), "bytes": size, "tokens": int(ids.size)}
            names = "".join(f"{name}\n" for name, _ in documents)
            (options.out / f"{part}_{kind}.list").write_text(names)
            if part == "heldout":
                (options.out / f"{kind}.txt").write_text(END.join(excerpts([text for _, text in documents])))
    (options.out / "corpus.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
