"""The public entry point: one object that turns a prompt into a large picture."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, overload

import attrs
from attrs import evolve

from vitrail.backbones.adapters import Adapter
from vitrail.backbones.loading.source import ModelOptions, adapter_of, find_model
from vitrail.backbones.loading.unloaded import WeightsNeededError
from vitrail.comm.backends.in_process import solo
from vitrail.core.config.loader import loader_of
from vitrail.core.config.log import logger
from vitrail.core.config.region import Region
from vitrail.core.config.run_config import Dtype, RunConfig
from vitrail.core.engine.exchange import Exchange
from vitrail.core.engine.network import check_rectifications
from vitrail.core.method.composition import Composition
from vitrail.core.method.inputs import Extras
from vitrail.errors import ConfigError, Problems
from vitrail.pictures.picture_reader import with_pictures
from vitrail.sampling.builder import Builder
from vitrail.sampling.call_options import Call, Callback, Spread
from vitrail.sampling.call_pictures import PictureCall, given_once, in_sequence, pictures_of, refuse_shared, texts_of
from vitrail.sampling.discovery import registered_name, registry
from vitrail.sampling.methods import composition_of
from vitrail.sampling.output_types import check_output_type
from vitrail.sampling.recipe import digest_of
from vitrail.sampling.result import Plan, Report, Result
from vitrail.sampling.run_plugins import attached
from vitrail.sampling.session import Session

if TYPE_CHECKING:
    from torch import Generator

    from vitrail.core.engine.engine import Engine
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.method.backbone import Backbone
    from vitrail.sampling.output_types import Images, OutputType


class Sampler:
    """A backbone and a method, ready to be called with a prompt."""

    def __init__(
        self,
        backbone: Backbone,
        composition: Composition | Mapping[str, object],
        *,
        model: str,
        options: ModelOptions | None = None,
        plugins: Iterable[tuple[str, object]] = (),
        method: object = None,  # as the caller gave it
    ):
        composition = composition_of(composition)
        composition.check(backbone.offers, f"model {model!r}", registry())
        composition.check_files(registered_name)
        request = composition.attention_request()
        if request is not None:
            backbone.check_attention(request)
        check_rectifications(composition, backbone, registered_name)
        self.backbone, self.composition, self.model = backbone, composition, model
        self._options = options or ModelOptions()
        self._named = {"method": str(method)} if isinstance(method, (str, Path)) else {}  # for recipes
        self._own = tuple(plugins)
        self.plugins = attached(self._own)
        self._lock = threading.RLock()  # a signal handler may come while this thread holds it
        self._at_work: list[threading.Event] = []  # one per running run, set to stop it
        self._is_early = False
        logger().info(
            "composition.resolved", model=model, digest=digest_of(repr(composition)), composition=repr(composition)
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str = "demo",
        method: str | Path | Mapping[str, object] | Composition = "asg-plus",
        *,
        device: str | None = None,
        dtype: Dtype = "float32",
        variant: str | None = None,
        revision: str | None = None,
        model_config: str | None = None,
        plugins: Iterable[tuple[str, object]] = (),
    ) -> Sampler:
        """Load a model.

        Args:
            model: ``demo``, a folder in diffusers' layout, a ``.safetensors`` file or a hub id.
            method: A registered name, a TOML or YAML file, a table as in one, or a composition.
            device: A torch device; by default the accelerator if there is one, else the CPU.
            dtype: Type of the networks.
            variant: Variant of the weight files, e.g. ``fp16``.
            revision: Revision of a hub id.
            model_config: How to read a single file: as a shipped family or with a diffusers folder's configurations.
            plugins: (name, plugin) pairs that wrap or observe this sampler's hooks.

        Raises:
            VitrailError: Before any weight is loaded, if the method is wrong or does not fit the model.
        """
        composition = composition_of(method)
        options = ModelOptions(dtype=dtype, variant=variant, revision=revision, config=model_config)
        spec = find_model(model, registry(), options)
        composition.check(spec.offers, f"model {model!r}", registry())
        composition.check_files(registered_name)
        return cls(spec.load(device), composition, model=model, options=options, plugins=plugins, method=method)

    @classmethod
    def from_pipeline(
        cls,
        pipe: object,
        method: str | Path | Mapping[str, object] | Composition = "asg-plus",
        *,
        plugins: Iterable[tuple[str, object]] = (),
    ) -> Sampler:
        """Use a diffusers pipeline that is already loaded, without changing it.

        Args:
            pipe: A pipeline with its LoRAs, adapters, scheduler and offload; they may also be changed later.
            method: A registered name, a TOML or YAML file, a table as in one, or a composition.
            plugins: (name, plugin) pairs that wrap or observe this sampler's hooks.

        Raises:
            VitrailError: If no adapter supports the pipeline, a part of it is missing, has another class or is an
                inverse scheduler, or the method does not fit it; listing every problem.
        """
        return cls.around(pipe, composition_of(method), method, plugins)

    @classmethod
    def around(
        cls, pipe: object, composition: Composition, method: object, plugins: Iterable[tuple[str, object]] = ()
    ) -> Sampler:
        """Use a pipeline with a method that is read already; raises as ``from_pipeline`` does.

        Args:
            pipe: As in ``from_pipeline``.
            composition: The method.
            method: As the caller gave it, whose name is told by recipes.
            plugins: As in ``from_pipeline``.
        """
        adapter, problems = adapter_of(type(pipe).__name__, registry()), Problems()
        backbone: Backbone | None = None
        with problems.collect():
            composition.check(adapter.offers, "model 'pipeline'", registry())
        with problems.collect():
            backbone = adapter.adopt(pipe)
        problems.tell()
        assert backbone is not None
        options = ModelOptions(
            dtype=cast(Dtype, str(getattr(backbone.network, "dtype", "float32")).removeprefix("torch."))
        )
        return cls(backbone, composition, model="pipeline", options=options, plugins=plugins, method=method)

    @classmethod
    def of(
        cls,
        run: RunConfig,
        composition: Composition,
        device: str | None = None,
        plugins: Iterable[tuple[str, object]] = (),
    ) -> Sampler:
        """Load the model of a run.

        Args:
            run: Gives the model and its options.
            composition: The method.
            device: As in ``from_pretrained``.
            plugins: As in ``from_pretrained``.
        """
        options = ModelOptions.of(run).as_fields()
        return cls.from_pretrained(run.model, composition, device=device, plugins=plugins, **options)

    @classmethod
    def planner(
        cls,
        run: RunConfig,
        composition: Composition,
        device: str | None = None,
        plugins: Iterable[tuple[str, object]] = (),
    ) -> tuple[Sampler, int]:
        """Return a sampler that can plan only, made of headers and configurations, and the bytes left in files.

        Args:
            run: Gives the model and its options.
            composition: The method.
            device: As in ``from_pretrained``.
            plugins: As in ``from_pretrained``.

        Raises:
            VitrailError: As ``of`` does, for what can be seen without weights.
            WeightsNeededError: If the model has to be loaded to know what it would do.
        """
        options = ModelOptions.of(run)
        spec = find_model(run.model, registry(), options)
        composition.check(spec.offers, f"model {run.model!r}", registry())
        composition.check_files(registered_name)
        if not isinstance(spec, Adapter) or type(spec).load is not Adapter.load:
            raise WeightsNeededError(run.model)
        backbone, unloaded = spec.without_weights(device)
        return cls(backbone, composition, model=run.model, options=options, plugins=plugins), unloaded

    def again(self, plugins: Iterable[tuple[str, object]] = ()) -> Sampler:
        """Return a sampler with the same model, method and plugins, and further plugins."""
        every, method = (*self._own, *plugins), self._named.get("method")
        return Sampler(
            self.backbone, self.composition, model=self.model, options=self._options, plugins=every, method=method
        )

    def interrupt(self) -> None:
        """Stop this sampler's runs before their next step; if none is running, the next one before its first step.

        Each call counts once: runs that begin afterwards are not stopped. May be called from a callback, a signal
        handler or another thread. With several ranks rank 0's call counts, one step later.
        """
        with self._lock:
            self._is_early = not self._at_work
            for stop in self._at_work:
                stop.set()

    @contextmanager
    def _stopping(self) -> Iterator[threading.Event]:
        """Register a run that ``interrupt`` may stop."""
        stop = threading.Event()
        with self._lock:
            if self._is_early:
                stop.set()
            self._is_early = False
            self._at_work.append(stop)
        try:
            yield stop
        finally:
            with self._lock:
                self._at_work.remove(stop)

    def plan(self, config: RunConfig, extras: Extras | None = None) -> Plan:
        """Return what a run would do; without any model call."""
        return Plan.of(self.run_plan(config, config.seed, extras), self.backbone)

    @overload
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int | None = None,
        seed: int | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        output_type: OutputType = "pil",
        return_dict: Literal[True] = True,
        spread: Spread | None = None,
        **options: object,
    ) -> Result: ...

    @overload
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int | None = None,
        seed: int | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        output_type: OutputType = "pil",
        return_dict: Literal[False],
        spread: Spread | None = None,
        **options: object,
    ) -> tuple[Images]: ...

    @overload
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int | None = None,
        seed: int | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool,
        spread: Spread | None = None,
        **options: object,
    ) -> Result | tuple[Images]: ...

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int | None = None,
        seed: int | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        spread: Spread | None = None,
        **options: object,
    ) -> Result | tuple[Images]:
        """Sample pictures; the words are those of a diffusers pipeline's call.

        Args:
            prompt: Text of the picture, or a list of them, whose pictures come one prompt after the other.
            negative_prompt: What to avoid: one text for all prompts, or a list with one each.
            height: Pixels, 64 or more, any number; the model's default if not given.
            width: Pixels, as above.
            num_images_per_prompt: Pictures of each prompt, 1 if not given; ``num_images`` is the same.
            seed: Seed of all randomness, 0 if not given; picture i of the call has ``seed + i``.
            generator: Instead of ``seed``: a torch.Generator that the seed is drawn from, or a list of one per picture.
                The call moves it on, so the next one makes another picture; the recipe has the seed. Every rank gives
                it in the same state.
            callback_on_step_end: In diffusers' form, ``(run, step, timestep, {"latents": ...})``, also one of its
                ``PipelineCallback``; may return replaced latents and set what ``CallbackRun`` allows. With several
                ranks it must do the same on each.
            callback_on_step_end_tensor_inputs: Names of the tensors that it receives; the latents if None.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            return_dict: Whether to return a ``Result``; otherwise a tuple with its images alone.
            spread: The ranks of the run and its checkpoint; every rank makes the same call.
            options: The other fields of ``RunConfig``, e.g. ``num_inference_steps``, ``guidance_scale``,
                ``scheduler``, ``strength``, ``wrap``, ``regions`` (tables or ``Region``); and those of ``Extras``:
                ``image``, ``latents``, ``prompt_embeds``, ``ip_adapter_image``, ``control_image`` and more.

        Raises:
            ConfigError: For an unknown option, a value out of range, or an input that the model cannot use.
            PredictionError: If a step produces non-finite values.
        """
        unknown = set(options) & {"method", *ModelOptions().as_fields(), "model"}
        if unknown:
            raise ConfigError(f"{', '.join(sorted(unknown))} belong to from_pretrained, not to the call")
        check_output_type(output_type)
        named = {"image": str(options.pop("image"))} if isinstance(options.get("image"), (str, Path)) else {}
        regions = options.get("regions")
        if isinstance(regions, (list, tuple)):
            options["regions"] = [attrs.asdict(each) if isinstance(each, Region) else each for each in regions]
        extras = Extras.take(options)
        given = {"height": height, "width": width, "seed": seed, "num_images": num_images_per_prompt}
        table = given_once(options, {name: value for name, value in given.items() if value is not None})
        table = {**self.backbone.defaults, **named, **self._named, **table}
        texts = texts_of(prompt, negative_prompt)
        config, pictures, drawn = pictures_of(loader_of(registry()), table, texts, generator)
        names = callback_on_step_end_tensor_inputs
        result = self.run(config, callback_on_step_end, output_type, extras, spread, names, pictures)
        if drawn is not None:
            drawn.advance()
        return result if return_dict else result.to_tuple()

    def run(
        self,
        config: RunConfig,
        callback: Callback | None = None,
        output_type: OutputType = "pil",
        extras: Extras | None = None,
        spread: Spread | None = None,
        tensor_inputs: Sequence[str] | None = None,
        pictures: Sequence[PictureCall] = (),
    ) -> Result:
        """Sample the pictures of a config; see ``__call__``.

        Args:
            config: Settings of the run.
            callback: Called after every step, in diffusers' form.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            extras: Inputs that are not plain data.
            spread: The ranks of the run and its checkpoint.
            tensor_inputs: Names of the tensors that the callback receives; the latents if None.
            pictures: What differs between its pictures; () if only the seed does.

        Raises:
            ConfigError: For an unknown output type, or an input that the model cannot use.
        """
        check_output_type(output_type)
        config = evolve(config, model=self.model, **self._options.as_fields())
        pictures = pictures or in_sequence(config)
        refuse_shared(pictures, extras or Extras())
        extras, spread = with_pictures(extras or Extras()), spread or Spread()
        with self._stopping() as stop:
            call = Call(
                config,
                pictures,
                extras,
                callback,
                output_type,
                spread,
                stop.is_set,
                tensor_inputs,
            )
            return Session(self._builder(config), call, self).run()

    def run_plan(self, config: RunConfig, seed: int, extras: Extras | None = None) -> RunPlan:
        """Return the plan of one picture; its schedulers are fresh, so it can be used once.

        Args:
            config: Settings of the run.
            seed: Seed of this picture.
            extras: Inputs that are not plain data.

        Raises:
            VitrailError: If the model cannot use the inputs, or a view is too large for it.
        """
        return self._builder(config).plan(seed, extras or Extras())

    def engine(self, config: RunConfig, seed: int, extras: Extras | None = None) -> Engine:
        """Return the engine for the steps of one picture on one rank; raises as ``run_plan`` does.

        Args:
            config: Settings of the run.
            seed: Seed of this picture.
            extras: Inputs that are not plain data.
        """
        return self._builder(config).engine(self.run_plan(config, seed, extras), Exchange.among(solo()))

    def _builder(self, config: RunConfig) -> Builder:
        return Builder(self.backbone, self.composition, self.plugins, evolve(config, model=self.model))


__all__: Sequence[str] = ["Plan", "Report", "Result", "Sampler", "Spread"]
