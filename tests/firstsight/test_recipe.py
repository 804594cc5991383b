"""Recipes: defaults, overrides, and one clear line for each mistake."""

from pathlib import Path

import pytest
import yaml

from firstsight.errors import ModelError, RecipeError
from firstsight.recipe import Recipe, check_training, load_recipe


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_defaults_are_the_reference_pair(write):
    recipe = load_recipe(write("{}"))
    assert (recipe.teacher.model, recipe.teacher.quantization) == ("Qwen/Qwen2-VL-7B-Instruct", "int8")
    assert (recipe.loss.temperature, recipe.loss.alpha, recipe.cache.top_k) == (1.0, 0.7, 64)
    assert recipe.cache.temperatures == (1.0, 1.5, 2.0, 4.0)


def test_overrides_and_relative_paths(write, tmp_path):
    path = write("loss: {alpha: 0.5}\ntraining: {learning_rate: 1e-5, output_dir: runs/a}")
    recipe = load_recipe(path, ["loss.alpha=0.25", "training.seed=3", "cache.path=c.zarr", "teacher.max_pixels=12544"])
    assert recipe.loss.alpha == 0.25
    assert recipe.training == {"learning_rate": 1e-5, "output_dir": "runs/a", "seed": 3}
    assert recipe.teacher.max_pixels == 12544
    assert recipe.cache_location == str(tmp_path / "c.zarr")
    assert recipe.output_dir == tmp_path / "runs/a"
    assert recipe.source("train").files == (tmp_path / "data/train.jsonl",)


@pytest.mark.parametrize(
    ("loss", "beta"),
    [
        ("{}", None),
        ("{divergence: reverse_kl}", None),
        ("{divergence: tv, beta: null}", None),
        ("{divergence: skewed_kl}", 0.1),
        ("{divergence: js}", 0.5),
        ("{divergence: js, beta: null}", 0.5),
        ("{divergence: js, beta: 0.1}", 0.1),
        ("{beta: 0.9, divergence: skewed_kl}", 0.9),
    ],
)
def test_beta_is_the_one_that_is_used(write, loss, beta):
    recipe = load_recipe(write(f"loss: {loss}"))
    assert recipe.loss.beta == beta
    assert load_recipe(write(yaml.safe_dump(recipe.dump()))).loss == recipe.loss


def test_urls_stay_urls(write):
    assert load_recipe(write("cache: {path: s3://bucket/cache}")).cache_location == "s3://bucket/cache"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("loss: {alpa: 0.5}", [], r"loss\.alpa: no such key; did you mean 'alpha'\?"),
        ("los: {alpha: 0.5}", [], r"los: no such key; did you mean 'loss'\?"),
        ("{}", ["loss.alpha=1.7"], r"loss\.alpha: input should be less than or equal to 1, got 1\.7"),
        ("{}", ["loss.divergence=kl"], r"loss\.divergence: input should be 'forward_kl', 'reverse_kl', .* got 'kl'"),
        (
            "{}",
            ["loss.beta=0.3"],
            r"loss\.beta: forward_kl has no beta; remove the key, or choose .* skewed_kl, js, got 0\.3",
        ),
        ("loss: {divergence: tv, beta: 0.3}", [], r"loss\.beta: tv has no beta"),
        ("loss: {beta: 0.3, divergence: reverse_kl}", [], r"loss\.beta: reverse_kl has no beta"),
        ("loss: {divergence: js, beta: 0}", [], r"loss\.beta: must lie between 0 and 1, both excluded .*, got 0"),
        ("loss: {divergence: skewed_kl, beta: 1}", [], r"loss\.beta: must lie between 0 and 1, both excluded"),
        ("loss: {divergence: js, beta: .nan}", [], r"loss\.beta: input should be a finite number"),
        ("loss: {divergence: js, beta: half}", [], r"loss\.beta: input should be a valid number.*, got 'half'"),
        ("{}", ["loss.temperature=0"], r"loss\.temperature: input should be greater than 0, got 0"),
        ("{}", ["loss.temperature=.nan"], r"loss\.temperature: input should be a finite number"),
        ("{}", ["loss.temperature=5"], r"loss\.temperature: must lie within cache\.temperatures, 1 to 4, got 5"),
        ("{}", ["cache.top_k=0"], r"cache\.top_k: input should be greater than or equal to 2, got 0"),
        ("{}", ["cache.top_k=1"], r"cache\.top_k: input should be greater than or equal to 2, got 1"),
        ("{}", ["cache.temperatures=[2, 1]"], r"cache\.temperatures: must be in ascending order"),
        ("{}", ["cache.temperatures=[2, 4]"], r"cache\.temperatures: must begin at 1 or below"),
        ("{}", ["alpha=1"], r"--set alpha=1: expected section\.key=value"),
        ("{}", ["loss.alpha"], r"--set loss\.alpha: expected section\.key=value"),
        ("{}", ["loss.alpha=[1"], r"--set .*is not a YAML value"),
        ("loss: 3", ["loss.alpha=1"], r"'loss' is not a section"),
        ("- 1", [], r"expected sections such as `teacher:`, got list"),
        ("loss: [", [], r"not YAML"),
        ("loss: {alpha: 0.1, alpha: 0.2}", [], r"key 'alpha' is given twice"),
        (
            "teacher: {quantization: int4}",
            [],
            r"teacher\.quantization: input should be 'int8', 'nf4' or 'none', got 'int4'",
        ),
    ],
)
def test_each_mistake_is_one_line(write, text, overrides, message):
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(write(text), overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "count"),
    [("4096", 4096), ("512 MiB", 512 * 2**20), ("2GB", 2 * 10**9), ("1.5 kib", 1536), ("'300'", 300), ("7 B", 7)],
)
def test_the_memory_of_a_cache_is_a_size(write, text, count):
    recipe = load_recipe(write(f"cache: {{memory: {text}}}"))
    assert recipe.cache.memory == count
    assert Recipe.model_validate(recipe.dump()).cache.memory == count
    assert load_recipe(write("{}")).cache.memory == 256 * 2**20


@pytest.mark.parametrize("text", ["lots", "5 apples", "-1", "0", "1.5", "1 MiB 2"])
def test_what_is_no_size_is_refused(write, text):
    with pytest.raises(RecipeError, match=r"cache\.memory: "):
        load_recipe(write("{}"), [f"cache.memory={text}"])


def test_scratch_is_relative_to_the_recipe(write, tmp_path):
    path = write("{}")
    assert load_recipe(path).cache_scratch is None
    assert load_recipe(path, ["cache.scratch=fast"]).cache_scratch == tmp_path / "fast"
    assert load_recipe(path, ["cache.scratch=/fast"]).cache_scratch == Path("/fast")
    assert load_recipe(path, ["cache.scratch=~/fast"]).cache_scratch == Path.home() / "fast"


def test_missing_recipe(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.yaml not found"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_training_names_are_checked():
    with pytest.raises(
        RecipeError, match=r"training\.learning_rat: no such key in TrainingArguments; did you mean 'learning_rate'"
    ):
        check_training({"learning_rat": 1.0})
    check_training({"learning_rate": 1.0, "optim": "adamw_torch"})


def test_models_are_directories_or_hub_ids(tmp_path):
    (tmp_path / "models" / "a").mkdir(parents=True)
    recipe = Recipe.model_validate({"teacher": {"model": "models/a"}, "directory": tmp_path})
    assert recipe.model_source(recipe.teacher) == str(tmp_path / "models" / "a")
    assert recipe.model_source(recipe.student) == "Qwen/Qwen2-VL-2B-Instruct"
    for name in ("./b", "/nowhere/b", "x/y/z"):
        lost = Recipe.model_validate({"student": {"model": name}, "directory": tmp_path})
        with pytest.raises(ModelError, match=r"student\.model: directory .* not found"):
            lost.model_source(lost.student)


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("name", ["models/a", "./models/a", "../{here}/models/a", "{absolute}"])
def test_a_directory_has_no_revision(tmp_path, role, name):
    (tmp_path / "models" / "a").mkdir(parents=True)
    name = name.format(here=tmp_path.name, absolute=tmp_path / "models" / "a")
    recipe = Recipe.model_validate({role: {"model": name, "revision": "v9"}, "directory": tmp_path})
    with pytest.raises(
        ModelError, match=rf"^{role}\.revision: .*/models/a is a directory, which has no revision 'v9'; remov"
    ):
        recipe.model_source(getattr(recipe, role))
    of_hub = Recipe.model_validate({role: {"model": "models/b", "revision": "v9"}, "directory": tmp_path})
    assert of_hub.model_source(getattr(of_hub, role)) == "models/b"


def test_a_cache_whose_directory_was_given_a_revision_can_still_be_compared(tmp_path):
    from firstsight.stated import stated

    (tmp_path / "models" / "a").mkdir(parents=True)
    spec = {"teacher": {"model": "a", "revision": "v9", "system_prompt": None}}
    for teacher in ({"model": "models/a"}, {"model": "models/a", "revision": "v9"}):
        recipe = Recipe.model_validate({"teacher": teacher, "directory": tmp_path})
        assert [name for name, cached, own in stated(recipe, spec) if cached != own] == []


def test_a_hub_id_is_no_folder_of_the_working_directory(tmp_path, monkeypatch):
    from firstsight.identity import model_name
    from firstsight.models import loading

    (tmp_path / "Qwen" / "Qwen2-VL-2B-Instruct").mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(loading, "_download", lambda source, *_: asked.append(source) or tmp_path)
    recipe = Recipe.model_validate({"directory": tmp_path / "recipes"})
    assert model_name(recipe, recipe.student) == "Qwen/Qwen2-VL-2B-Instruct"
    with pytest.raises(ModelError, match=r"has no config\.json"):
        loading.resolve_directory(recipe, recipe.student)
    assert asked == ["Qwen/Qwen2-VL-2B-Instruct"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("validation: 0%", r"data\.validation: must be a file or a share above 0% and below 100%, such as 5%"),
        ("validation: 100%", r"a share above 0%"),
        ("validation: 0.05", r"data\.validation: must be a file, none, or a share .* with its unit, such as 5%"),
        ("validation: 0.125", r"such as 12\.5%"),
        ("validation: 5", r"a share of the training rows with its unit, such as 5%"),
        ("validation: five%", r"a share above 0%"),
        ("train: []", r"data\.train"),
        ("columns: {anser: label}", r"has no column 'anser'; did you mean 'answer'\?"),
        ("columns: {answer: x, question: x}", r"must take each column of ours from another one"),
        ("format: lava", r"data\.format: "),
    ],
)
def test_data_that_cannot_be_meant(write, data, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(f"data: {{{data}}}"))


def test_home_is_expanded_in_every_path(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    recipe = load_recipe(
        write(
            "data: {root: ~/d, train: [~/a.jsonl, b.jsonl], validation: 5%, image_root: ~/i}\n"
            "cache: {path: ~/c.zarr, scratch: ~/s}\ntraining: {output_dir: ~/r}"
        )
    )
    train, validation = recipe.sources()
    assert train.files == validation.files == (Path("/home/me/a.jsonl"), Path("/home/me/d/b.jsonl"))
    assert (train.share, train.part, validation.part) == (0.05, "train", "validation")
    assert train.root == Path("/home/me/i")
    assert (recipe.cache_location, recipe.cache_scratch) == ("/home/me/c.zarr", Path("/home/me/s"))
    assert recipe.output_dir == Path("/home/me/r")
    assert load_recipe(write("data: {root: /}")).data_root == Path("/")


@pytest.mark.parametrize("key", ["top_k: 64", "temperatures: [1, 2]"])
def test_what_does_nothing_beside_exact_targets_is_refused_by_name(write, key):
    name = key.partition(":")[0]
    with pytest.raises(
        RecipeError, match=rf"cache\.{name}: has no effect with cache.targets: exact.*; remove the key, got"
    ):
        load_recipe(write(f"cache: {{targets: exact, {key}}}"))
    with pytest.raises(RecipeError, match=rf"cache\.{name}: has no effect with"):
        load_recipe(write("cache: {targets: exact}"), [f"cache.{key.replace(': ', '=')}"])


def test_exact_targets_train_at_any_temperature_and_are_dumped_as_they_are_read(write):
    recipe = load_recipe(write("cache: {targets: exact}\nloss: {temperature: 17}"))
    dumped = recipe.dump()
    assert "top_k" not in dumped["cache"]
    assert load_recipe(write(yaml.safe_dump(dumped))).dump() == dumped
    with pytest.raises(RecipeError, match=r"cache\.targets: input should be 'top_k' or 'exact', got 'exakt'"):
        load_recipe(write("cache: {targets: exakt}"))
