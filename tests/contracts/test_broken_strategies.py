"""Strategies that are wrong in one way each, and the check of their slot that catches them."""

from typing import ClassVar

import pytest
import torch
from attrs import evolve, field, frozen

from vitrail import testing
from vitrail.core.engine.guidance_context import Branches
from vitrail.core.geometry.views import Patches
from vitrail.core.method.attention_maps import AttentionRequest
from vitrail.core.method.cost import Cost, UpscalingCost
from vitrail.errors import ConfigError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.guidance.structure import AsyncGuidance, SyncGuidance
from vitrail.plugins.patching.windows import Windows
from vitrail.plugins.upscaler.lanczos import Lanczos

KEPT_IN_THE_MODULE = []


@frozen
class Broken:
    """Wrong in the way that it is told."""

    needs: ClassVar[frozenset[str]] = frozenset()
    how: str = ""
    kept: list = field(factory=list, eq=False, repr=False)


# ---------------------------------------------------------------- guidance


def drifts(self, tensor, scene):
    """What ranks must not do."""
    match self.how:
        case "global randomness":
            return tensor + torch.randn_like(tensor)
        case "state on itself":
            self.kept.append(1)
            return tensor + len(self.kept)
        case "state in its module":
            KEPT_IN_THE_MODULE.append(1)
            return tensor + len(KEPT_IN_THE_MODULE)
        case "its rank":
            return tensor + scene.exchange.rank
        case "ambient dtype":
            return tensor * torch.tensor(0.1).double().float()
        case "ambient result":
            return tensor * torch.ones(1)
    return None


@frozen
class BrokenGuidance(Broken):
    point: ClassVar[str] = "canvas"

    def init(self):
        return self.kept if self.how == "one state for all runs" else None

    def guide(self, step, subject, scene, state):
        if self.how in ("no state", "nothing"):
            return subject if self.how == "no state" else None
        if self.how == "another kind":
            return subject.model_output, state
        output = subject.model_output
        changed = drifts(self, output, scene)
        if changed is None:
            changed = self._wrong(step, subject, scene)
        return evolve(subject, model_output=changed), state

    def _wrong(self, step, subject, scene):
        output = subject.model_output
        match self.how:
            case "float64":
                return output.double()
            case "float16":
                return output.half()
            case "shape":
                return output[..., 1:]
            case "not finite":
                return output / 0
            case "not finite at the noisy end":
                return output / step.alpha if step.alpha else output / torch.zeros(())
            case "not finite at the clean end":
                return output / step.sigma if step.sigma else output / torch.zeros(())
            case "in place":
                return output.add_(1)
            case "needs a mask":
                return output * scene.mask
            case "writes into the mask":
                return output if scene.mask is None else output + scene.mask.zero_()
            case "divides by alpha":
                return output + subject.clean * (1 / step.alpha)
        return output


GUIDANCE = [
    ("nothing", r"expected \(subject, state\), got NoneType"),
    ("no state", r"expected \(subject, state\), got Prediction"),
    ("another kind", "received a Prediction and returned a Tensor"),
    ("float64", "got float64"),
    ("float16", "got float16"),
    ("shape", "got float32"),
    ("not finite", "not finite at step 0 of 10, size 0, epsilon"),
    ("not finite at the noisy end", "not finite at .*alpha 0"),
    ("not finite at the clean end", "not finite at .*sigma 0"),
    ("in place", "must not write into its input"),
    ("writes into the mask", "must not write into the scene"),
    ("one state for all runs", "state must start anew in every run"),
    ("global randomness", "draws from the global random state"),
    ("state on itself", "keeps something on itself"),
    ("state in its module", "it keeps something|kept in the class or its module"),
    ("its rank", "rank 1 of 2 answers otherwise"),
    ("ambient dtype", r"changes with torch.set_default_dtype\(torch.bfloat16\)"),
    ("ambient result", "got float64"),
]


@pytest.mark.parametrize(("how", "told"), GUIDANCE)
def test_guidance(how, told):
    with pytest.raises(AssertionError, match=told):
        testing.check_guidance(BrokenGuidance(how))


@pytest.mark.parametrize(("how", "kind"), [("divides by alpha", ZeroDivisionError), ("needs a mask", TypeError)])
def test_guidance_that_raises_at_the_ends_or_without_a_mask(how, kind):
    with pytest.raises(kind):
        testing.check_guidance(BrokenGuidance(how))


@pytest.mark.parametrize("how", ["", "sound"])
def test_a_sound_guidance_passes(how):
    testing.check_guidance(BrokenGuidance(how))


@frozen
class Miscounting(BrokenGuidance):
    """Says how much it asks of networks in a way that cannot be added up."""

    def _counted(self, member):
        if member not in self.how:
            return Cost(rows={64: 2}, decodes=1)
        match self.how.split(": ")[1]:
            case "a number":
                return 3
            case "a part of a forward":
                return Cost(rows={64: 0.5})
            case "no number":
                return Cost(rows={64: float("nan")})
            case "of no cells":
                return Cost(rows={0: 1})
            case "below 0":
                return Cost(gradients=-1)
        return None

    def cost(self, step, canvas, branches):
        return self._counted("of the canvas")

    def cost_of_views(self, step, outline, branches):
        return self._counted("of views")


COSTS = [
    ("nothing", "must return a Cost from `{}`, got nothing"),
    ("a number", "must return a Cost from `{}`, got a int"),
    ("a part of a forward", r"must return a Cost of whole numbers from `{}`, .*rows={{64: 0.5}}"),
    ("no number", r"rows={{64: nan}}"),
    ("of no cells", r"of views of 1 cell or more and no count below 0, got Cost\(rows={{0: 1}}"),
    ("below 0", "gradients=-1"),
]


@pytest.mark.parametrize(("how", "told"), COSTS)
@pytest.mark.parametrize(("of", "member"), [("of the canvas", "cost"), ("of views", "cost_of_views")])
def test_guidance_that_miscounts(of, member, how, told):
    with pytest.raises(AssertionError, match=told.format(member)):
        testing.check_guidance(Miscounting(f"{of}: {how}"))


def test_guidance_that_counts_well_passes():
    testing.check_guidance(Miscounting("sound"))


@frozen
class AtAFurtherSize(Broken):
    """Wrong only where a further size has begun."""

    point: ClassVar[str] = "before"
    follows_start: ClassVar[bool] = True

    def init(self):
        return None

    def guide(self, step, subject, scene, state):
        if scene.start is None or self.how == "idle":
            return subject, None
        if self.how == "in place":
            return subject.add_(scene.start.noised(step)), None
        if self.how == "in the scene":
            return scene.start.clean.add_(1), None
        return subject / 0 if self.how == "not finite" else scene.start.picture, None


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("idle", "changes nothing where it has a picture to follow"),
        ("in place", "must not write into its input"),
        ("in the scene", "must not write into the scene"),
        ("not finite", "not finite at step 0 of 10, size 1"),
        ("the picture", r"must return the latents as float32 \(1, 4, 8, 8\)"),
    ],
)
def test_what_is_wrong_at_a_further_size_is_found(how, told):
    with pytest.raises(AssertionError, match=told):
        testing.check_guidance(AtAFurtherSize(how))


@frozen
class BrokenBranches(Broken):
    point: ClassVar[str] = "branches"

    def init(self):
        return None

    def branches(self, step):
        return {"twice": ("damped", "damped"), "own": ("cond",), "unknown": ("other",)}.get(self.how, ())

    def guide(self, step, subject, scene, state):
        rows = subject.rows["cond"].mul_(2) if self.how == "in place" else subject.rows["cond"]
        return Branches(subject.rows, 1.0, rows, subject.latents), state


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("twice", "must return branches among damped, each once"),
        ("own", "must return branches among damped"),
        ("unknown", "got .'other',"),
        ("in place", "must not write into its input"),
    ],
)
def test_guidance_of_branches(how, told):
    with pytest.raises(AssertionError, match=told):
        testing.check_guidance(BrokenBranches(how))


@frozen
class BrokenMessages(Broken):
    """Says through messages what it does not say at once."""

    point: ClassVar[str] = "views"

    def init(self):
        return None

    def guide(self, step, subject, scene, state):
        if self.how != "another state":
            return AsyncGuidance().guide(step, subject, scene, state)
        guided, message = AsyncGuidance().guide(step, subject, scene, state if state is None else state["message"])
        return guided, {"message": message}

    def lag(self, step):
        odd = {"another lag": 0, "two steps before": 2, "of the next step": -1, "half a step": 0.5}
        return odd.get(self.how, AsyncGuidance().lag(step))

    def tell(self, step, subject, key, mask):
        return SyncGuidance().tell(step, subject, key, mask)

    def follow(self, step, subject, key, message):
        scale = 0.5 if self.how == "another scale" else 1.0
        return AsyncGuidance(scale=scale).follow(step, subject, key, message)


@pytest.mark.parametrize("how", ["another lag", "another scale"])
def test_guidance_by_messages(how):
    with pytest.raises(AssertionError, match="`guide` must equal `follow`"):
        testing.check_guidance(BrokenMessages(how))
    testing.check_guidance(BrokenMessages())


@pytest.mark.parametrize("how", ["two steps before", "of the next step", "half a step"])
def test_guidance_by_messages_of_an_age_that_there_is_not(how):
    with pytest.raises(AssertionError, match="must return 0, 1 or None from `lag`"):
        testing.check_guidance(BrokenMessages(how))


def test_guidance_by_messages_whose_state_is_none_of_them():
    with pytest.raises(AssertionError, match="the state must be the message of the step before"):
        testing.check_guidance(BrokenMessages("another state"))


# ---------------------------------------------------------------- masking


@frozen
class BrokenMasking(Broken):
    @property
    def request(self):
        return "maps" if self.how == "request" else None

    def init(self):
        return self.kept if self.how == "one state for all runs" else None

    def mask(self, step, key, predicted, state):
        mask = torch.full_like(key.latents[:, :1], 0.5)
        match self.how:
            case "no state":
                return mask
            case "above":
                mask = 2.1 * mask
            case "below":
                mask = mask - 0.6
            case "nan":
                mask = mask * float("nan")
            case "float64":
                mask = mask.double()
            case "shape":
                mask = mask[..., 1:]
            case "all channels":
                mask = mask.expand(-1, 4, -1, -1)
            case "in place":
                mask = key.latents[:, :1].clamp_(0, 1)
            case "needs attention":
                mask = predicted.attention.clamp(0, 1)
            case "global randomness":
                mask = torch.rand_like(mask)
            case "state on itself":
                self.kept.append(1)
                mask = mask / len(self.kept)
            case "ambient dtype":
                mask = torch.full(mask.shape, 0.5)
        return mask, state


MASKING = [
    ("request", "request is 'maps', no AttentionRequest"),
    ("no state", r"expected \(mask, state\)"),
    ("above", r"lies in \[0, 1\], not so at step 0 of 10"),
    ("below", r"lies in \[0, 1\]"),
    ("nan", r"lies in \[0, 1\]"),
    ("float64", "got float64"),
    ("shape", r"got float32 \(1, 1, 8, 7\)"),
    ("all channels", r"got float32 \(1, 4, 8, 8\)"),
    ("in place", "must not write into what it receives"),
    ("one state for all runs", "state must start anew"),
    ("global randomness", "draws from the global random state|answers otherwise"),
    ("state on itself", "keeps something on itself"),
    ("ambient dtype", "got float64"),
]


@pytest.mark.parametrize(("how", "told"), MASKING)
def test_masking(how, told):
    with pytest.raises(AssertionError, match=told):
        testing.check_masking(BrokenMasking(how))


def test_masking_that_needs_maps_is_asked_without_them():
    with pytest.raises(AttributeError):
        testing.check_masking(BrokenMasking("needs attention"))
    testing.check_masking(BrokenMasking())


# ---------------------------------------------------------------- patching


@frozen
class BrokenPatching(Broken):
    def granularity(self, canvas):
        return (0, 1) if self.how == "granularity" else (1, 1)

    def patch(self, step, canvas, channels, streams):
        patches = Windows(overlap=0.5).patch(step, canvas, channels, streams)
        first = patches.views[0]
        count = len(patches.views)
        match self.how:
            case "nothing":
                return None
            case "leaves the canvas":
                lower = evolve(first, vertical=evolve(first.vertical, start=canvas.height))
                return evolve(patches, views=[*patches.views, lower])
            case "leaves a cell out":
                return Patches(patches.views[1:]) if count > 1 else patches
            case "other counts":
                return Patches([*patches.views, *[first] * (step.index % 2)])
            case "no permutation":
                return evolve(patches, permutation=torch.zeros(count, 1, 1, *first.shape, dtype=torch.int64) * count)
            case "global randomness":
                return Windows(overlap=0.5, jitter=bool(torch.rand(()) < 0.5)).patch(step, canvas, channels, streams)
            case "state on itself":
                self.kept.append(1)
                return evolve(patches, key=len(self.kept) % count)
        return patches

    def prepare(self, step, model_input, canvas):
        match self.how:
            case "prepares in place":
                return model_input.mul_(2)
            case "prepares another shape":
                return model_input[..., 1:]
            case "prepares nothing finite":
                return model_input / step.alpha if step.alpha else model_input / torch.zeros(())
        return model_input


PATCHING = [
    ("granularity", "must return a granularity"),
    ("nothing", "expected Patches, got NoneType"),
    ("leaves the canvas", "leaves the canvas"),
    ("leaves a cell out", "leave out latent cell"),
    ("other counts", "a stage has as many views at every step"),
    ("no permutation", "takes a view twice"),
    ("global randomness", "same seed must give the same views|answers otherwise|global random state"),
    ("state on itself", "keeps something on itself|answers otherwise"),
    ("prepares in place", "must not write into its input"),
    ("prepares another shape", "prepare: expected"),
    ("prepares nothing finite", "prepare gave values that are not finite"),
]


@pytest.mark.parametrize(("how", "told"), PATCHING)
def test_patching(how, told):
    with pytest.raises(AssertionError, match=told):
        testing.check_patching(BrokenPatching(how))


def test_a_sound_patching_passes():
    testing.check_patching(BrokenPatching())


# ---------------------------------------------------------------- fusion


@frozen
class BrokenFusion(Broken):
    def fuse(self, step, views, prediction, latents):
        fused = Average().fuse(step, views, prediction, latents)
        match self.how:
            case "weights":
                return 1.01 * fused
            case "a sum":
                total = torch.zeros_like(latents)
                for view, output in zip(views, prediction.model_output, strict=True):
                    view.add_to(total, output)
                return total
            case "float64":
                return fused.double()
            case "shape":
                return fused[..., 1:]
            case "noisy end":
                return fused * (step.alpha / step.alpha if step.alpha else float("nan"))
            case "in place":
                prediction.model_output.add_(0.5)
                return fused
            case "global randomness":
                return fused + 1e-6 * torch.randn_like(fused)
            case "state on itself":
                self.kept.append(1)
                return fused + 1e-6 * len(self.kept) * torch.ones_like(fused)
            case "ambient dtype":
                return fused * torch.ones(1)[0] + torch.zeros(1)
        return fused


FUSION = [
    ("weights", "Tensor-likes are not close"),
    ("a sum", "windows that overlap do not fuse to the canvas"),
    ("float64", "got float64"),
    ("shape", "must return the canvas as float32"),
    ("noisy end", "not finite at .*alpha 0"),
    ("in place", "must not write into what it receives"),
    ("global randomness", "same views must fuse to the same canvas"),
    ("state on itself", "same views must fuse to the same canvas|keeps something on itself"),
    ("ambient dtype", "changes with torch.set_default_dtype"),
]


@pytest.mark.parametrize(("how", "told"), FUSION)
def test_fusion(how, told):
    with pytest.raises(AssertionError, match=told):
        testing.check_fusion(BrokenFusion(how))


def test_a_sound_fusion_passes():
    testing.check_fusion(BrokenFusion())


# ---------------------------------------------------------------- prompting


@frozen
class BrokenPrompting(Broken):
    @property
    def request(self):
        return AttentionRequest() if self.how == "not each" else None

    def texts(self, step, prompt, negative_prompt, views, canvas, memory):
        match self.how:
            case "a lone text":
                return "a fox"
            case "a list":
                return [prompt] * len(views)
            case "one too few":
                return (prompt,) * (len(views) - 1) if len(views) > 1 else (prompt,)
            case "numbers":
                return (1,) * len(views)
            case "needs maps":
                return (memory.words[0],) * len(views)
            case "global randomness":
                return (f"{prompt} {float(torch.rand(()))}",) * len(views)
            case "state on itself":
                self.kept.append(1)
                return (f"{prompt} {(len(self.kept) - 1) // 2}",) * len(views)
        return ()


PROMPTING = [
    ("not each", "kept word by word"),
    ("a lone text", "taken apart into letters"),
    ("a list", "got a list"),
    ("one too few", "got 3"),
    ("numbers", "got a int among them"),
    ("global randomness", "texts must not change by themselves"),
    ("state on itself", "keeps something on itself"),
]


@pytest.mark.parametrize(("how", "told"), PROMPTING)
def test_prompting(how, told):
    with pytest.raises(AssertionError, match=told):
        testing.check_prompting(BrokenPrompting(how))


def test_prompting_that_needs_maps_is_asked_without_them():
    with pytest.raises(AttributeError):
        testing.check_prompting(BrokenPrompting("needs maps"))
    testing.check_prompting(BrokenPrompting())


# ---------------------------------------------------------------- the checks leave the process as it was


def test_checks_leave_global_state_alone():
    torch.manual_seed(7)
    before, dtype = torch.random.get_rng_state(), torch.get_default_dtype()
    testing.check_prompting(BrokenPrompting())
    with pytest.raises(AssertionError):
        testing.check_prompting(BrokenPrompting("state on itself"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_default_dtype() == dtype


# ---------------------------------------------------------------- upscaler


@frozen
class BrokenUpscaler(Broken):
    @property
    def reach(self):
        return {"sees farther": 4, "half a reach": 4.5}.get(self.how, 8)

    def check(self):
        if self.how == "no file":
            raise ConfigError("file: there is none")

    def cost(self, before, after):
        return UpscalingCost(passes=-1 if self.how == "cost" else 0)

    def upscale(self, picture, size):
        larger = Lanczos(lobes=7 if self.how == "sees farther" else 3).upscale(picture, size)
        match self.how:
            case "multiples of it":
                return Lanczos().upscale(picture, tuple(2 * side for side in picture.shape[-2:]))
            case "shoots over":
                return 1.2 * larger
            case "float64":
                return larger.double()
            case "one of the batch":
                return larger[:1]
            case "looks at the others":
                return larger * larger.mean()
            case "in place":
                picture.mul_(0.5)
            case "global randomness":
                return larger * torch.rand(())
            case "state on itself":
                self.kept.append(1)
                return larger / len(self.kept)
            case "ambient dtype":
                return larger * torch.tensor(0.1).double().float()
            case "ambient device":
                return larger * torch.ones(1, dtype=torch.float32)
        return larger


UPSCALER = [
    ("no file", "there is none"),
    ("multiples of it", r"must return the picture as float32 \(2, 3, 4, 4\) on cpu, got float32 \(2, 3, 2, 2\)"),
    ("shoots over", r"must return values in \[0, 1\]"),
    ("float64", "got float64"),
    ("one of the batch", r"got float32 \(1, 3, 4, 4\)"),
    ("looks at the others", "changes with the others of its batch"),
    ("in place", "must not be written into"),
    ("cost", "must return an UpscalingCost of whole numbers"),
    ("sees farther", "depends on what is farther away than reach = 4"),
    ("half a reach", "reach must be a whole number"),
    ("global randomness", "changes with the others|global random state|answers otherwise"),
    ("state on itself", "changes with the others|keeps something on itself"),
    ("ambient dtype", "default_dtype"),
    ("ambient device", "default_device"),
]


@pytest.mark.parametrize(("how", "told"), UPSCALER)
def test_upscaler(how, told):
    with pytest.raises(AssertionError, match=told):
        testing.check_upscaler(BrokenUpscaler(how))


def test_upscaler_that_is_not_broken():
    testing.check_upscaler(BrokenUpscaler())
