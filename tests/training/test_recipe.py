"""pytest tests/training/test_recipe.py: what a recipe accepts, and that it survives being written down."""

import json

import pytest

import vismoe.recipes
from vismoe.training import Recipe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("evaluate_every", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("clip_norm", -1.0),
        ("power", 0.0),
        ("end_learning_rate", 1.0),
        ("momentum", 1.0),
        ("weight_decay", -0.1),
        ("warmup_steps", -1),
        ("workers", -1),
        ("scale", 1.0),
        ("translate", 1.5),
        ("label_smoothing", 1.0),
        ("degrees", float("nan")),
        ("degrees", 181.0),
        ("shear", 90.0),
        ("seed", -1),
        ("split_seed", 2**32),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    """A recipe that cannot be followed is never made; the message names the field and the value given."""
    with pytest.raises(ValueError, match=f"^{field}={value}: (it must|accepted are) "):
        Recipe(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"momentum": 0.5}, "momentum=0.5: it needs sgd or momentum, not adamw"),
        ({"momentum": 0.0, "optimizer": "sgd"}, "for plain SGD use optimizer=momentum"),
        ({"power": 2.0}, "power=2.0: it needs warmup-polynomial, not cosine"),
        ({"end_learning_rate": 1e-5, "schedule": "rsqrt"}, "end_learning_rate=1e-05: it needs cosine or linear"),
        ({"timescale": 5}, "timescale=5: it needs rsqrt, not cosine"),
        ({"average_warmup": True}, "average_warmup: it needs an EMA"),
        ({"cooldown_steps": 960, "schedule": "constant"}, "warmup_steps=50 and cooldown_steps=960 are together"),
        ({"weight_decay": (("head", -1.0),)}, "weight_decay=-1.0: it must not be negative"),
        ({"weight_decay": (("he(ad", 1.0),)}, r"'he\(ad' is not a regular expression: missing \)"),
        ({"frozen": "*"}, r"'\*' is not a regular expression"),
        ({"num_experts": 4, "model_options": (("num_experts", 8),)}, "model_options: num_experts is given twice"),
    ],
)
def test_what_would_do_nothing_is_refused(fields, message):
    """A field that another one makes idle, or that contradicts it, is an error that says so."""
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def test_a_recipe_comes_back_as_it_was_written():
    """to_json and from_json are inverse for fields of every kind."""
    recipe = Recipe(name="x", num_experts=4, balance="loss", learning_rate=3e-4, data="somewhere", split_seed=9)
    assert Recipe.from_json(recipe.to_json()) == recipe
    pairs = Recipe(weight_decay=(("head", 3.0), (".*", 0.03)), model_options=(("stem", "conv"), ("group_size", 8)))
    assert Recipe.from_json(json.loads(json.dumps(pairs.to_json()))) == pairs


def test_a_field_no_recipe_has_is_an_error():
    """A misspelt or newer field is not silently dropped."""
    with pytest.raises(ValueError, match="a recipe has no field step, stride"):
        Recipe.from_json({"step": 3, "stride": 1})


def test_the_named_recipes_are_twins():
    """digits and digits_dense differ in nothing but name and model."""
    sparse, dense = (vismoe.recipes.RECIPES[name]().to_json() for name in ("digits", "digits_dense"))
    assert {field for field in sparse if sparse[field] != dense[field]} == {"name", "model"}


def test_an_unknown_recipe_is_an_error_with_near_names():
    """A slip is told what was probably meant, a stranger what there is."""
    with pytest.raises(ValueError, match="unknown recipe 'digit'; did you mean digits"):
        vismoe.recipes.find_recipe("digit")
    with pytest.raises(ValueError, match="unknown recipe 'qqq'; accepted are digits, digits_dense"):
        vismoe.recipes.find_recipe("qqq")
