"""Whatever a config file says, reading it gives a consistent model or an error that names the field."""

from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.files import Tree, read_tree
from moesim.model import from_hf
from moesim.model.config_fields import ALIASES
from moesim.model.families import FAMILIES
from moesim.model.load import BUNDLED
from moesim.model.parameters import active_parameters, total_parameters

EXTRA = (
    "layer_types",
    "mlp_only_layers",
    "moe_layer_freq",
    "mlp_layer_types",
    "use_sliding_window",
    "text_config",
)
EXTRA += (
    "model_type",
    "decoder_sparse_step",
    "tie_word_embeddings",
    "attention_bias",
    "attn_config",
    "moesim",
)
KEYS = sorted({key for keys in ALIASES.values() for key in keys} | set(EXTRA))
FILES = [tree.data for tree in map(read_tree, sorted(BUNDLED.glob("*.json"))) if "same_as" not in tree.data]

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 300)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "x", *FAMILIES]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from(FILES), st.dictionaries(st.sampled_from(KEYS), junk, max_size=3), st.data())
def test_a_damaged_config_never_breaks_the_reader(good, changes, data):
    damaged = good | changes
    for key in data.draw(st.lists(st.sampled_from(sorted(good)), max_size=2)):
        damaged.pop(key, None)
    try:
        model = from_hf(Tree(damaged, source="config.json"))
    except InputError as error:
        told = [problem.message for problem in error.problems]
        model = None
    if model is None:
        assert told
        assert all(told)
    else:
        assert 0 < active_parameters(model) <= total_parameters(model)
