"""What the studio's page shows and does, without a browser and without nicegui."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse.errors import FuseError, RecipeError
from fuse.recipe_yaml import LoadedRecipe, load_recipe, parse_recipe
from fuse.studio import form
from fuse.studio.inspected import KINDS, places_of
from fuse.studio.jobs import Job, Jobs, problem_of
from fuse.studio.state import Studio
from tests import zoo_tools  # noqa: F401 - the path of the tools
from tests.cli import fuse, fuse_here

import demo  # isort: skip

ZOO = Path(__file__).parent.parent / "recipes" / "zoo"
FILE = Path("recipe.yaml")
PAIR = """# ours
members: {hue: hue, form: form}
language: {method: linear, weights: {hue: 0.7, form: 0.3}}
vision: [hue, form]
"""


def read(text: str) -> LoadedRecipe:
    return parse_recipe(FILE, text)


@pytest.fixture
def signals() -> Iterator[None]:
    """What a stopped job changes of this process is undone."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(name) for name in names]
    yield
    for name, one in zip(names, before, strict=True):
        signal.signal(name, one)


def refusal(act: Any) -> str:
    with pytest.raises(FuseError) as caught:
        act()
    return str(caught.value)


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    """A studio in a folder with members of the zoo."""
    for name in ("base", "hue", "form", "expert"):
        (tmp_path / name).symlink_to(ZOO / name)
    (tmp_path / "scratch").mkdir()
    return Studio(tmp_path / "scratch", tmp_path)


def run(studio: Studio, job: Job | None = None) -> Job:
    """Do what waits, and give back the job or the plan's."""
    studio.jobs.close()
    studio.jobs.run()
    found = job or studio.planning
    assert found is not None
    return found


class TestForm:
    def test_a_recipe_from_nothing(self) -> None:
        text = form.begun(FILE, "zoo/hue", sees=True)
        assert text == "members:\n  hue: zoo/hue\nlanguage:\n  method: linear\n  weights: {hue: 1.0}\nvision: [hue]\n"
        text = form.with_member(read(text), "zoo/form", sees=True)
        text = form.with_member(read(text), "org/expert-7b.v1", sees=False)
        text = form.with_base(read(text), "zoo/base")
        assert text == (
            "base: zoo/base\nmembers:\n  hue: zoo/hue\n  form: zoo/form\n  expert-7b_v1: org/expert-7b.v1\nlanguage:\n"
            "  method: linear\n  weights: {hue: 1.0, form: 1.0, expert-7b_v1: 1.0}\nvision: [hue, form]\n"
        )
        shown = form.form_of(read(text))
        assert shown.base == "zoo/base" and shown.eyes == ("hue", "form") and shown.weighs
        assert shown.members[2] == form.Row("expert-7b_v1", "org/expert-7b.v1", 1.0, sees=False)

    @pytest.mark.parametrize("path", ["a b/c: d", "#x", "1.5", "true", "~/x y", "null", "-", "'a'", "back\\slash"])
    def test_any_path_is_written_as_text(self, path: str) -> None:
        assert next(iter(read(form.begun(FILE, path, sees=False)).recipe.members.values())).path == path

    def test_names(self) -> None:
        assert form.name_of("a/hue", ("hue", "hue_2")) == "hue_3"
        assert form.name_of("org/7b chat!", ()) == "m_7b_chat"
        assert form.name_of("x/base", ()) == "m_base"
        assert form.name_of("/", ()) == "member"

    def test_weights(self) -> None:
        text = form.with_weight(read(PAIR), "hue", 0.25)
        assert "# ours" in text and "weights: {hue: 0.25, form: 0.3}" in text
        assert "weights: {form: 0.3}" in form.with_weight(read(PAIR), "hue", None)
        shared = read(PAIR.replace("{hue: 0.7, form: 0.3}", "0.5"))
        assert form.form_of(shared).members[1].weight == 0.5
        assert form.form_of(read(PAIR.replace("0.3}", "[0, 1]}"))).members[1].weight is None

    def test_another_method_keeps_what_it_takes(self) -> None:
        text = form.with_method(read(PAIR), "della")
        assert "{hue: 0.7, form: 0.3}" in text and "density: 0.5" in text
        text = form.with_method(read(text), "slerp")
        assert "t: 0.5" in text and "weights" not in text and "density" not in text
        assert "weights: {hue: 0.5, form: 0.5}" in form.with_method(read(text), "ties")

    @pytest.mark.parametrize("method", form.NATIVE)
    def test_every_method_can_be_chosen(self, method: str) -> None:
        for before in ("linear", "slerp", "della", "sce"):
            text = form.with_method(read(form.with_method(read(PAIR), before)), method)
            assert read(text).recipe.language.method == method

    def test_a_member_goes_with_all_that_names_it(self) -> None:
        more = PAIR + "prompt: {template: hue}\noutput: {host: hue}\n"
        left = read(form.without_member(read(more), "hue")).recipe
        assert list(left.members) == ["form"] and left.prompt.template is None and left.output.host is None
        assert [branch.title for branch in left.vision or []] == ["form"]
        one = read(form.without_member(read(PAIR), "hue"))
        told = "form is the last member, and a recipe has at least one"
        assert refusal(lambda: form.without_member(one, "form")) == told

    def test_a_member_becomes_the_base(self) -> None:
        recipe = read(form.with_base_of(read(PAIR), "form")).recipe
        assert recipe.base is not None and recipe.base.path == "form" and list(recipe.members) == ["hue"]
        adapted = read(PAIR.replace("form: form", "form: {base: a, adapter: b}"))
        assert form.form_of(adapted).members[1].path == "a + b"
        told = "form is a base with an adapter, and a base is one folder"
        assert refusal(lambda: form.with_base_of(adapted, "form")) == told

    def test_eyes_keep_their_options_and_order(self) -> None:
        budget = read(PAIR.replace("vision: [hue, form]", "vision: [{from: hue, max_tokens: 4}, form]"))
        assert "vision: [form, {from: hue, max_tokens: 4}]" in form.with_eyes(budget, ["form", "hue"])


class TestStudio:
    def test_begins_with_members(self, studio: Studio) -> None:
        studio.start(["hue", "form"], "base")
        plan = run(studio).result
        assert plan.headline == "This recipe makes a fused model on hue: 157 tensors, 2.5 MB."
        assert plan.members[1] == ("hue (host)", "hue", "llava", "98", "1.9 MB", "apache-2.0")
        assert plan.parts[0] == ("language", "39", "1.4 MB", "linear of hue + form, 1/1")
        assert ("to write", "2.5 MB in 1 file") in plan.costs and plan.eyes[0][0] == "hue"
        assert all(agrees for agrees, _, _ in plan.verdicts) and "cost" in plan.text

    def test_begins_with_a_recipe_beside_its_members(self, studio: Studio, tmp_path: Path) -> None:
        (tmp_path / "recipes").mkdir()
        (tmp_path / "recipes" / "ours.yaml").write_text(form.begun(FILE, "../hue", sees=True))
        told = refusal(lambda: studio.start(["recipes/ours.yaml", "hue"], None))
        assert told == "recipes/ours.yaml: a recipe stands alone: it names its members and its base"
        studio.start(["recipes/ours.yaml"], None)
        run(studio, studio.add("form"))
        assert studio.file == tmp_path / "recipes" / "ours.yaml"
        assert studio.recipe().recipe.members["form"].path == "../form"
        assert run(studio).state == "done"

    def test_what_is_no_recipe_is_told_with_its_place(self, studio: Studio) -> None:
        studio.edit(PAIR.replace("linear", "linaer"))
        assert studio.mistake.startswith("recipe.yaml:3:12: language.method: unknown method 'linaer' (did you mean: ")
        assert refusal(studio.recipe) == "the recipe has mistakes (they are told beside it)"
        studio.edit("")
        assert studio.mistake == "" and refusal(studio.recipe) == "there is no recipe yet (add a member)"
        studio.edit(PAIR.replace("form: form", "form: expert"))
        assert run(studio).problem == "recipe.yaml:4:15: vision.1: form has no encoder"

    def test_only_the_last_text_is_planned(self, studio: Studio) -> None:
        plans = []
        for weight in ("0.1", "0.2", "0.3"):
            studio.edit(PAIR.replace("0.7", weight))
            plans.append(studio.planning)
        run(studio)
        assert [plan.state for plan in plans if plan] == ["stopped", "stopped", "done"]

    def test_a_member_that_is_none(self, studio: Studio) -> None:
        studio.edit(PAIR)
        job = run(studio, studio.add("nowhere"))
        told = "'nowhere' does not exist (a folder, relative to the recipe, or a hub id org/name)"
        assert (job.state, job.problem) == ("failed", told) and studio.text == PAIR
        assert run(studio, studio.add(" ")).problem == "a member is a folder or a hub id such as org/name"

    def test_a_recipe_is_saved_once_and_leads_to_the_same_members(self, studio: Studio, tmp_path: Path) -> None:
        studio.edit(PAIR)
        (tmp_path / "elsewhere").mkdir()
        file = studio.save("elsewhere/r.yaml")
        assert (file.parent / load_recipe(file).recipe.members["hue"].path).resolve() == (ZOO / "hue").resolve()
        assert refusal(lambda: studio.save("elsewhere/r.yaml")) == f"{file}: the file is there already (name another)"
        assert refusal(lambda: studio.save("no/r.yaml")).endswith("cannot be written (No such file or directory)")
        assert refusal(lambda: studio.save(" ")) == "the file has no name (such as recipe.yaml)"

    def test_images_are_looked_at(self, studio: Studio) -> None:
        told = refusal(lambda: studio.take_image("../../a b.png", b"no picture"))
        assert told.startswith("a_b.png: is not an image") and studio.image is None
        demo.drawn(studio.here / "scene.png")
        studio.take_image("../scene.png", (studio.here / "scene.png").read_bytes())
        assert studio.image is not None and studio.image.name == "scene.png"
        assert studio.image.is_relative_to(studio.scratch)

    def test_merge_and_ask(self, studio: Studio, tmp_path: Path) -> None:
        """The folder is that of `fuse merge`; parents and fused model answer about what they see."""
        studio.start(["hue", "form"], "base")
        studio.change(lambda loaded: form.with_method(loaded, "task_arithmetic"))
        assert refusal(lambda: run_merge(studio, " ")) == "the output has no name (such as build/fused)"
        assert (
            refusal(lambda: run_merge(studio, "hue"))
            == f"{tmp_path / 'hue'}: the output already exists (name another folder)"
        )
        made = run(studio, studio.merge("fused"))
        assert (made.state, made.done) == ("done", made.total) and made.result.folder == tmp_path / "fused"
        assert made.result.told.startswith("39 tensors merged, 118 copied or made, 0 left out; 2.5 MB in ")
        (tmp_path / "r.yaml").write_text(studio.text)
        assert fuse_here("merge", tmp_path / "r.yaml", tmp_path / "beside").code == 0
        files = ("model.safetensors", "config.json", "processor_config.json", "chat_template.jinja")
        assert all((tmp_path / "fused" / n).read_bytes() == (tmp_path / "beside" / n).read_bytes() for n in files)

        scene, _ = demo.drawn(tmp_path / "scene.png")
        studio.take_image("scene.png", (tmp_path / "scene.png").read_bytes())
        question, right, needs = demo.asked(scene)[0]
        asked = studio.ask(["hue", "gone"], ["fused", "expert"], question, most=8, draw=True)
        answers = {one.name: one for one in run(studio, asked).result}
        assert needs == "hue" and answers["hue"].text == right
        assert answers["fused"].text and answers["fused"].picture and answers["fused"].picture.stat().st_size > 10_000
        assert answers["expert"].problem == (
            f"{tmp_path / 'expert'}: no image processor in this folder; ask it without --image"
        )
        assert answers["gone"].problem == "recipe.yaml:2:1: members: 'gone' is not a member (known: form, hue)"
        nothing = studio.ask(["hue"], [], "  ", most=8, draw=False)
        assert run(studio, nothing).problem == "the question is empty"
        nobody = studio.ask([], [], question, most=8, draw=False)
        assert run(studio, nobody).problem == "nobody is asked (choose members, or merge first)"

    def test_reports(self, studio: Studio) -> None:
        studio.edit(PAIR.replace("members:", "base: base\nmembers:"))
        for kind, title in (("tokens", "Do these speak one language?"), ("deltas", "How do these task vectors lie?")):
            job = run(studio, studio.inspect(kind))
            assert job.problem == "" and title in job.result.read_text()
            assert job.result.is_relative_to(studio.scratch / "reports")
        assert run(studio, studio.inspect("encoders")).problem == "encoders needs a folder of images"
        assert run(studio, studio.inspect("attention")).problem == "attention needs an image"
        studio.edit(PAIR)
        told = run(studio, studio.inspect("pairs")).problem
        assert told == "pairs compares members with their base, and the recipe names none (add `base:`)"
        assert set(KINDS) == {"tokens", "deltas", "encoders", "attention", "pairs"}
        adapted = read(PAIR.replace("form: form", "form: {base: a, adapter: b}"))
        told = "recipe.yaml:2:21: members.form: form is a base with an adapter, which is inspected as part of a recipe only (deltas takes it)"
        assert refusal(lambda: places_of(adapted)) == told


def run_merge(studio: Studio, out: str) -> None:
    job = run(studio, studio.merge(out))
    raise RecipeError(job.problem)


class TestJobs:
    def test_one_after_another(self) -> None:
        jobs, order = Jobs(), []
        for name in "abc":
            jobs.submit(name, lambda job: order.append(job.name))
        jobs.close()
        jobs.run()
        assert order == ["a", "b", "c"] and jobs.running is None

    def test_errors_are_sentences_and_the_next_goes_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        jobs = Jobs()

        def fails(error: Exception) -> Job:
            return jobs.submit("x", lambda _job: (_ for _ in ()).throw(error))

        ours, bug = fails(RecipeError("no", where="here")), fails(ZeroDivisionError("by zero"))
        disk = fails(OSError(28, "No space left on device", "/x/y"))
        jobs.close()
        jobs.run()
        assert [job.state for job in (ours, bug, disk)] == ["failed"] * 3
        assert ours.problem == "here: no" and disk.problem == "/x/y: No space left on device"
        assert bug.problem == "a bug of fuse, told in the terminal: ZeroDivisionError: by zero"
        assert capsys.readouterr().err.count("Traceback") == 1
        assert problem_of(MemoryError()) == "out of memory; nothing was written"

    def test_stop_ends_one_job_and_no_other(self, signals: None) -> None:
        jobs, began = Jobs(), threading.Event()

        def long(_job: Job) -> None:
            began.set()
            for _ in range(1000):
                time.sleep(0.01)

        first, waits = jobs.submit("long", long), jobs.submit("waits", lambda _job: 1)
        last = jobs.submit("last", lambda _job: 2)
        jobs.close()
        jobs.stop(waits)

        def stop() -> None:
            began.wait(10)
            jobs.stop(first)

        thread = threading.Thread(target=stop)
        thread.start()
        jobs.run()
        thread.join()
        assert (first.state, first.problem) == ("stopped", "stopped; nothing was written")
        assert (waits.state, waits.problem) == ("stopped", "stopped before it began")
        assert (last.state, last.result) == ("done", 2)
        jobs.stop(last)
        assert last.state == "done"

    def test_a_stopped_merge_leaves_nothing(
        self, studio: Studio, signals: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        studio.start(["hue"], None)
        begun = threading.Event()

        def slow(job: Job, count: int) -> None:
            begun.set()
            time.sleep(2)

        monkeypatch.setattr(Job, "advance", slow)
        job = studio.merge("out")
        thread = threading.Thread(target=lambda: (begun.wait(60), studio.jobs.stop(job)))
        thread.start()
        run(studio)
        thread.join()
        assert (job.state, job.problem) == ("stopped", "stopped; nothing was written")
        assert not (studio.here / "out").exists() and not (studio.here / ".out.partial").exists()


def test_without_nicegui_a_sentence_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['nicegui'] = None\n")
    ran = fuse("studio", env={"PYTHONPATH": f"{tmp_path}:{ZOO.parent.parent}"})
    told = "fuse: fuse studio shows its page with nicegui, which is not installed (pip install 'fuse-mllm[studio]')\n"
    assert (ran.code, ran.out, ran.err) == (4, "", told)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("nowhere",), "'nowhere' does not exist (a folder or a hub id org/name)"),
        (("--base", "x"), "--base is the base of members (name their folders too)"),
        (("x.yaml",), "x.yaml: there is no such file"),
        (("--host", "256.0.0.1", "--port", "0"), "port 0 of 256.0.0.1 cannot be had"),
    ],
)
def test_what_cannot_begin(given: tuple[str, ...], told: str, tmp_path: Path) -> None:
    ran = fuse("studio", *given, cwd=tmp_path)
    assert told in ran.err and ran.code in {2, 4} and ran.out == ""
    assert list(tmp_path.iterdir()) == []
