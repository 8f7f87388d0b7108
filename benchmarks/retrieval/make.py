"""Rebuild the retrieval set from the public FAQs it was taken from.

Usage: python make.py GIT_DIR ...

Each argument is the git directory (bare or not) of a repository named in ``SOURCES`` or
``OTHERS``; the one that holds a source's commit is found automatically. The questions are headings
of the FAQs; the answers are the text below them, without markup and shortened. Writes pairs.jsonl
and unanswerable.jsonl beside this file and prints how many pairs each source gave.
"""

import hashlib
import html
import json
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

MOST_WORDS = 150
LEAST_WORDS = 25
# questions whose words overlap this far (Jaccard) count as one
ALIKE = 0.8
STOP_WORDS = """\
a about all an and any are as at be been being but by can could did do does doing for from get had
has have how i if in into is isn it its just may me my need no not of on or our s should so some t
than that the their them then there these they this those to too up use used using want was we were
what when where which who whom why will with without work works would you your"""
STOP = frozenset(STOP_WORDS.split())
# they mean little alone, ask about people, or (of OTHERS) share a topic with SOURCES
LEFT_OUT = frozenset(
    (
        "Trouble signing in?",
        "How do I access my account?",
        "Why are you so unpleasant/scary/hostile/adjective?",
        "Why aren't you doing X?",
        "Who wrote Prometheus?",
        "Who created Bitcoin?",
        "What does this output from autotune mean?",
        "How do I know if it is working?",
        "But how does it do everything it needs to do to gather data and make decisions and tell"
        " the pump what to do?",
        "What do you do when you change sites?",
        "Where is the power button?",
        "I have a problem, who can I chat with?",
        "I have a problem, who do I mail?",
        "How do I submit my patch?",
        "Why do my single/double quotes fail?",
        'Why do I get "certificate verify failed"?',
        "How do I keep usernames and passwords secret in curl command lines?",
        "I have a GPL program, can I use the libcurl library?",
        "I have a closed-source program, can I use the libcurl library?",
        "I have a BSD licensed program, can I use the libcurl library?",
        "I have a program that uses LGPL libraries, can I use libcurl?",
        "Can I modify curl/libcurl for my program and keep the changes secret?",
        "Can you please change the curl/libcurl license to XXXX?",
        "What are my obligations when using libcurl in my commercial apps?",
    )
)


class Source(NamedTuple):
    """A repository at a commit, its files to read, and their format."""

    name: str
    repository: str
    commit: str
    files: tuple[str, ...]
    kind: str
    most: int = 60


class Pair(NamedTuple):
    """A question and the answer below it: shortened, and what was cut off."""

    question: str
    answer: str
    rest: str


HANDBOOK = "pages/travel-and-leave/travel-and-leave-policies/"
SOURCES = (
    Source(
        "creative-commons",
        "creativecommons/faq",
        "8c7f8e29d36253b6d2a09aaa7d9690eb962afccf",
        ("faq-en.md",),
        "md",
    ),
    Source(
        "scratch",
        "LLK/scratch-www",
        "5a6affe6940ef3681ae026383b8cf3aee4640ca2",
        ("src/views/faq/l10n.json", "src/views/teachers/faq/l10n.json"),
        "scratch",
    ),
    Source(
        "login-gov",
        "GSA-TTS/identity-site",
        "7bc713b98bef38f5cec7668726013a53d8a53a94",
        ("content/_help/", "content/_landing/", "content/_partners/faq._en.md"),
        "page",
    ),
    Source(
        "organic-maps",
        "organicmaps/organicmaps.github.io",
        "67d0363e1892f6c5b5de7b0c9789cf7dc69561b3",
        ("content/faq/", "content/donate/index.md"),
        "page",
    ),
    Source(
        "handbook",
        "18F/handbook",
        "1e4955634d0369f17e5bbc0ebbf8f62e2a3dfe4b",
        (
            HANDBOOK + "travel-guide-faq.md",
            HANDBOOK + "first-time-travel-get-in-concur.md",
            "pages/tools/tock.md",
            "pages/tools/google-groups.md",
            "pages/tools/slack/getting-started.md",
            "pages/tools/slack/guidelines.md",
            "pages/tools/slack/notifications-general-communication.md",
            "pages/about-us/tts-consulting/operations/records.md",
            "pages/about-us/tts-consulting/operations/finance.md",
            "pages/getting-started/classes/writing-lab.md",
        ),
        "md",
    ),
    Source(
        "bitcoin",
        "bitcoin-dot-org/bitcoin.org",
        "39779fb9594d4bd941c2baecb3d64b292a76f8f5",
        ("_templates/faq.html",),
        "bitcoin",
        45,
    ),
    Source(
        "grapheneos",
        "GrapheneOS/grapheneos.org",
        "e0f98aa4e0b9aec6c5af4d7256afe78935ad7f94",
        ("static/faq.html",),
        "html",
    ),
    Source(
        "open-source-guide",
        "github/opensource.guide",
        "ebc9678e39b55ff5e5c8801d1960904692188e90",
        (
            "_articles/legal.md",
            "_articles/leadership-and-governance.md",
            "_articles/starting-a-project.md",
            "_articles/code-of-conduct.md",
            "_articles/finding-users.md",
            "_articles/getting-paid.md",
        ),
        "md",
        20,
    ),
    Source(
        "pypi",
        "pypi/warehouse",
        "6b62157124ab7865029afeeadf282bce27d601d9",
        ("warehouse/templates/pages/help.html",),
        "jinja",
        45,
    ),
    Source(
        "valetudo",
        "Hypfer/Valetudo",
        "b41e048de73e35f39f7fbfb604f1555bb8d45cd4",
        ("docs/pages/faq.md",),
        "md",
    ),
    Source(
        "syncthing",
        "syncthing/docs",
        "766daa6e2b02f68dacc98eccbe49663b6168cbfd",
        ("users/faq-parts/",),
        "rst",
        30,
    ),
    Source(
        "borg",
        "borgbackup/borg",
        "fc74d5f643d17d5341e303cd5ed4ddeb425660f0",
        ("docs/faq.rst",),
        "rst",
        30,
    ),
    Source(
        "restic",
        "restic/restic",
        "a80be1478a4c537f8396e0db2b05120aa78f11e0",
        ("doc/faq.rst",),
        "rst",
    ),
    Source(
        "homebrew",
        "Homebrew/brew",
        "aad366ffaf6a8c94c66d35e4b990d42ac4195305",
        ("docs/FAQ.md",),
        "md",
    ),
    Source(
        "prometheus",
        "prometheus/docs",
        "c105550aad07161f62d02e305ed09799ec6025fa",
        ("docs/introduction/faq.md",),
        "md",
    ),
    Source(
        "jitsi",
        "jitsi/handbook",
        "39ea55309eff25a339b4c31fa5367f25842c0f5a",
        ("docs/faq.md",),
        "md",
    ),
)
# only the questions are kept: nothing in SOURCES answers them
OTHERS = (
    Source(
        "openaps",
        "openaps/docs",
        "30b2443bf932a475b21647ab7b8d3f5f37139fa7",
        ("docs/docs/",),
        "md",
        30,
    ),
    Source(
        "ads",
        "adsabs/adsabs.github.io",
        "20c0135b1eeeeaabf7281a769d53c267218e486c",
        ("_includes/_help/faq/_posts/faqs.md", "_includes/_help/data_faq/_posts/data-faq.md"),
        "md",
        30,
    ),
    Source(
        "curl", "curl/curl", "5c61e168698a72b87437d58ed728bcdea6d5db42", ("docs/FAQ.md",), "md", 40
    ),
    Source(
        "electron",
        "electron/electron",
        "96f3996d8d3ce6e2fcfb86326fc4b953b53936fb",
        ("docs/faq.md",),
        "md",
    ),
)


def git(folder: str, *words: str) -> str:
    """Return git's output in the repository in ``folder``."""
    done = subprocess.run(["git", "--git-dir", folder, *words], check=True, capture_output=True)
    return done.stdout.decode("utf-8")


def home(source: Source, folders: list[str]) -> str:
    """Return the git directory that holds the source's commit."""
    for folder in folders:
        probe = ["git", "--git-dir", folder, "cat-file", "-e", source.commit + "^{commit}"]
        if subprocess.run(probe, check=False, capture_output=True).returncode == 0:
            return folder
    raise SystemExit(f"no folder given holds {source.repository} at {source.commit}")


def texts(source: Source, folder: str) -> Iterator[str]:
    """Yield the English files of the source; of a folder, those whose name has no language."""
    for path in source.files:
        names = [path]
        if path.endswith("/"):
            found = git(
                folder, "ls-tree", "-r", "--name-only", source.commit, "--", path
            ).splitlines()
            names = [name for name in found if re.search(r"(/[\w -]+|\._en)\.(md|rst)$", name)]
        for name in names:
            yield git(folder, "show", f"{source.commit}:{name}")


class Marks(HTMLParser):
    """Turns HTML into Markdown: headings, paragraphs and lists, without code blocks and tables."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.muted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("pre", "table", "script", "style", "nav"):
            self.muted += 1
        elif re.fullmatch(r"h[1-6]", tag):
            self.out.append("\n\n" + "#" * int(tag[1]) + " ")
        elif tag == "li":
            self.out.append("\n- ")
        elif tag in ("p", "ul", "ol", "div", "section", "article"):
            self.out.append("\n\n")
        elif tag == "br":
            self.out.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("pre", "table", "script", "style", "nav"):
            self.muted = max(0, self.muted - 1)
        elif re.fullmatch(r"h[1-6]|p|ul|ol|section|article", tag):
            self.out.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self.muted:
            self.out.append(re.sub(r"\s+", " ", data))


def from_html(text: str) -> str:
    """Return the page as Markdown."""
    marks = Marks()
    marks.feed(text)
    lines = "".join(marks.out).splitlines()
    return re.sub(r"- \s*\n+\s*(?=[^\s-])", "- ", "\n".join(line.strip() for line in lines))


def from_jinja(text: str, _other: str) -> str:
    """Return the template as Markdown, its parameterless macros filled in."""
    macros = dict(re.findall(r"{%\s*macro (\w+)\(\)\s*%}(.*?){%\s*endmacro\s*%}", text, re.S))
    body = text[text.rindex('<section class="faq-group" id="basics">') :]
    for name, value in macros.items():
        body = re.sub(r"{{\s*" + name + r"\(\)\s*}}", value.replace("\\", r"\\"), body)
    body = re.sub(r"{%.*?%}|{#.*?#}", " ", body, flags=re.S)
    return from_html(re.sub(r"{{.*?}}", "\0", body, flags=re.S))


def from_bitcoin(text: str, other: str) -> str:
    """Return the page as Markdown, its sentences taken from the English translation."""
    part = re.search(r"^  faq:\n(.*?)^  \w", other, re.S | re.M)
    words: dict[str, str] = {}
    for key, value in re.findall(
        r"^    (\w+):((?: .*)?\n(?:      .*\n|\n)*)", part[1] if part else "", re.M
    ):
        flat = " ".join(value.split())
        words[key] = (
            flat[1:-1].replace('\\"', '"')
            if flat.startswith('"')
            else flat.removeprefix(">").strip()
        )
    filled = re.sub(
        r"{% translate (\w+)(?: [\w.]+)?\s*%}",
        lambda hit: words.get(hit[1], ""),
        text.split("---", 2)[2],
    )
    return from_html(re.sub(r"{%.*?%}|{{.*?}}", " ", filled))


def from_scratch(text: str, _other: str) -> str:
    """Return the table of sentences as Markdown."""
    table: dict[str, str] = json.loads(text, strict=False)

    def link(hit: re.Match[str]) -> str:
        for key, value in table.items():
            if key.split(".")[-1] in (hit[1], hit[1] + "Text"):
                return value
        # an answer with a gap is left out
        return "\0"

    out: list[str] = []
    for key, title in table.items():
        if not key.endswith("Title") or not title.endswith("?"):
            continue
        stem = key.removesuffix("Title")
        body = [
            value
            for name, value in table.items()
            if re.fullmatch(re.escape(stem) + r"(Body|List|Item)\w*", name)
        ]
        filled = "\n\n".join(re.sub(r"{(\w+)}", link, value) for value in body)
        out.append(f"## {title}\n\n" + ("" if "\0" in filled else filled))
    return "\n\n".join(out)


def from_page(text: str) -> str:
    """Return the page with its title as the heading, and each accordion entry under a heading."""
    title = re.search(r"^title: *[\"']?(.+?)[\"']?$", text, re.M)
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    entries = re.findall(r"^ +title: (.+\?)\n +content: >-\n((?: {12,}.*\n|\n)+)", text, re.M)
    extra = "\n\n".join(f"## {name}\n\n{re.sub(r'(?m)^ +', '', value)}" for name, value in entries)
    return (f"# {title[1]}\n\n" if title else "") + body + "\n\n" + extra


def from_rst(text: str) -> str:
    """Return the reStructuredText as Markdown."""
    order: list[str] = []
    out: list[str] = []
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        line = lines[index]
        below = lines[index + 1] if index + 1 < len(lines) else ""
        if (
            line.strip()
            and re.fullmatch(r"([=\-#~^\"'*+.`])\1{3,}", below)
            and len(below) >= len(line) - 2
        ):
            if below[0] not in order:
                order.append(below[0])
            out += ["", "#" * (order.index(below[0]) + 1) + " " + line.strip(), ""]
            index += 2
            continue
        literal = line.rstrip().endswith("::") and not re.match(
            r"\s*\.\. (note|warning|tip|important|hint)::", line
        )
        if literal or re.match(r"\s*\.\. ", line):
            indent = len(line) - len(line.lstrip())
            note = re.match(r"\s*\.\. (?:note|warning|tip|important|hint)::(.*)", line)
            if note:
                out.append(note[1].strip())
            elif not re.match(r"\s*\.\. ", line):
                out.append(line.rstrip()[:-1])
            index += 1
            while index < len(lines) and (
                not lines[index].strip() or len(lines[index]) - len(lines[index].lstrip()) > indent
            ):
                kept = lines[index].strip() if note else ("<pre>" + lines[index].strip() + "</pre>")
                out.append(kept if lines[index].strip() else "")
                index += 1
            continue
        out.append(line)
        index += 1
    flat = "\n".join(out)
    flat = re.sub(r"\[#?\w+\]_", "", flat)
    flat = re.sub(r":[\w:-]+:`([^`<]*?)\s*(?:<[^>]*>)?`", r"\1", flat)
    flat = re.sub(r"`([^`<]+?)\s*<[^>]*>`__?", r"\1", flat)
    flat = re.sub(r"``([^`]+)``", r"\1", flat)
    return re.sub(r"`([^`\n]+)`_?_?", r"\1", flat)


def plain(text: str) -> tuple[str, int]:
    """Return the Markdown as prose and lists, and how many words of code were left out."""
    code: list[str] = []

    def away(hit: re.Match[str]) -> str:
        code.append(hit[0])
        return "\n\n" if "\n" in hit[0] else ""

    text = re.sub(r"<!--.*?-->|<aside.*?</aside>|\A---\n.*?\n---\n", "", text, flags=re.S)
    text = re.sub(r"<(?:https?://)((?:[\w-]+\.)+\w+)[^>\s]*>", r"\1", text)
    text = re.sub(r"```.*?```|~~~.*?~~~|<pre.*?</pre>", away, text, flags=re.S)
    text = re.sub(
        r"(?:(?<=\n\n)|\A)(?:(?: {4}|\t)(?![ ]*(?:[-*+]|\d+\.) ).*(?:\n|\Z)\n*)+", away, text
    )
    text = re.sub(r"(?m)^\s*\|.*$|^\s*(?:[-*_] ?){3,}$|^\s*(?::::?|import |\[toc\]).*$", "", text)
    text = re.sub(r"{%.*?%}|{#.*?#}|{:.*?}|{{<.*?>}}", "", text, flags=re.S)
    text = re.sub(r"!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])", "", text)
    text = re.sub(
        r"\[([^\]\[]*)\](?:\((?:[^()]|\([^()]*\))*\)|\[[^\]]*\])(?:{[^}]*})?", r"\1", text
    )
    text = re.sub(r"(?m)^\[[^\]]+\]: .*$", "", text)
    text = re.sub(
        r"</?[a-zA-Z][^>]*>",
        lambda hit: "\n\n" if re.match(r"</?(p|li|h\d|div)\b", hit[0]) else " ",
        text,
    )
    text = html.unescape(text).replace("\xa0", " ")
    text = re.sub(r"\*\*(.+?)\*\*|__(.+?)__", lambda hit: hit[1] or hit[2], text, flags=re.S)
    text = re.sub(
        r"(?<![\w*])\*(\S(?:[^*\n]*\S)?)\*(?![\w*])|(?<!\w)_(\S(?:[^_\n]*\S)?)_(?!\w)", _inner, text
    )
    text = re.sub(r"`([^`\n]*)`", r"\1", text).replace("\\*", "*").replace("\\_", "_")
    return text, sum(len(part.split()) for part in code)


def _inner(hit: re.Match[str]) -> str:
    return str(hit[1] or hit[2])


def blocks(text: str) -> Iterator[str]:
    """Yield the paragraphs and list items, a line each."""
    block: list[str] = []
    for raw in [*text.splitlines(), ""]:
        line = re.sub(r"^\s*>\s?", "", raw).strip()
        item = re.match(r"(?:[-*+•]|\d+\.|#\.) +(.*)", line)
        if (not line or item) and block:
            yield " ".join(" ".join(block).split())
            block = []
        if item:
            block = ["- " + item[1]]
        elif line:
            block.append(re.sub(r"^#+ *", "", line))


def loose(mark: str, line: str) -> bool:
    """Return whether a last line announces left-out text: a heading, a question, no full stop."""
    ended = re.search(r"[.!)\"”'\u2019]\W*$", line) is not None
    return (
        line.endswith((":", ","))
        or line.endswith("?")
        or (not mark and not ended and len(line.split()) <= 12)
    )


def shortened(question: str, text: str, most: int) -> str:
    """Return the first sentences, without those with an address or a phone number."""
    kept: list[tuple[str, str]] = []
    count = 0
    for block in blocks(text):
        mark = "- " if block.startswith("- ") else ""
        line = re.sub(r"^A: ", "", block.removeprefix("- ")).replace(question, "").strip()
        sentences: list[str] = []
        for sentence in re.split(r"(?<=[.!?])\s+(?=[\"'“(]?[A-Z])", line):
            if re.search(
                r"https?:|www\.|\S@\w|(?<!\w)@\w|\0|{{|\bpypi\.\w"
                r"|\(?\d{3}\)?[ -]\d{3}|#\w+-|\bAttn\b|\.(?:md|com/|gov/)",
                sentence,
            ):
                continue
            # the thing it names was left out
            if re.search(r"\b(?:a|an|the)[.,:]?$|\b(?:at|see|in|to)[.,]?$", sentence, re.I):
                continue
            if count and count + len(sentence.split()) > most:
                count = most
                break
            if re.search(r"\w", sentence):
                sentences.append(sentence)
                count += len(sentence.split())
        if sentences:
            kept.append((mark, " ".join(sentences)))
        if count >= most:
            break
    while kept and loose(*kept[-1]):
        kept.pop()
    out = ""
    for index, (mark, line) in enumerate(kept):
        following = kept[index + 1][0] if index + 1 < len(kept) else ""
        if line.endswith(":") and not following:
            line = line[:-1] + "."
        out += ("" if not out else "\n" if mark and kept[index - 1][0] else "\n\n") + mark + line
    return re.sub(r" +([.,;:!?])(?=\s|$)", r"\1", out)


def asked(heading: str) -> str:
    """Return the heading as a question, or nothing."""
    flat = plain(re.sub(r"\s*{[#:].*?}|\s+#+$", "", heading))[0]
    flat = " ".join(re.sub(r"^(?:Q:|\d+[.)])\s*", "", flat.strip()).split())
    flat = re.sub(
        r"\s+\?", "?", re.sub(r"\\?\*\??$", "?", flat).replace("{{ include.site }}", "ADS")
    )
    words = re.findall(r"[\w'\u2019-]+", flat.lower())
    if (
        not flat.endswith("?")
        or "??" in flat
        or not 3 <= len(words) <= 30
        or len(content(flat)) < 2
    ):
        return ""
    return (
        flat[0].upper() + flat[1:]
        if " " in flat and flat.split()[0].islower() and flat[:4] != "curl"
        else flat
    )


def content(text: str) -> frozenset[str]:
    """Return the words that carry the meaning."""
    return frozenset(re.findall(r"\w+", text.lower())) - STOP


def pairs(markdown: str) -> Iterator[Pair]:
    """Yield every question heading, with the text up to the next one or a heading of its level."""
    clean = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.S)
    clean = re.sub(
        r"(?ms)^\s*```.*?^\s*```\s*$",
        lambda hit: "```" + hit[0].strip("` \n").replace("#", "") + "```",
        clean,
    )
    heads = [
        (hit.start(), hit.end(), 0 if hit[2].startswith("Related") else len(hit[1]), asked(hit[2]))
        for hit in re.finditer(r"^(#{1,6}) +(.+)$", clean, re.M)
    ]
    for index, (_, start, level, question) in enumerate(heads):
        if not question or question in LEFT_OUT:
            continue
        stop = next(
            (at for at, _, deep, asks in heads[index + 1 :] if deep <= level or asks), len(clean)
        )
        text, code = plain(clean[start:stop])
        prose = len(re.sub(r"[#*>-]", "", text).split())
        answer, whole = (
            shortened(question, text, most) if code <= prose else ""
            for most in (MOST_WORDS, sys.maxsize)
        )
        yield Pair(question, answer, whole.removeprefix(answer))


def read(source: Source, folders: list[str]) -> Iterator[Pair]:
    """Yield the source's questions in the order of its files."""
    folder = home(source, folders)
    with_other: dict[str, Callable[[str, str], str]] = {
        "jinja": from_jinja,
        "bitcoin": from_bitcoin,
        "scratch": from_scratch,
    }
    alone: dict[str, Callable[[str], str]] = {"html": from_html, "page": from_page, "rst": from_rst}
    for text in texts(source, folder):
        if source.kind in with_other:
            other = (
                git(folder, "show", f"{source.commit}:_translations/en.yml")
                if source.kind == "bitcoin"
                else ""
            )
            markdown = with_other[source.kind](text, other)
        else:
            markdown = alone.get(source.kind, str)(text)
        yield from pairs(markdown)


def slug(question: str, taken: set[str]) -> str:
    """Return an unused file name for the question."""
    base = "-".join(
        re.findall(r"[a-z0-9]+", question.lower().replace("'", "").replace("\u2019", ""))
    )[:60].strip("-")
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    taken.add(name)
    return name


def spread(found: list[Pair], most: int) -> list[Pair]:
    """Return at most ``most`` of the pairs, evenly from all of them."""
    if len(found) <= most:
        return found
    return [found[index * len(found) // most] for index in range(most)]


def half(question: str) -> str:
    """Return the half that a question belongs to; it never changes."""
    return "tune" if hashlib.sha256(question.encode()).digest()[-1] % 2 == 0 else "report"


def new(question: str, seen: list[frozenset[str]]) -> bool:
    """Return whether no earlier question is nearly the same, and remember this one."""
    words = content(question)
    if any(len(words & old) >= ALIKE * len(words | old) for old in seen):
        return False
    seen.append(words)
    return True


def recall(rows: list[dict[str, str]]) -> str:
    """Describe how often full-text search alone finds the answer."""
    base = sqlite3.connect(":memory:")
    base.execute("create virtual table answers using fts5(answer, tokenize='porter unicode61')")
    base.executemany(
        "insert into answers (rowid, answer) values (?, ?)",
        enumerate(row["answer"] for row in rows),
    )
    first = five = 0
    for number, row in enumerate(rows):
        query = " OR ".join(f'"{word}"' for word in sorted(content(row["question"])))
        hits = base.execute(
            "select rowid from answers where answers match ? order by rank limit 5", (query,)
        ).fetchall()
        ranks = [hit[0] for hit in hits]
        first += ranks[:1] == [number]
        five += number in ranks
    return f"recall@1 {first / len(rows):.2f}, recall@5 {five / len(rows):.2f}"


def main(folders: list[str]) -> None:
    """Write the two files."""
    here = Path(__file__).parent
    seen: list[frozenset[str]] = []
    rows: list[dict[str, str]] = []
    for source in SOURCES:
        taken: set[str] = set()
        answered = [
            pair
            for pair in read(source, folders)
            if len(pair.answer.split()) >= LEAST_WORDS and new(pair.question, seen)
        ]
        for pair in spread(answered, source.most):
            name = f"{source.name}/{slug(pair.question, taken)}.md"
            side = half(pair.question)
            row = {"question": pair.question, "source": name, "answer": pair.answer, "half": side}
            rows.append(row | ({"rest": pair.rest} if pair.rest else {}))
    counts = Counter((row["source"].split("/")[0], row["half"]) for row in rows)
    for source in SOURCES:
        tune, report = counts[source.name, "tune"], counts[source.name, "report"]
        print(f"{source.name:20} {tune + report:4} tune {tune:3} report {report:3}")
    print(len(rows), dict(Counter(row["half"] for row in rows)), recall(rows))
    (here / "pairs.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8"
    )

    others: list[str] = []
    for source in OTHERS:
        fresh = [pair for pair in read(source, folders) if new(pair.question, seen)]
        chosen = spread(fresh, source.most)
        print(f"{source.name:20} {len(chosen):4} unanswerable")
        others += [
            json.dumps({"question": pair.question}, ensure_ascii=False) + "\n" for pair in chosen
        ]
    (here / "unanswerable.jsonl").write_text("".join(others), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
