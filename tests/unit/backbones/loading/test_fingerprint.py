"""What stands for a pipeline changes with all that pictures depend on, and with nothing else."""

import pytest
from diffusers import StableDiffusionPipeline

from tiny import tiny_pipeline
from vitrail.backbones.loading.fingerprint import fingerprint_of


def settings_changed(pipe):
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")


def scheduler_changed(pipe):
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)


def vae_changed(pipe):
    pipe.vae.register_to_config(scaling_factor=0.5)


def weight_changed(pipe):
    pipe.unet.conv_in.bias.data[0] += 1


def word_added(pipe):
    pipe.tokenizer.add_tokens(["vitrail"])


CHANGES = (settings_changed, scheduler_changed, vae_changed, weight_changed, word_added)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_of_what_pictures_depend_on_is_seen(change):
    pipe = tiny_pipeline()
    before = fingerprint_of(pipe.components)
    assert fingerprint_of(tiny_pipeline().components) == before
    change(pipe)
    assert fingerprint_of(pipe.components) != before


def test_where_its_files_lie_is_no_part_of_it(tmp_path):
    pipe = tiny_pipeline()
    loaded = []
    for name in ("one", "two"):
        pipe.save_pretrained(tmp_path / name)
        loaded.append(StableDiffusionPipeline.from_pretrained(tmp_path / name))
    one, two = (fingerprint_of(each.components) for each in loaded)
    assert one == two
