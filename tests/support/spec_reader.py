"""A tokenizer written from `docs/tokenizer-spec.md` alone, in plain Python: what the page does not say, it cannot do.

It is slow and short on purpose. Text is a list of cells `(character, start, end)`: a character of the text as it is
now, and where it came from in the text as it was given, in code points.
"""

from __future__ import annotations

import base64
import math
import re
import struct
import unicodedata

VERSION = 1
Cell = tuple[str, int, int]


class Unreadable(Exception):
    """A newer version, or a step that this reader does not know."""


class SpecTokenizer:
    """`spec` is the content of `tokenizer_spec.json`."""

    def __init__(self, spec: dict):
        if spec.get("format") != "palmtop-tokenizer" or spec["spec_version"] > VERSION:
            raise Unreadable(f"version {spec.get('spec_version')}")
        self.spec, self.model = spec, spec["model"]
        self.charsmaps: dict[str, Charsmap] = {}
        self.classes = {
            name: "".join(f"{esc(a)}-{esc(b)}" for a, b in spans) for name, spans in spec["classes"].items()
        }
        self.word, self.space = (re.compile(f"[{self.classes[name]}]") for name in ("word", "whitespace"))
        self.ids = {token: i for i, token in enumerate(spec["vocabulary"]) if token is not None}
        self.added = {token["content"]: token for token in spec["added_tokens"]}
        self.tokens = {i: token for token, i in self.ids.items()} | {
            t["id"]: t["content"] for t in spec["added_tokens"]
        }
        raw = [t["content"] for t in spec["added_tokens"] if not t["normalized"]]
        normal = {
            "".join(c for c, _, _ in self._normalize(cells_of(t["content"]))): t
            for t in spec["added_tokens"]
            if t["normalized"]
        }
        self.raw, self.normal = self._finder(raw), self._finder(normal)
        self.normalized_added = normal
        self.tokens |= {token["id"]: name for name, token in normal.items()}  # they are decoded as normalised
        if self.model["type"] == "bpe":
            self.ranks = {tuple(pair): rank for rank, pair in reversed(list(enumerate(self.model["merges"])))}
        elif self.model["type"] == "unigram":
            self.longest = max(map(len, self.ids), default=0)
            self.unk_score = min(self.model["scores"]) - 10
        elif self.model["type"] not in ("wordpiece", "wordlevel"):
            raise Unreadable(f"model {self.model['type']}")
        self._pieces(self._normalize(cells_of("a b")))  # unknown steps are found now, not with the user's first text
        self.decode([])

    # --- the way in -------------------------------------------------------------------------------------------------

    def encode(self, text, pair=None, *, special=True, truncation=None, padding=None) -> dict:
        """Ids, masks, types and offsets. `truncation`: {max_length, side, strategy}; `padding`: {length, side}."""
        parts = [self._tokens(text)] + ([] if pair is None else [self._tokens(pair)])
        post = self.spec["post_processor"]
        template = post["single" if pair is None else "pair"]
        if not special:
            template = [piece for piece in template if "sequence" in piece]
        if truncation is not None:
            parts = cut(parts, truncation, sum("special" in piece for piece in template))
        if post["trim_offsets"]:
            parts = [self._trim(part, post["trim_keeps_prefix_space"]) for part in parts]
        rows = []
        for piece in template:
            if "special" in piece:
                rows.append((piece["special"], 1, piece["type_id"], 1, (0, 0), None))
            else:
                which = "AB".index(piece["sequence"])
                rows += [(i, 1, piece["type_id"], 0, offsets, which) for i, offsets in parts[which]]
        if padding is not None:
            pad = self.spec["padding"]
            missing = [(pad["id"], 0, pad["type_id"], 1, (0, 0), None)] * (padding["length"] - len(rows))
            rows = missing + rows if padding["side"] == "left" else rows + missing
        names = ("ids", "attention_mask", "type_ids", "special_tokens_mask", "offsets", "sequences")
        return {name: [row[at] for row in rows] for at, name in enumerate(names)}

    def _tokens(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        found = []
        for cells, token in self._split_added(cells_of(text), self.raw, self.added):
            if token is not None:
                found.append((token["id"], (cells[0][1], cells[-1][2])))
                continue
            for inner, other in self._split_added(self._normalize(cells), self.normal, self.normalized_added):
                if other is not None:
                    found.append((other["id"], (inner[0][1], inner[-1][2])))
                    continue
                for piece in self._pieces(inner):
                    found += [(i, (piece[a][1], piece[b - 1][2])) for i, a, b in self._model(piece)]
        return found

    def _finder(self, contents):
        ordered = sorted((c for c in contents if c), key=len, reverse=True)  # leftmost, then longest
        return re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def _split_added(self, cells, finder, tokens):
        text, done = "".join(c for c, _, _ in cells), 0
        for match in finder.finditer(text) if finder else ():
            token, (start, stop) = tokens[match[0]], match.span()
            if token["single_word"] and (
                (start > 0 and self.word.match(text[start - 1])) or (stop < len(text) and self.word.match(text[stop]))
            ):
                continue
            while token["lstrip"] and start > done and self.space.match(text[start - 1]):
                start -= 1
            while token["rstrip"] and stop < len(text) and self.space.match(text[stop]):
                stop += 1
            if start > done:
                yield cells[done:start], None
            yield cells[start:stop], token
            done = stop
        if done < len(cells):
            yield cells[done:], None

    # --- normalisation ----------------------------------------------------------------------------------------------

    def _normalize(self, cells: list[Cell]) -> list[Cell]:
        for step in self.spec["normalizer"]:
            kind = step["type"]
            if kind in ("nfc", "nfd", "nfkc", "nfkd"):
                cells = changed(cells, unicode_form(cells, kind))
            elif kind == "lowercase":
                cells = changed(cells, [(c, int(at > 0)) for cell in cells for at, c in enumerate(cell[0].lower())])
            elif kind == "replace":
                cells = self._replace(cells, step)
            elif kind == "surround":
                inside = re.compile(f"[{self.classes[step['match']['class']]}]")
                around = step["content"]
                cells = [
                    (c, a, b)
                    for cell, a, b in cells
                    for c in ((around, cell, around) if inside.match(cell) else (cell,))
                ]
            elif kind == "strip":
                while step["left"] and cells and self.space.match(cells[0][0]):
                    cells = cells[1:]
                while step["right"] and cells and self.space.match(cells[-1][0]):
                    cells = cells[:-1]
            elif kind == "prepend":
                cells = [(c, *cells[0][1:]) for c in step["content"]] + cells if cells else cells
            elif kind == "precompiled":
                cells = changed(cells, self._charsmap(step["charsmap"]).changes(cells))
            else:
                raise Unreadable(f"normalizer step {kind}")
        return cells

    def _charsmap(self, data: str) -> Charsmap:
        return self.charsmaps.setdefault(data, Charsmap(data, self.classes["extenders"], self.classes["controls"]))

    def _matcher(self, match: dict) -> re.Pattern:
        if "literal" in match:
            return re.compile(re.escape(match["literal"]))
        if "class" in match:
            return re.compile(f"[{self.classes[match['class']]}]")
        if "regex" not in match:
            raise Unreadable(f"matcher {match}")
        return re.compile(match["regex"])

    def _replace(self, cells: list[Cell], step: dict) -> list[Cell]:
        out, done = [], 0
        for match in self._matcher(step["match"]).finditer("".join(c for c, _, _ in cells)):
            start, end = match.span()
            start = match.end(1) if step["keep"] else start
            out += cells[done:start]
            where = cells[end - 1][1:] if end else (0, 0)
            out += [(c, *where) for c in step["content"]]
            done = end
        return out + cells[done:]

    # --- splitting --------------------------------------------------------------------------------------------------

    def _pieces(self, cells: list[Cell]) -> list[list[Cell]]:
        pieces = [cells] if cells else []
        for step in self.spec["pre_tokenizer"]:
            pieces = [part for piece in pieces for part in self._pre_tokenize(piece, step) if part]
        return pieces

    def _pre_tokenize(self, cells: list[Cell], step: dict) -> list[list[Cell]]:
        kind = step["type"]
        if kind == "split":
            return split(cells, self._matcher(step["match"]), step["behavior"], step["invert"])
        if kind == "prepend_space":
            return [cells if cells[0][0] == " " else [(" ", *cells[0][1:]), *cells]]
        if kind == "bytes":
            return [[(BYTES[byte], a, b) for c, a, b in cells for byte in c.encode()]]
        if kind == "metaspace":
            mark, scheme = step["replacement"], step["prepend_scheme"]
            cells = [(mark if c == " " else c, a, b) for c, a, b in cells]
            if cells[0][0] != mark and (scheme == "always" or (scheme == "first" and cells[0][1] == 0)):
                cells = [(mark, *cells[0][1:]), *cells]
            return split(cells, re.compile(re.escape(mark)), "merged_with_next") if step["split"] else [cells]
        if kind == "fixed_length":
            return [cells[at : at + step["length"]] for at in range(0, len(cells), step["length"])]
        raise Unreadable(f"pre-tokenizer step {kind}")

    # --- models: (id, first cell, cell after the last) of each token ------------------------------------------------

    def _model(self, cells: list[Cell]) -> list[tuple[int, int, int]]:
        word = "".join(c for c, _, _ in cells)
        kind = self.model["type"]
        if kind == "wordlevel":
            return [(self.ids.get(word, self.model["unk_id"]), 0, len(word))]
        if kind == "wordpiece":
            return self._wordpiece(word)
        return self._unigram(word) if kind == "unigram" else self._bpe(word)

    def _wordpiece(self, word: str) -> list[tuple[int, int, int]]:
        unknown = [(self.model["unk_id"], 0, len(word))]
        if len(word) > self.model["max_input_chars_per_word"]:
            return unknown
        found, start = [], 0
        while start < len(word):
            prefix = self.model["continuing_subword_prefix"] if start else ""
            for end in range(len(word), start, -1):
                token = self.ids.get(prefix + word[start:end])
                if token is not None:
                    break
            else:
                return unknown
            found.append((token, start, end))
            start = end
        return found

    def _bytes_of(self, text: str) -> list[int] | None:
        if not self.model["byte_fallback"]:
            return None
        ids = [self.ids.get(f"<0x{byte:02X}>") for byte in text.encode()]
        return None if None in ids else ids

    def _bpe(self, word: str) -> list[tuple[int, int, int]]:
        model = self.model
        if model["ignore_merges"] and word in self.ids:
            return [(self.ids[word], 0, len(word))]
        prefix, suffix = model["continuing_subword_prefix"], model["end_of_word_suffix"]
        symbols: list[tuple[int, int, int]] = []
        fusing = False  # whether the last symbol is an unknown one that the next unknown character joins
        for at, character in enumerate(word):
            text = (prefix if at else "") + character + (suffix if at == len(word) - 1 else "")
            token = self.ids.get(text)
            if token is not None:
                symbols.append((token, at, at + 1))
                fusing = False
            elif (ids := self._bytes_of(text)) is not None:
                symbols += [(i, at, at + 1) for i in ids]
                fusing = False
            elif model["unk_id"] is not None:
                if fusing and model["fuse_unk"]:
                    symbols[-1] = (model["unk_id"], symbols[-1][1], at + 1)
                else:
                    symbols.append((model["unk_id"], at, at + 1))
                fusing = True
        while len(symbols) > 1:
            names = [self.tokens[i] for i, _, _ in symbols]
            best = min(range(len(names) - 1), key=lambda k: self.ranks.get((names[k], names[k + 1]), math.inf))
            if (names[best], names[best + 1]) not in self.ranks:
                break
            merged = self.ids[names[best] + names[best + 1][len(prefix) :]]
            symbols[best : best + 2] = [(merged, symbols[best][1], symbols[best + 1][2])]
        return symbols

    def _unigram(self, word: str) -> list[tuple[int, int, int]]:
        unk, scores = self.model["unk_id"], self.model["scores"]
        best: list[tuple[float, int, int] | None] = [(0.0, 0, -1)] + [None] * len(word)
        for start in range(len(word)):
            here, single = best[start][0], False
            for end in range(start + 1, min(len(word), start + self.longest) + 1):
                token = self.ids.get(word[start:end])
                if token is None:
                    continue
                single |= end == start + 1
                if best[end] is None or here + scores[token] > best[end][0]:
                    best[end] = (here + scores[token], start, token)
            if not single and (best[start + 1] is None or here + self.unk_score > best[start + 1][0]):
                if unk is None:
                    raise ValueError(f"no token for {word[start]!r}")
                best[start + 1] = (here + self.unk_score, start, unk)
        path, end = [], len(word)
        while end > 0:
            _, start, token = best[end]
            if token == unk and path and path[-1][0] == unk:
                path[-1] = (unk, start, path[-1][2])  # neighbouring unknown characters are one token
            else:
                path.append((token, start, end))
            end = start
        found = []
        for token, start, end in reversed(path):
            ids = self._bytes_of(word[start:end]) if token == unk else None
            found += [(i, start, end) for i in ids] if ids is not None else [(token, start, end)]
        return found

    # --- offsets and the way out ------------------------------------------------------------------------------------

    def _trim(self, part, keeps_prefix_space):
        out = []
        for at, (token, (start, end)) in enumerate(part):
            text = self.tokens[token]
            blank = [c == BYTES[0x20] or bool(self.space.match(c)) for c in text]
            leading = blank.index(False) if False in blank else len(blank)
            trailing = blank[::-1].index(False) if False in blank else len(blank)
            if leading:
                if keeps_prefix_space and (at == 0 or start == 0):
                    leading -= 1
                start = min(start + leading, end)
            if trailing and end >= trailing:
                end = max(end - trailing, start)
            out.append((token, (start, end)))
        return out

    def decode(self, ids, skip_special=False) -> str:
        special = {t["id"] for t in self.spec["added_tokens"] if t["special"]}
        tokens = [self.tokens[i] for i in ids if i in self.tokens and not (skip_special and i in special)]
        if self.spec["decoder"] is None:
            text = " ".join(tokens)
        else:
            for step in self.spec["decoder"]:
                tokens = self._decode_step(tokens, step)
            text = "".join(tokens)
        if self.spec["cleanup"]:
            for spaced, tight in CLEANUP:
                text = text.replace(spaced, tight)
        return text

    def _decode_step(self, tokens: list[str], step: dict) -> list[str]:
        kind = step["type"]
        if kind == "byte_level":
            data = b"".join(
                bytes(UNBYTES[c] for c in token) if all(c in UNBYTES for c in token) else token.encode()
                for token in tokens
            )
            return [data.decode("utf-8", "replace")]
        if kind == "wordpiece":
            return [self._wordpiece_decoded(at, token, step) for at, token in enumerate(tokens)]
        if kind == "bpe":
            last = len(tokens) - 1
            return [t.replace(step["suffix"], "" if at == last else " ") for at, t in enumerate(tokens)]
        if kind == "metaspace":
            mark = step["replacement"]
            return [t.replace(mark, "" if at == 0 and step["strip"] else " ") for at, t in enumerate(tokens)]
        if kind == "replace":
            pattern = self._matcher(step["match"])
            return [pattern.sub(lambda m: (m[1] if step["keep"] else "") + step["content"], token) for token in tokens]
        if kind == "byte_fallback":
            return joined_bytes(tokens)
        if kind == "fuse":
            return ["".join(tokens)]
        if kind == "strip":
            return [stripped(token, step) for token in tokens]
        raise Unreadable(f"decoder step {kind}")

    def _wordpiece_decoded(self, at: int, token: str, step: dict) -> str:
        if at > 0:
            token = token[len(step["prefix"]) :] if token.startswith(step["prefix"]) else f" {token}"
        for spaced, tight in WORDPIECE_CLEANUP if step["cleanup"] else ():
            token = token.replace(spaced, tight)
        return token


CLEANUP = [(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m")]
CLEANUP += [(" 's", "'s"), (" 've", "'ve"), (" 're", "'re")]
WORDPIECE_CLEANUP = [*CLEANUP[:7], (" do not", " don't"), *CLEANUP[7:]]


def byte_characters() -> list[str]:
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in own else chr(next(others)) for byte in range(256)]


BYTES = byte_characters()
UNBYTES = {character: byte for byte, character in enumerate(BYTES)}


def esc(point: int) -> str:
    return f"\\{chr(point)}" if chr(point) in "\\]^-[&~|" else chr(point)


def cells_of(text: str) -> list[Cell]:
    return [(c, at, at + 1) for at, c in enumerate(text)]


def changed(cells: list[Cell], changes: list[tuple[str, int]]) -> list[Cell]:
    """New characters with their change: 1 is new, 0 stands for one old character, -n for one and n after it."""
    out: list[Cell] = []
    at = 0
    for character, change in changes:
        if change > 0:
            out.append((character, *(cells[at - 1][1:] if at else (0, 0))))
        else:
            out.append((character, *cells[at][1:]))
            at += 1 - change
    return out


def unicode_form(cells: list[Cell], form: str) -> list[tuple[str, int]]:
    full = "NFKD" if "k" in form else "NFD"
    parts = [(d, int(at > 0)) for c, _, _ in cells for at, d in enumerate(unicodedata.normalize(full, c))]
    start = 0
    for end in range(len(parts) + 1):  # canonical order: marks between two starters, stable, by combining class
        if end == len(parts) or unicodedata.combining(parts[end][0]) == 0:
            parts[start:end] = sorted(parts[start:end], key=lambda part: unicodedata.combining(part[0]))
            start = end + 1
    if form.endswith("d"):
        return parts
    out: list[tuple[str, int]] = []
    starter, last = -1, 0
    for character, change in parts:
        order = unicodedata.combining(character)
        if starter >= 0 and (last < order or (last == 0 and starter == len(out) - 1)):
            composed = unicodedata.normalize("NFC", out[starter][0] + character)
            if len(composed) == 1:
                out[starter] = (composed, out[starter][1] + change - 1)
                continue
        out.append((character, change))
        starter, last = (len(out) - 1, 0) if order == 0 else (starter, order)
    return out


def split(cells: list[Cell], matcher: re.Pattern, behavior: str, invert: bool = False) -> list[list[Cell]]:
    spans, done = [], 0
    for match in matcher.finditer("".join(c for c, _, _ in cells)):
        if match.start() > done:
            spans.append((done, match.start(), False))
        if match.end() > match.start():
            spans.append((match.start(), match.end(), True))
        done = match.end()
    spans.append((done, len(cells), False))
    spans = [(a, b, hit != invert) for a, b, hit in spans if b > a]
    if behavior == "removed":
        return [cells[a:b] for a, b, hit in spans if not hit]
    if behavior == "isolated":
        return [cells[a:b] for a, b, _ in spans]
    out: list[list] = []
    if behavior == "contiguous":
        for a, b, hit in spans:
            if out and out[-1][2] == hit:
                out[-1][1] = b
            else:
                out.append([a, b, hit])
    elif behavior == "merged_with_previous":
        for (a, b, hit), (_, _, before) in zip(spans, [(0, 0, True), *spans], strict=False):
            if hit and out and not before:
                out[-1][1] = b
            else:
                out.append([a, b, hit])
    elif behavior == "merged_with_next":
        joined = False
        for a, b, hit in spans:
            if joined and not hit:
                out[-1][1] = b
            else:
                out.append([a, b, hit])
            joined = hit
    else:
        raise Unreadable(f"behavior {behavior}")
    return [cells[a:b] for a, b, _ in out]


class Charsmap:
    """A map of SentencePiece: a trie of bytes and the texts that it leads to."""

    def __init__(self, data: str, extenders: str, controls: str):
        raw = base64.b64decode(data)
        size = struct.unpack_from("<I", raw)[0]
        self.trie = struct.unpack_from(f"<{size // 4}I", raw, 4)
        self.texts = raw[4 + size :]
        self.cluster = re.compile(f"\r\n|[{controls}]|[^{controls}][{extenders}]*")

    def lookup(self, text: str) -> str | None:
        at = offset(self.trie[0])
        for byte in text.encode():
            at ^= byte
            if at >= len(self.trie) or self.trie[at] & 0x800000FF != byte:
                return None
            unit = self.trie[at]
            at ^= offset(unit)
            if unit >> 8 & 1:
                start = self.trie[at] & 0x7FFFFFFF
                return self.texts[start : self.texts.index(0, start)].decode()
        return None

    def changes(self, cells: list[Cell]) -> list[tuple[str, int]]:
        out: list[tuple[str, int]] = []
        for match in self.cluster.finditer("".join(c for c, _, _ in cells)):
            cluster = match[0]
            whole = self.lookup(cluster) if len(cluster.encode()) < 6 else None
            for old in [cluster] if whole is not None else cluster:
                new = whole if whole is not None else self.lookup(old)
                new = old if new is None else new
                out += [(c, int(at >= len(old))) for at, c in enumerate(new)]
                if len(new) < len(old) and out:
                    out[-1] = (out[-1][0], out[-1][1] + len(new) - len(old))
        return out


def offset(unit: int) -> int:
    return (unit >> 10) << ((unit & (1 << 9)) >> 6)


def cut(parts: list, truncation: dict, specials: int) -> list:
    room = truncation["max_length"] - specials
    lengths = [len(part) for part in parts]
    over = sum(lengths) - room
    if over > 0:
        strategy = truncation["strategy"]
        if len(parts) == 1 and strategy != "only_second":
            lengths = [room]
        elif strategy == "longest_first":
            low, high = sorted(lengths)
            high = low if low > room else max(low, room - low)
            if low + high > room:
                low, high = room // 2, room // 2 + room % 2
            lengths = [low, high] if lengths[0] <= lengths[1] else [high, low]
        else:
            which = ("only_first", "only_second").index(strategy)
            if which >= len(lengths) or lengths[which] <= over:
                raise ValueError("too long to be cut so")
            lengths[which] -= over
    left = truncation["side"] == "left"
    return [part[len(part) - n :] if left else part[:n] for part, n in zip(parts, lengths, strict=True)]


def joined_bytes(tokens: list[str]) -> list[str]:
    out: list[str] = []
    data = b""
    for token in [*tokens, None]:
        if token is not None and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
            data += bytes([int(token[3:5], 16)])
            continue
        if data:
            try:
                out.append(data.decode())
            except UnicodeDecodeError:
                out += ["\ufffd"] * len(data)
            data = b""
        if token is not None:
            out.append(token)
    return out


def stripped(token: str, step: dict) -> str:
    start, end = 0, len(token)
    while start < min(step["start"], len(token)) and token[start] == step["content"]:
        start += 1
    while end > start and len(token) - end < step["stop"] and token[end - 1] == step["content"]:
        end -= 1
    return token[start:end]


__all__ = ["SpecTokenizer", "Unreadable"]
