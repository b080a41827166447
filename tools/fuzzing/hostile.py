"""Strategies of hostile values, texts and bytes, mixed with some valid ones."""

import math
from datetime import date, datetime, time

from hypothesis import strategies as st

LONG = "x" * 300
PATHS = (
    "",
    " ",
    ".",
    "..",
    "/",
    "~",
    "~/no.toml",
    "~nobody-here/x.toml",
    "no.toml",
    "no/such/folder/file.png",
    "/dev/zero",
    "/dev/null/x.png",
    "/proc/self/mem",
    f"{LONG}.toml",
    f"{LONG}.png",
    f"{'d/' * 3000}x",
    "a\0b",
    "taken.png",
    "folder.toml",
    "x.safetensors",
    "\ud83e\udd8a".encode("utf-16", "surrogatepass").decode("utf-16") + ".png",
)
WORDS = (
    *PATHS,
    "demo",
    "direct",
    "asg-plus",
    "none",
    "0",
    "-1",
    "1e9",
    "nan",
    "inf",
    "True",
    "a fox",
    "\x1b[31mred\x07",
    "\u202eturned",
    "=1+1",
    "{value}",
    "[1, 2]",
    "{type = 'x'}",
    "!!int x",
    LONG,
    "9" * 5000,
    "a.b" * 200,
)
NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 64, 63, 128, 1000, 65536, 65537, 99999, 10**6, 10**9, 2**31, 2**63 - 1, 2**63, 2**64, 10**30),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -1.5, 1e-300, 1e300, math.nan, math.inf, -math.inf),
)
OTHERS = (True, False, date(2024, 1, 1), datetime(2024, 1, 1, 12), time(1, 2), [], {}, [[]], [{}], {"type": "none"})


def _deep(count: int) -> list:
    value: list = []
    for _ in range(count):
        value = [value]
    return value


numbers = st.sampled_from(NUMBERS) | st.integers() | st.floats()
words = st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8"), max_size=20)
scalars = words | numbers | st.sampled_from(OTHERS) | st.none()
large = st.sampled_from([_deep(200), [1] * 3000, ["x"] * 3000, {f"k{i}": i for i in range(3000)}, "y" * 200_000])
values = (
    scalars
    | st.lists(scalars, max_size=4)
    | st.dictionaries(st.sampled_from(["type", "name", "set", "x", ""]) | words, scalars, max_size=4)
    | large
)

SNIPPETS = (  # texts to insert into a file
    b"[" * 3000,
    b"{a=" * 3000,
    b"a: " * 500,
    b"- " * 3000,
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xc3\x28",
    b"\r\n\r",
    b"x = !!int x\n",
    b"seed: !!int x\n",
    b"seed: !!timestamp foo\n",
    b"when: 2024-13-45\n",
    b"when: !!bool maybe\n",
    b"when: !!binary x\n",
    b"&a [*a]\n",
    b"k: &a {<<: *a}\n",
    b"seed: 1" + b":1" * 2000 + b"\n",
    b"seed = " + b"9" * 5000 + b"\n",
    b"seed = 0x" + b"f" * 5000 + b"\n",
    b"%YAML 1." + b"9" * 5000 + b"\n",
    b'x: "\\UFFFFFFFF"\n',
    b"a" + b".a" * 2000 + b" = 1\n",
    b"[" + b"a." * 2000 + b"a]\n",
    b'x = """' + b"\n" * 100,
    b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 108)),
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw damaged bytes of a file: cut off, with flipped, inserted or repeated parts, or other line ends."""
    place = draw(st.integers(0, len(content)))
    match draw(st.sampled_from(["cut", "flip", "put", "put", "twice", "crlf", "bom"])):
        case "cut":
            return content[:place]
        case "flip" if content:
            place = min(place, len(content) - 1)
            return content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
        case "twice":
            return content + content
        case "crlf":
            return content.replace(b"\n", b"\r\n")
        case "bom":
            return b"\xef\xbb\xbf" + content
    return content[:place] + draw(st.sampled_from(SNIPPETS)) + content[place:]
