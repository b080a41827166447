"""Corpus of the fuzzer: inputs that once had a bad answer, with a text that the answer must contain now.

By name a case and the text; "" where any clean answer is accepted.
"""

from fuzzing.cases import Case
from fuzzing.command_lines import EXPERIMENT, FILES
from fuzzing.hostile import LONG

RUN = b"prompt: a fox\n"
MANY_BASES = {f"b{i}.toml": f'extends = "b{i + 1}.toml"\n'.encode() for i in range(1200)}
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 108)
)
MERGES = b"a: &a {k0: 1}\n" + b"".join(
    b"m%d: &m%d {k%d: 1, <<: [%s]}\n" % (i, i, i, b",".join([b"*a" if i == 1 else b"*m%d" % (i - 1)] * 20))
    for i in range(1, 9)
)


def checked(name: str, content: bytes) -> Case:
    """Return the case of ``vitrail check`` on a file."""
    return Case(words=["check", name], files={**FILES, name: content})


def line(*words: str) -> Case:
    """Return the case of a command line with the usual files."""
    return Case(words=words, files=FILES)


def fox(*words: str) -> Case:
    """Return the case of planning a picture."""
    return line("sample", "a fox", "--dry-run", *words)


def tiny(*words: str) -> Case:
    """Return the case of sampling the smallest picture."""
    return line("sample", "a fox", "--size", "64", "--steps", "1", "--method", "direct", *words)


def of_prompts(file: str) -> bytes:
    """Return an experiment with a file of prompts."""
    return f'prompts_file = "{file}"\nsizes = [64]\nmethods = ["direct"]\n'.encode()


def of_sizes(size: str) -> bytes:
    """Return an experiment of one size."""
    return f'scenes = 1\nsizes = ["{size}"]\nmethods = ["direct"]\n'.encode()


def varied(text: str) -> Case:
    """Return the case of ``vitrail check`` on an experiment with an additional line."""
    return checked("x.toml", text.encode() + b"\n" + EXPERIMENT)


TEXTS: dict[str, tuple[Case, str]] = {
    "a variant of 300 letters": (fox("--variant", "x" * 300), "is no variant of weight files"),
    "a variant that leaves the folder": (fox("--variant", "/../../x"), "is no variant of weight files"),
    "a scalar that is no int": (checked("x.yaml", RUN + b"seed: !!int x\n"), "line 2, column 7: 'x' is no int"),
    "a scalar that is no date": (checked("x.yaml", RUN + b"seed: !!timestamp foo\n"), "'foo' is no timestamp"),
    "a date of no month": (checked("x.yaml", RUN + b"seed: 2024-13-45\n"), "'2024-13-45' is no timestamp"),
    "a bool that is none": (checked("x.yaml", RUN + b"seed: !!bool maybe\n"), "'maybe' is no bool"),
    "base sixty without end": (checked("x.yaml", RUN + b"seed: 1" + b":1" * 90_000 + b"\n"), "64 characters at most"),
    "brackets in YAML": (checked("x.yaml", b"a: " + b"[" * 3000), "tables and lists within each other"),
    "brackets in TOML": (checked("x.toml", b"a = " + b"[" * 3000), "tables and lists deep"),
    "tables in TOML": (checked("x.toml", b"a = " + b"{a=" * 3000), "tables and lists deep"),
    "a key of many parts": (checked("x.toml", b"a" + b".a" * 200_000 + b" = 1\n"), "a key has 32 parts at most"),
    "a header of many parts": (checked("x.toml", b"[a" + b".a" * 200_000 + b"]\n"), "a key has 32 parts at most"),
    "digits in TOML": (checked("x.toml", b'prompt = "a"\nseed = ' + b"9" * 5000 + b"\n"), "64 bits at most"),
    "digits in YAML": (checked("x.yaml", RUN + b"seed: " + b"9" * 5000 + b"\n"), "64 characters at most"),
    "hexadecimal digits": (checked("x.toml", b'prompt = "a"\nseed = 0x' + b"f" * 5000 + b"\n"), "64 bits at most"),
    "a version without end": (
        checked("x.yaml", b"%YAML 1." + b"9" * 5000 + b"\n---\n" + RUN),
        "cannot be read as YAML",
    ),
    "a letter there is not": (checked("x.yaml", b'prompt: "\\UFFFFFFFF"\n'), "cannot be read as YAML"),
    "an alias bomb": (checked("x.yaml", BOMB + RUN), "with its aliases written out, more than 20000 values"),
    "a bomb of merges": (checked("x.yaml", MERGES + RUN), "with its aliases written out, more than 20000 values"),
    "an alias of itself": (checked("x.yaml", b"a: &a [*a]\n" + RUN), "an alias within what it stands for"),
    "a long text where a number belongs": (
        checked("x.toml", b'prompt = "a"\nseed = "' + b"x" * 900_000 + b'"\n'),
        "(900000 characters)",
    ),
    "a large file": (checked("x.toml", b'prompt = "' + b"x" * 2**21 + b'"\n'), "is larger than 1 MiB"),
    "many values": (checked("x.toml", b"a = [" + b"1," * 30_000 + b"]\n"), "has more than 20000 values"),
    "many unknown keys": (
        checked("x.toml", b'prompt = "a"\n' + b"".join(b"k%d = 1\n" % i for i in range(9000))),
        "'k0'",
    ),
    "many keys in YAML": (checked("x.yaml", RUN + b"".join(b"k%d: 1\n" % i for i in range(9000))), "'k0'"),
    "no UTF-8": (checked("x.toml", b'prompt = "caf\xe9"'), "is not UTF-8 text"),
    "UTF-16": (checked("x.toml", 'prompt = "a"'.encode("utf-16")), "is UTF-16 text"),
    "NUL": (checked("x.toml", b'prompt = "a\x00"'), "byte 11 is NUL"),
    "a byte order mark": (checked("x.toml", b'\xef\xbb\xbfprompt = "a"\r\nmethod = "direct"\r\n'), "sound"),
    "an endless file": (line("check", "/dev/zero"), "a .toml, .yaml or .yml file is expected"),
    "a folder": (line("check", "folder.toml"), "is a folder"),
    "a long name": (line("check", f"{LONG}.toml"), "a name in it may have 255 bytes"),
    "a name with NUL": (line("check", "a\0b.toml"), "null byte"),
    "somebody's home": (line("check", "~nobody-here/x.toml"), "no such user"),
    "many bases": (Case(words=["check", "b0.toml"], files=MANY_BASES), "8 files may stand on each other"),
    "endless prompts": (checked("x.toml", of_prompts("/dev/zero")), "it is no regular file"),
    "prompts that are no text": (checked("x.toml", of_prompts("taken.bin")), "byte 0 is NUL"),
}
SETS: dict[str, tuple[Case, str]] = {
    f"--set {name}": (fox("--set", text), part)
    for name, text, part in (
        ("brackets", "stages.0.until=" + "[" * 3000, "tables and lists deep"),
        ("digits", "stages.0.until=" + "9" * 5000, "64 bits at most"),
        ("hexadecimal digits", "stages.0.until=0x" + "f" * 5000, "64 bits at most"),
        ("a far index", "stages." + "9" * 5000 + ".until=1", "stages is a list of"),
        ("a deep path", "stages" + ".0" * 400 + "=1", "32 parts at most"),
        ("a path through texts", "stages.0.fusion" + ".type" * 400 + "=x", "32 parts at most"),
        ("a key of many parts", "stages.0.until={a" + ".a" * 9000 + "=1}", "a key has 32 parts at most"),
    )
}
BOUNDS: dict[str, tuple[Case, str]] = {
    "a side too long": (fox("--size", "99999"), "must be <= 65536, got 99999"),
    "a side far too long": (fox("--size", "64x1000000"), "--height: must be <= 65536, got 1000000"),
    "digits as a size": (fox("--size", "9" * 5000), "is no number of pixels"),
    "a gigapixel": (fox("--size", "32768"), "4096x4096 latent cells"),
    "a gigapixel by a lattice": (fox("--size", "32768", "--method", "cutdiffusion"), "views a step"),
    "a gigapixel that grows": (fox("--size", "32768", "--method", "demofusion"), "evaluations of the network"),
    "a gigapixel by gradients": (fox("--size", "32768", "--method", "syncdiffusion", "--steps", "4"), "differentiated"),
    "many pictures": (fox("--num-images", "1000000000"), "--num-images: must be <= 10000"),
    "many steps": (fox("--steps", "1000000000"), "--num-inference-steps: must be <= 10000"),
    "many rows": (fox("--row-batch", "1" + "0" * 40), "64 bits"),
    "many ranks": (fox("--ranks", "1000000"), "--ranks must be at most 256"),
    "many more ranks": (fox("--ranks", "9" * 4000), "--ranks must be at most 256"),
    "a seed too far": (fox("--seed", str(2**63 - 1), "--num-images", "2"), "the last picture's seed"),
    "a long wait": (fox("--timeout", "1e308"), "--timeout must be more than 0 seconds and at most"),
    "a shard of digits": (line("run", "e.toml", "--dry-run", "--shard", "9" * 5000 + "/1"), "write i/n"),
    "many repeats": (varied("repeats = 100_000_000"), "$.repeats: must be <= 100000"),
    "many pairs": (varied("repeats = 100_000"), "200000 pairs of a prompt and a seed are more than"),
    "many rows of an experiment": (
        checked(
            "x.toml",
            EXPERIMENT
            + b"".join(
                b'[[axes]]\nname = "a%d"\nvalues = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\noption = "strength"\n' % i
                for i in range(10)
            ),
        ),
        "rows, more than 1000",
    ),
    "many sizes of a cascade": (fox("--method", "demofusion", "--set", "cascade.count=1000000000"), "must be <= 256"),
    "many draws": (varied("resamples = 1_000_000_000"), "$.resamples: must be <= 100000"),
    "a seed below 0": (varied("seeds = [-1]"), "'seeds' are numbers from 0"),
    "no ranks": (varied("ranks = []"), "'ranks' are one or more numbers"),
    "many ranks of an experiment": (varied("ranks = [1000000]"), "from 1 to 256"),
    "a large factor": (checked("x.toml", of_sizes("9" * 400 + "x")), "is no size"),
}
CORNERS: dict[str, tuple[Case, str]] = {
    "simulated ranks": (tiny("--ranks", "2", "--comm", "simulated"), ""),
    "a device without values": (tiny("--device", "meta"), "holds shapes and no values"),
    "a trace at the root": (tiny("--trace", "/"), "--trace '/': is a folder"),
    "a trace of no name": (tiny("--trace", ""), "is a folder"),
    "a picture and a trace in one file": (tiny("-o", "x.png", "--trace", "x.png"), "--output writes this file, too"),
    "a checkpoint of a long name": (tiny("--checkpoint", LONG), "a name in it may have 255 bytes"),
    "a model of a long name": (fox("--model", LONG), "a name in it may have 255 bytes"),
    "a model of a folder too long": (fox("--model", "d/" * 3000 + "x"), "no file has such a path"),
    "a picture of a long name": (fox("--image", LONG), "a name in it may have 255 bytes"),
    "an endless picture": (fox("--image", "/dev/zero"), "it is no regular file"),
    "a recipe in an endless file": (line("replay", "/dev/zero"), "cannot be read as a picture"),
    "a plugin that is a text": (fox("--plugin", "os:sep.x"), "has no 'x'"),
    "a heat map far away": (line("heatmap", "a fox", "-o", f"{LONG}.png"), "a name in it may have 255 bytes"),
    "an endless trace": (line("timeline", "/dev/zero"), "it is no regular file"),
    "a long folder": (line("compare", "a fox", "--out", LONG), "a name in it may have 255 bytes"),
    **{
        f"scheduler {name}": (fox("--scheduler", f"{name}Scheduler"), "scheduler")
        for name in (
            *("ScoreSdeVe", "UnCLIP", "CMStochasticIterative", "RePaint", "DDIMInverse", "DPMSolverMultistepInverse"),
            *("VQDiffusion", "KarrasVe", "EDMEuler", "Amused", "IPNDM", "CogVideoXDPM"),
        )
    },
}
CORPUS = {**TEXTS, **SETS, **BOUNDS, **CORNERS}
