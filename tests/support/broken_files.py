"""Broken method and run files, each with parts of the message that answers it."""

STAGE = '[[stages]]\npatching = "windows"\nfusion = "average"\n'
GROUP = '{ patching = "whole", fusion = "average", weight = 0.7 }'

BAD_TOML = {
    "unknown key": (STAGE + 'guidence = ["sync"]', ["$.stages[0]: a stage has no key 'guidence'", "'guidance'?"]),
    "unknown key at the top": ("seed = 3\n" + STAGE, ["$: a method has no key 'seed'; known: cascade, finish, stages"]),
    "misspelt option": (
        '[[stages]]\npatching = { type = "windows", overlp = 0.5 }\nfusion = "average"\n'
        'guidance = [{ type = "async", scal = 1 }]',
        [
            "$.stages[0].patching: patching 'windows' has no key 'overlp' (did you mean 'overlap'?)",
            "$.stages[0].guidance[0]: guidance 'async' has no key 'scal' (did you mean 'scale'?)",
        ],
    ),
    "misspelt strategies": (
        '[[stages]]\npatching = "window"\nfusion = "averge"\nmasking = "upblock"\nguidance = ["asynk"]',
        [
            "$.stages[0].patching: no patching named 'window' (did you mean 'windows'?); known: dilated, lattice",
            "$.stages[0].fusion: no fusion named 'averge' (did you mean 'average'?)",
            "$.stages[0].masking: no masking named 'upblock' (did you mean 'up-block-attention'?)",
            "$.stages[0].guidance[0]: no guidance named 'asynk' (did you mean 'async'?)",
        ],
    ),
    "wrong types": (
        '[[stages]]\npatching = { type = "windows", overlap = "50", jitter = 1, size = true, tail = "sprad" }\n'
        'fusion = "average"',
        [
            "$.stages[0].patching.overlap: expected a number, got the text '50'",
            "$.stages[0].patching.jitter: expected true or false, got 1",
            "$.stages[0].patching.size: expected a whole number, got true",
            "$.stages[0].patching.tail: got the text 'sprad' (did you mean 'spread'?); known: shift, spread",
        ],
    ),
    "out of range": (
        '[[stages]]\nuntil = 1.5\npatching = { type = "windows", overlap = 1.0, size = 0 }\n'
        'fusion = { type = "gaussian", std = -1 }\nguidance = [{ type = "sync", scale = -2.0 }]',
        [
            "$.stages[0].until: must be <= 1.0, got 1.5",
            "$.stages[0].patching.overlap: must be < 1.0, got 1.0",
            "$.stages[0].patching.size: must be >= 1, got 0",
            "$.stages[0].fusion.std: must be > 0, got -1.0",
            "$.stages[0].guidance[0].scale: must be >= 0, got -2.0",
        ],
    ),
    "not finite": (
        STAGE + 'until = nan\nguidance = [{ type = "sync", scale = inf }]',
        [
            "$.stages[0].until: expected a finite number, got nan",
            "guidance[0].scale: expected a finite number, got inf",
        ],
    ),
    "type missing": (
        '[[stages]]\npatching = { overlap = 0.5 }\nfusion = "average"',
        ["$.stages[0].patching: 'type' is missing, the name of the patching; known: dilated, lattice, whole, windows"],
    ),
    "type is a number": (
        "[[stages]]\npatching = { type = 3 }\nfusion = 3",
        [
            "$.stages[0].patching: 'type' must be the name of a patching, got 3",
            "$.stages[0].fusion: expected a fusion by name or as a table with 'type', got 3",
        ],
    ),
    "slots missing": (
        "[[stages]]\nuntil = 1.0",
        ["$.stages[0].patching: is missing", "$.stages[0].fusion: is missing"],
    ),
    "no stages": ("stages = []", ["$.stages: must have 1 or more entries, got 0"]),
    "stages is a table": (STAGE.replace("[[stages]]", "[stages]"), ["$.stages: expected a list, got a table; put [ ]"]),
    "a stage is a text": ('stages = ["windows"]', ["$.stages[0]: expected a table, got the text 'windows'"]),
    "guidance is a text": (STAGE + 'guidance = "sync"', ["$.stages[0].guidance: expected a list, got the text 'sync'"]),
    "extra_views is a table": (
        STAGE + f"extra_views = {GROUP}",
        ["$.stages[0].extra_views: expected a list, got a table; put [ ] around it"],
    ),
    "extra_views without fusion": (
        STAGE + 'extra_views = [{ patching = "whole" }]',
        ["$.stages[0].extra_views[0].fusion: is missing"],
    ),
    "extra_views above one": (
        STAGE + f"extra_views = [{GROUP}, {GROUP}]",
        ["$.stages[0]: the weights in 'extra_views' add up to more than 1"],
    ),
    "until falls": (
        STAGE + "until = 0.8\n" + STAGE + "until = 0.5\n" + STAGE,
        ["$: 'until' must not fall from stage to stage", "got [0.8, 0.5, 1.0]"],
    ),
    "last until is not 1": (STAGE + "until = 0.8", ["the last of a size must be 1.0, got [0.8]"]),
    "layers of other types": (
        STAGE + 'masking = { type = "up-block-attention", layers = [0, "x", 1.5] }',
        ["$.stages[0].masking.layers[1]: expected a whole number, got the text 'x'", "layers[2]: expected a whole"],
    ),
    "problems in two stages": (
        STAGE + "until = -1.0\n" + STAGE + 'masking = "nome"',
        [
            "$.stages[0].until: must be >= 0.0, got -1.0",
            "$.stages[1].masking: no masking named 'nome' (did you mean 'none'?)",
        ],
    ),
    "key given twice": (
        STAGE + 'fusion = "scatter"',
        ["line 4, column 1: a key is given twice", 'fusion = "scatter"'],
    ),
    "broken syntax": ('[[stages]\npatching = "whole"', ["line 1, column 9: Expected ']]'", "[[stages]"]),
    "text without end": ('[[stages]]\npatching = "whole', ["line 2, column", "patching"]),
    "empty": ("# nothing yet\n", ["is empty"]),
    "neither method nor run": (
        "stage = 3",
        ["is no method", "no run", "no experiment", "it has 'stage' (did you mean 'stages'?)"],
    ),
    "run: wrong values": (
        'prompt = 3\nheight = "512"\nwidth = 32\nseed = -4\nnum_inference_steps = 0\nguidance_scale = 0.5\n'
        "row_batch = true\nwidht = 5",
        [
            "$.prompt: expected text, got 3",
            "$.height: expected a whole number, got the text '512'",
            "$.width: must be >= 64, got 32",
            "$.seed: must be >= 0, got -4",
            "$.num_inference_steps: must be >= 1, got 0",
            "$.guidance_scale: must be >= 1, where 1 switches guidance off, got 0.5",
            "$.row_batch: expected a whole number, got true",
            "$: a run has no key 'widht' (did you mean 'width'?)",
        ],
    ),
    "run: unknown names": (
        'prompt = "a"\nmethod = "asgg"\nmodel = "dem"\nscheduler = "EulerDiscrete"',
        [
            "no method named 'asgg' (did you mean 'asg'?); known: accdiffusion, ",
            "no model or folder 'dem' (did you mean 'demo'?)",
            "no scheduler named 'EulerDiscrete' (did you mean 'EulerDiscreteScheduler'?)",
        ],
    ),
    "run: short name": ('prompt = "a"\nsteps = 3', ["a run has no key 'steps' (did you mean 'num_inference_steps'?)"]),
    "run: size is nonsense": (
        'prompt = "a"\nsize = "big"',
        ["size: 'big' is no number of pixels; write 512, or 768x512"],
    ),
    "run: size is a list": ('prompt = "a"\nsize = [512, 512]', ["size: '[512, 512]' is no number of pixels"]),
    "run: size and height": (
        'prompt = "a"\nsize = 512\nheight = 300',
        ["either the size or width and height, not both"],
    ),
    "run: no prompt": ("size = 512\nseed = -3", ["no prompt", "$.seed: must be >= 0, got -3"]),
    "run: method file missing": ('prompt = "a"\nmethod = "no.toml"', ["no.toml: cannot be read: No such file"]),
}
BAD_YAML = {
    "numbers that YAML reads as text": (
        "stages:\n- patching: {type: windows, overlap: 1e-3}\n  fusion: average",
        ["$.stages[0].patching.overlap: expected a number, got the text '1e-3'; YAML wants a point"],
    ),
    "off": (
        "stages:\n- patching: {type: windows, tail: off}\n  fusion: average\n  masking: off\n  guidance: off",
        [
            "$.stages[0].patching.tail: got false; known: shift, spread; YAML reads on, off, yes and no as",
            "$.stages[0].masking: expected a masking by name or as a table with 'type', got false",
            "$.stages[0].guidance: expected a list, got false",
        ],
    ),
    "nothing": ("stages:\n- patching: windows\n  fusion:", ["$.stages[0].fusion: expected a fusion", "got nothing"]),
    "key given twice": (
        "stages:\n- patching: windows\n  fusion: average\n  fusion: scatter",
        ["line 4, column 3: key 'fusion' is given twice", "fusion: scatter"],
    ),
    "broken syntax": (
        "stages:\n- patching: {type: windows\n  fusion: average",
        ["line 3, column 9: expected ',' or '}'"],
    ),
    "a list at the top": ("- patching: windows", ["a table of keys is expected at the top, got a list"]),
    "a number as a key": (
        "stages:\n- patching: windows\n  fusion: average\n  1: 2",
        ["a stage has no key '1'; known:"],
    ),
    "a list as a key": ("stages:\n- [a]: windows", ["line 2, column 3: found unhashable key"]),
    "code": ("stages: !!python/object/apply:os.getcwd []", ["line 1, column 9: could not determine a constructor"]),
    "control character": ("stages:\n- patching: '\x07'", ["line 2: character '\\x07' is not allowed"]),
    "empty": ("", ["is empty"]),
}
