"""``vitrail serve`` over real requests: a picture from wish to file, stopping and going on."""

import io
import json
import shlex
import threading

import pytest
import torch
from PIL import Image

from command_line import vitrail
from served import FOX, LONG, serving
from vitrail.sampling import called_steps, session
from vitrail.sampling.recipe import read_recipe
from vitrail.sampling.sampler import Sampler
from vitrail.serve import studio as studios


def picture_of(served, number):
    with Image.open(io.BytesIO(served.get(f"/pictures/{number}/picture.png"))) as image:
        return image.convert("RGB")


def stopped(served, wish):
    """A picture that was stopped after a step or more."""
    number = served.post("/api/pictures", wish)[1]["number"]
    served.until(number, lambda picture: picture["step"] > 0)
    assert served.post(f"/api/pictures/{number}/stop")[0] == 202
    return served.ended(number)


def test_a_sentence_becomes_a_picture_that_can_be_made_again(served, tmp_path, monkeypatch, capsys):
    made = served.make(FOX | {"negative_prompt": "-night 'n' fog"})
    assert made["status"] == "done" and made["step"] == made["steps"] == 3 and made["size"] == [104, 152]
    (tmp_path / "page.png").write_bytes(served.get(f"/pictures/{made['number']}/picture.png"))
    recipe = read_recipe(tmp_path / "page.png")
    assert recipe.given == {} and recipe.run["prompt"] == "a fox" and recipe.run["seed"] == 5
    monkeypatch.chdir(tmp_path)
    words = shlex.split(made["again"]["command"])
    assert words[:2] == ["vitrail", "sample"]
    assert vitrail(monkeypatch, capsys, "sample", "-o", "cli.png", *words[2:]).code == 0
    exec(made["again"]["python"], {})
    mine = picture_of(served, made["number"]).tobytes()
    for name in ("cli.png", "picture-5.png"):
        with Image.open(name) as image:
            assert image.convert("RGB").tobytes() == mine, name


def test_the_plan_says_what_it_takes_and_begins_nothing(served):
    before = len(served.pictures())
    status, plan = served.post("/api/plan", FOX)
    assert status == 200 and plan["size"] == [104, 152] and plan["model_calls"] > 0 and plan["rows"] >= 1
    assert [stage["steps"] for stage in plan["stages"]] == [3]
    assert len(served.pictures()) == before
    served.make(FOX)
    assert served.post("/api/plan", FOX)[1]["seconds"] > 0
    grown = served.post("/api/plan", FOX | {"method": "asg-cascade", "width": 128, "height": 128})[1]
    assert len({tuple(stage["size"]) for stage in grown["stages"]}) > 1


def test_tiles_make_up_the_picture(served, monkeypatch):
    monkeypatch.setattr("vitrail.pictures.tiles.TILE", 64)
    made = served.make(FOX)
    tiles, whole = made["shown"]["tiles"], picture_of(served, made["number"])
    assert tiles["levels"][0] == [104, 152] and max(tiles["levels"][-1]) <= 64 < max(tiles["levels"][-2])
    joined = Image.new("RGB", whole.size)
    for row in range(2):
        for column in range(3):
            with Image.open(io.BytesIO(served.get(f"/{tiles['url']}/0/{row}_{column}.webp"))) as tile:
                joined.paste(tile.convert("RGB"), (64 * column, 64 * row))
    assert joined.tobytes() == whole.tobytes()
    assert served.get(f"/{made['shown']['thumb']}")
    for beyond in ("0/2_0", "0/0_3", "9/0_0", "0/0_99999999999"):
        assert served.request("GET", f"/{tiles['url']}/{beyond}.webp")[0] == 404


def test_a_stopped_picture_goes_on_to_what_it_would_have_been(served):
    left = stopped(served, LONG)
    assert left["status"] == "stopped" and 0 < left["step"] < 60 and left["can_go_on"] and "shown" in left
    assert served.get(f"/{left['shown']['thumb']}") and "again" not in left
    assert served.request("GET", f"/pictures/{left['number']}/picture.png")[0] == 404
    between = served.make(FOX)  # another one meanwhile
    assert between["status"] == "done"
    assert served.post(f"/api/pictures/{left['number']}/go-on")[0] == 202
    done = served.ended(left["number"])
    assert done["status"] == "done" and done["step"] == 60
    whole = served.make(LONG)
    assert picture_of(served, done["number"]).tobytes() == picture_of(served, whole["number"]).tobytes()
    status, told = served.post(f"/api/pictures/{done['number']}/go-on")
    assert status == 422 and "is done, so there is nothing to go on with" in told["error"]


def test_a_picture_that_was_not_kept_says_so_instead_of_beginning_anew(served):
    left = stopped(served, LONG)
    served.studio.work(left["number"]).checkpoint.unlink()
    assert not served.pictures()[left["number"]]["can_go_on"]
    status, told = served.post(f"/api/pictures/{left['number']}/go-on")
    assert status == 422 and "was not kept where it stopped" in told["error"]


def test_what_failed_after_its_steps_is_not_sampled_again(served, backbone, monkeypatch):
    """Decoding and saving may fail, e.g. on a full disk; the steps were kept before."""
    with monkeypatch.context() as patched:
        patched.setattr(studios, "save_picture", lambda *given: 1 / 0)
        failed = served.make(FOX)
    assert failed["status"] == "failed" and failed["can_go_on"] and failed["step"] == 3
    with monkeypatch.context() as patched:
        patched.setattr(type(backbone), "predict", lambda *given: 1 / 0)
        assert served.post(f"/api/pictures/{failed['number']}/go-on")[0] == 202
        done = served.ended(failed["number"])
    assert done["status"] == "done" and not done["reason"] and not done["can_go_on"]
    assert picture_of(served, done["number"]).tobytes() == picture_of(served, served.make(FOX)["number"]).tobytes()


def test_a_picture_that_is_stopped_before_its_first_step_shows_nothing_and_decodes_nothing(served, monkeypatch):
    reached, sample_on = threading.Event(), session.Session._sample_on

    def late(self, *given):
        reached.wait(60)
        return sample_on(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(session.Session, "_sample_on", late)
        patched.setattr(session.Session, "_decode", lambda *given: 1 / 0)
        number = served.post("/api/pictures", FOX)[1]["number"]
        served.post(f"/api/pictures/{number}/stop")
        reached.set()
        left = served.ended(number)
    assert (left["status"], left["step"], left["reason"]) == ("stopped", 0, "") and "shown" not in left
    assert served.post(f"/api/pictures/{number}/go-on")[0] == 202
    assert served.ended(number)["status"] == "done"


def test_the_address_of_an_image_is_that_of_another_only_where_it_is_another(served, monkeypatch):
    left = stopped(served, LONG)
    image = left["shown"]["thumb"]
    assert served.post(f"/api/pictures/{left['number']}/go-on")[0] == 202
    now = served.until(left["number"], lambda picture: picture["step"] > left["step"])
    assert now["shown"]["thumb"] == image and now["version"] == left["version"]
    assert served.request("GET", f"/{image}")[0] == 200
    served.post(f"/api/pictures/{left['number']}/stop")
    assert served.ended(left["number"])["shown"]["thumb"] != image and served.request("GET", f"/{image}")[0] == 404


def test_a_preview_that_cannot_be_made_is_one_warning(served, monkeypatch, caplog):
    def broken(*given):
        raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(called_steps, "preview", broken)
    made = served.make(FOX)
    assert made["status"] == "done" and not made["has_preview"]
    assert [record.message.count("preview.not_written") for record in caplog.records].count(1) == 1


def test_the_page_answers_while_a_picture_is_planned(served, monkeypatch):
    planning, goes_on, forecast = threading.Event(), threading.Event(), studios.forecast

    def slow(*given):
        planning.set()
        goes_on.wait(60)
        return forecast(*given)

    monkeypatch.setattr(studios, "forecast", slow)
    answers = []
    asker = threading.Thread(target=lambda: answers.append(served.post("/api/plan", FOX)[0]))
    asker.start()
    try:
        planning.wait(60)
        told = threading.Thread(target=served.studio.state, daemon=True)
        told.start()
        told.join(10)
        assert not told.is_alive()
    finally:
        goes_on.set()
        asker.join()
    assert answers == [200]


def test_one_at_a_time_and_the_second_hears_why(served):
    number = served.post("/api/pictures", LONG)[1]["number"]
    for path in ("/api/pictures", "/api/plan"):
        status, told = served.post(path, FOX)
        assert status == 409 and "busy with “a fox”, step" in told["error"] and "or stop it" in told["error"]
    state = json.loads(served.get("/api/state"))
    assert state["busy"] == number == max(served.pictures())
    shown = served.until(number, lambda picture: picture["has_preview"])
    with Image.open(io.BytesIO(served.get(f"/api/pictures/{number}/preview.png"))) as preview:
        assert preview.width * preview.height <= 64 * 64
    assert shown["status"] == "running"
    served.post(f"/api/pictures/{number}/stop")
    served.ended(number)
    assert served.make(FOX)["status"] == "done"


WRONG = {
    "no sentence": ({"prompt": " "}, "write a sentence first"),
    "no text": ({"prompt": ["a fox"]}, "write a text"),
    "control": ({"prompt": "a \x1b[2J fox"}, "without control characters"),
    "long": ({"prompt": "fox" * 1000}, "2000 are the most"),
    "small": ({"width": 8}, "width"),
    "large": ({"width": 60000, "height": 60000}, "megapixels"),
    "fraction": ({"width": 152.5}, "width"),
    "word": ({"height": "tall"}, "height"),
    "steps": ({"num_inference_steps": 0}, "num_inference_steps"),
    "no method": ({"method": "multidifusion"}, "did you mean 'multidiffusion'?"),
    "a file": ({"method": "/etc/method.toml"}, "there is no method"),
    "a picture": ({"image": "/etc/passwd"}, "there is no field 'image'"),
    "a model": ({"model": "/etc"}, "there is no field 'model'"),
    "a seed": ({"seed": -1}, "seed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_made_is_refused_in_words_before_anything_is(served, name):
    wish, told = WRONG[name]
    before = served.pictures().keys()
    for path in ("/api/plan", "/api/pictures"):
        status, answer = served.post(path, FOX | wish)
        assert status == 422 and told in answer["error"], answer
    assert served.pictures().keys() == before


@pytest.mark.parametrize("body", ["", "nothing", "[]", "[" * 20000, '{"prompt": NaN}', '"a fox"'])
def test_what_is_no_json_object_is_refused(served, body):
    assert served.request("POST", "/api/plan", body)[0] == 422


def test_memory_that_is_not_there_is_told_before_anything_is_computed(served, monkeypatch):
    from vitrail.backbones.memory.forecast import MemoryForecast

    monkeypatch.setattr(studios, "forecast", lambda *given: MemoryForecast(rows=1, need_bytes=10, free_bytes=1000))
    status, told = served.post("/api/pictures", FOX)
    assert status == 422 and "152x104 by multidiffusion needs about 0.0 GB" in told["error"]


def test_a_run_that_fails_says_so_and_the_next_one_is_made(served, backbone, monkeypatch, caplog):
    with monkeypatch.context() as patched:
        patched.setattr(type(backbone), "to_pil", lambda *given: 1 / 0)
        failed = served.make(FOX)
    assert failed["status"] == "failed" and "the terminal says more" in failed["reason"]
    assert any("serve.failed" in record.message for record in caplog.records)
    assert served.make(FOX)["status"] == "done"


def test_the_oldest_pictures_go_and_what_they_left_on_the_disk(backbone, folder, monkeypatch):
    monkeypatch.setattr(studios, "MOST_KEPT", 3)
    with serving(backbone, folder) as served:
        for seed in range(5):
            served.make(FOX | {"seed": seed, "num_inference_steps": 1})
        assert sorted(served.pictures()) == [3, 4, 5]
        files = served.studio._folder
        assert sorted(path.name for path in files.iterdir()) == ["3.png", "4.png", "5.png"]
        assert files.stat().st_mode & 0o077 == 0
        assert served.request("GET", "/pictures/1/picture.png")[0] == 404
    assert not files.exists()


def test_methods_that_the_model_cannot_serve_are_named_with_the_reason(served):
    about = json.loads(served.get("/api/about"))
    assert {each["name"] for each in about["methods"]} >= {"direct", "asg-cascade", "multidiffusion"}
    assert about["native"] == 64 and all(each["summary"] for each in about["methods"])


def test_a_picture_of_the_page_is_that_of_the_sampler(served, backbone, folder):
    made = served.make(FOX)
    sampler = Sampler(backbone, {"stages": [{"patching": {"type": "windows", "overlap": 0.5}, "fusion": "average"}]},
                      model=str(folder))  # fmt: skip
    call = {name: value for name, value in FOX.items() if name not in ("prompt", "method")}
    with torch.inference_mode():
        image = sampler("a fox", **call).images[0]
    assert image.tobytes() == picture_of(served, made["number"]).tobytes()
