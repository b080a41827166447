"""Classes against the protocols of their slots: every optional member is declared, and nothing passes unread."""

import ast
from pathlib import Path
from typing import ClassVar

import attrs
import pytest

import vitrail
from vitrail.core.config.registry import Registry
from vitrail.core.method.cost import Cost
from vitrail.core.method.members import OPTIONAL, OptionalGuidance, OptionalPatching, has_own, speaks
from vitrail.core.method.registration import SLOTS, misfits, optional, required
from vitrail.errors import RegistrationError
from vitrail.sampling.discovery import build_registry
from vitrail.testing import make_step

ROOT = Path(vitrail.__file__).parent
METHODS = {
    "granularity": lambda self, canvas: (1, 1),
    "patch": lambda self, step, canvas, channels, streams: None,
    "init": lambda self: None,
    "guide": lambda self, step, subject, scene, state: (subject, state),
    "mask": lambda self, step, key, predicted, state: (None, state),
    "fuse": lambda self, step, views, prediction, latents: latents,
    "texts": lambda self, step, prompt, negative_prompt, views, canvas, memory: (),
    "request": property(lambda self: None),
    "check": lambda self, network: None,
    "apply": lambda self, forward: None,
    "upscale": lambda self, picture, size: picture,
    "needs": frozenset(),
    "point": "views",
}


def made(slot, decorate=attrs.frozen, drop=(), **members):
    """A class of a slot with its required members, some of them other ones."""
    body = {name: METHODS[name] for name in required(slot) if name not in drop} | members
    annotations = {name: bool for name, value in members.items() if isinstance(value, type(attrs.field()))}
    return decorate(type("Mine", (), {**body, "__annotations__": annotations}))


@pytest.mark.parametrize("slot", OPTIONAL)
def test_what_has_the_required_members_fits(slot):
    assert misfits(slot, made(slot)) == []


@pytest.mark.parametrize(
    ("slot", "misspelt", "meant"),
    [
        ("guidance", {"follow_start": True}, "follows_start"),
        ("guidance", {"read_mask": True}, "reads_mask"),
        ("guidance", {"costs": lambda self, step, canvas, branches: Cost()}, "cost"),
        ("patching", {"show_whole": True}, "shows_whole"),
        ("patching", {"prepares": lambda self, step, model_input, canvas: model_input}, "prepare"),
        ("masking", {"recall": True}, "recalls"),
        ("masking", {"know_whole": True}, "knows_whole"),
        ("fusion", {"local": True}, "is_local"),
        ("prompting", {"recal": True}, "recalls"),
        ("rectification", {"branch": ()}, "branches"),
        ("upscaler", {"reaches": 3}, "reach"),
        ("masking", {"digests": lambda self: ""}, "digest"),
    ],
)
def test_a_misspelt_optional_member_is_refused_with_the_one_that_is_meant(slot, misspelt, meant):
    (name,) = misspelt
    with pytest.raises(RegistrationError, match=rf"Mine\.{name} means nothing in {slot} \(did you mean '{meant}'\?\)"):
        Registry().add(slot, "mine", made(slot, **misspelt))
    assert misfits(slot, made(slot, **{f"_{name}": 1})) == []


@pytest.mark.parametrize(
    ("slot", "name", "meant"),
    [
        ("guidance", "follow_start", "follows_start"),
        ("patching", "show_whole", "shows_whole"),
        ("fusion", "digests", "digest"),
    ],
)
def test_an_option_that_looks_like_a_member_is_refused_and_any_other_is_not(slot, name, meant):
    unfit = misfits(slot, made(slot, **{name: attrs.field(default=True)}))
    assert unfit == [f"Mine.{name} looks like {meant!r}, which is read if it is there; choose another name"]
    assert misfits(slot, made(slot, strength=attrs.field(default=True))) == []


@pytest.mark.parametrize(
    ("slot", "name", "meant"),
    [
        ("comm", "joins", "join"),
        ("metrics", "digests", "digest"),
        ("metrics", "looks", "look"),
        ("features", "diggest", "digest"),
    ],
)
def test_classes_of_other_slots_may_have_own_names_that_do_not_look_like_a_member(slot, name, meant):
    own = dict.fromkeys(required(slot), property(lambda self: 0)) | {name: lambda self: "", "helper": lambda self: ""}
    told = f"Mine.{name} looks like {meant!r}, which is read if it is there; choose another name"
    unfit = misfits(slot, attrs.frozen(type("Mine", (), own)))
    assert told in unfit
    assert not any("helper" in text for text in unfit)


ADAPTER = {
    "pipelines": ("MyPipeline",),
    "offers": frozenset({"vae"}),
    "defaults": {},
    "source": attrs.field(),
    "suits": property(lambda self: {}),
    "load": lambda self, device=None: None,
    "adopt": classmethod(lambda cls, pipe: None),
}


@pytest.mark.parametrize(
    ("member", "odd", "told"),
    [
        ("load", 3, r"load must be a method, load\(device\), got 3"),
        ("load", lambda self: None, r"load is called as load\(device\), which it does not take"),
        ("adopt", None, r"adopt must be a method, adopt\(pipe\), got None"),
        ("adopt", classmethod(lambda cls: None), r"adopt is called as adopt\(pipe\), which it does not take"),
        ("adopt", lambda self, pipe: None, "adopt is called on the class; decorate it with @classmethod"),
        ("offers", "vae", "offers must be a frozenset of texts, .*, got 'vae'"),
        ("pipelines", "MyPipeline", "pipelines must be a tuple of names of pipeline classes, .*, got 'MyPipeline'"),
        ("defaults", None, "defaults must be a mapping of fields of a run, got None"),
        ("suits", lambda self: {}, "suits is a method; it is read and not called"),
    ],
)
def test_an_adapter_of_a_family_is_checked_like_a_strategy(member, odd, told):
    """Its signatures and the values that are read before there is an instance; a sound one registers."""

    def adapter(**members):
        return attrs.frozen(kw_only=True)(type("Mine", (), {**ADAPTER, **members, "__annotations__": {"source": str}}))

    Registry().add("backbones", "mine", adapter())
    with pytest.raises(RegistrationError, match=f"(?s)backbones 'mine': Mine.{told}"):
        Registry().add("backbones", "mine", adapter(**{member: odd}))


def test_what_is_registered_fits():
    for entry in (entry for slot in SLOTS for entry in build_registry().entries(slot)):
        assert misfits(entry.slot, entry.value) == [], entry


@pytest.mark.parametrize(
    ("slot", "members", "told"),
    [
        ("guidance", {"guide": lambda self, step, subject, scene: None}, r"guide is called as guide\(step, subject"),
        ("guidance", {"guide": lambda self, step, scene, subject, state: None}, "scene, subject in another place"),
        ("guidance", {"init": None}, r"init must be a method, init\(\), got None"),
        ("guidance", {"init": lambda self, canvas: None}, "missing a required argument: 'canvas'"),
        ("guidance", {"guide": lambda self, step, subject, scene, state, *, weight: 0}, "'weight'"),
        ("masking", {"request": lambda self: None}, "request is a method; .* decorate it with @property"),
        ("upscaler", {"path_options": "file"}, r"path_options must be a tuple, got 'file'"),
        ("masking", {"path_options": ("file",)}, r"path_options must be a tuple of names of its options, .*has none"),
        ("rectification", {"path_options": ["path"]}, r"path_options must be a tuple, got"),
        ("patching", {"shows_whole": "yes"}, "shows_whole must be a bool, got 'yes'"),
        ("patching", {"prepare": lambda self, step, latents: None}, r"prepare is called as prepare\(step, model_input"),
        ("guidance", {"needs": "vae"}, "needs must be a frozenset of texts, e.g. .*, got 'vae'"),
        ("guidance", {"needs": property(lambda self: frozenset())}, "needs must be a frozenset"),
        ("guidance", {"needs": attrs.field(default=frozenset())}, "needs is a field, .* annotate it as ClassVar"),
        ("guidance", {"point": attrs.field(default="views")}, "point is a field, .* annotate it as ClassVar"),
        ("guidance", {"point": "cavnas"}, r"got 'cavnas' \(did you mean 'canvas'\?\)"),
        ("guidance", {"tell": lambda self, step, subject, key, mask: None}, "has tell and lacks lag, follow"),
        ("guidance", {"drop": ("guide",), "guid": METHODS["guide"]}, "lacks guide; 'guid' should be 'guide'"),
        ("masking", {"drop": ("mask",)}, "lacks mask$"),
    ],
)
def test_unfit_members_are_refused_with_what_is_wanted(slot, members, told):
    with pytest.raises(RegistrationError, match=f"(?s)Mine.*{told}"):
        Registry().add(slot, "mine", made(slot, **members))


def test_a_class_of_another_slot_is_named_as_what_it_is():
    assert misfits("patching", made("masking")) == ["Mine lacks granularity, patch; it is a masking"]


@pytest.mark.parametrize(
    "guide",
    [
        lambda self, step, subject, scene, state, strength=1.0: (subject, state),
        lambda self, *arguments: arguments,
        lambda self, now, what, around, kept: (what, kept),
        staticmethod(lambda step, subject, scene, state: (subject, state)),
        classmethod(lambda cls, step, subject, scene, state: (subject, state)),
    ],
)
def test_methods_that_can_be_called_by_position_fit(guide):
    assert misfits("guidance", made("guidance", guide=guide)) == []


def test_a_strategy_may_inherit_the_defaults_and_need_not():
    @attrs.frozen
    class Inherits(OptionalGuidance):
        needs: ClassVar[frozenset[str]] = frozenset()
        point: ClassVar[str] = "canvas"
        reads_mask: ClassVar[bool] = True

        def init(self):
            return None

        def guide(self, step, subject, scene, state):
            return subject, state

    for cls, reads in ((Inherits, True), (made("guidance"), False)):
        assert misfits("guidance", cls) == []
        own = OptionalGuidance.of(cls())
        assert (own.reads_mask, own.follows_start) == (reads, False)
        assert own.cost(make_step(), None, 2) == Cost()
        assert own.digest() == ""
        assert not has_own(cls(), OptionalGuidance.cost)
        assert not speaks(cls())
    with pytest.raises(AttributeError):
        OptionalGuidance.of(Inherits()).read_mask  # noqa: B018


def test_own_members_win_over_the_defaults():
    cls = made("patching", prepare=lambda self, step, model_input, canvas: model_input + 1, shows_whole=True)
    own = OptionalPatching.of(cls())
    assert own.prepare(None, 1, None) == 2
    assert own.shows_whole
    assert has_own(cls(), OptionalPatching.prepare)


def test_an_error_inside_a_member_is_not_taken_for_its_absence():
    def broken(self):
        raise AttributeError("no such thing as 'scale'")

    with pytest.raises(AttributeError, match="no such thing as 'scale'"):
        OptionalGuidance.of(made("guidance", reads_mask=property(broken))()).reads_mask  # noqa: B018


@pytest.mark.parametrize("name", ["Mine", "my_own", "my own", "-mine", "mine-", "", "Mîne"])
def test_names_are_kebab_case(name, tmp_path):
    with pytest.raises(RegistrationError, match="a name is lower-case words with hyphens between"):
        Registry().add("guidance", name, made("guidance"))
    with pytest.raises(RegistrationError, match="a name is lower-case words with hyphens between"):
        Registry().add_file("methods", name, tmp_path)


def test_the_name_that_is_meant_is_told():
    with pytest.raises(RegistrationError, match="'soft-mask2'"):
        Registry().add("masking", "SoftMask2", made("masking"))


def literal_reads(path):
    """(line, what is asked, name) of every getattr and hasattr in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            yield node.lineno, ast.unparse(node.args[0]), name


def test_no_optional_member_is_read_by_a_literal_name():
    """Members have one accessor, which knows them: one that is misspelt there is an error and no default."""
    names = {name for slot in OPTIONAL for name in (*required(slot), *optional(slot))}
    subjects = {*OPTIONAL, "strategy", "backbone", "backend"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {subject}, {name!r}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != "members.py"
        for line, subject, name in literal_reads(path)
        if name in names or (name and subject.rpartition(".")[2] in subjects)
    ]
    assert not wrong
