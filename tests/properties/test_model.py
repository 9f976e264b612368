"""Laws of operations and counts, over drawn shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.model import FORMATS, Dtypes, bundled_names, load
from moesim.model.attention import GatedDeltaNet, GroupedQueryAttention, LatentAttention
from moesim.model.layer_ops import attention_ops, dense_ffn_ops, expert_op
from moesim.model.ops import AttentionDecode, AttentionPrefill, Gemm, Segment, Sharding, causal_pairs
from moesim.model.spec import DenseFfn, LayerSpec, MoeSpec

tokens = st.integers(1, 300)
windows = st.one_of(st.none(), st.integers(1, 200))
degrees = st.sampled_from([1, 2, 4, 8])


@st.composite
def grouped(draw):
    kv_heads = draw(st.sampled_from([8, 16]))
    heads = kv_heads * draw(st.integers(1, 4))
    width = draw(st.sampled_from([16, 64, 128]))
    return GroupedQueryAttention(
        heads,
        kv_heads,
        width,
        draw(st.sampled_from([width, 32])),
        draw(windows),
        output_gate=draw(st.booleans()),
    )


@st.composite
def latent(draw):
    rank = draw(st.one_of(st.none(), st.sampled_from([96, 256])))
    return LatentAttention(8 * draw(st.integers(1, 8)), rank, 64, 32, 16, draw(st.sampled_from([32, 48])))


linear = st.builds(
    GatedDeltaNet,
    st.just(8),
    st.sampled_from([8, 16]),
    st.sampled_from([16, 64]),
    st.sampled_from([16, 64]),
    st.just(4),
)
mixers = st.one_of(grouped(), latent(), linear)


def gemm_weights(ops):
    return sum(op.n * op.k * op.count for op in ops if isinstance(op, Gemm))


@given(tokens, tokens, windows)
def test_pairs_of_a_prompt_are_those_of_its_chunks(first, second, window):
    whole = causal_pairs(first + second, 0, window)
    assert whole == causal_pairs(first, 0, window) + causal_pairs(second, first, window)


@given(tokens, st.integers(0, 500), windows)
def test_pairs_by_adding_up(query, context, window):
    assert causal_pairs(query, context, window) == sum(
        min(context + i, window or context + i) for i in range(1, query + 1)
    )


@given(mixers, tokens, st.integers(0, 5000))
def test_prefilling_in_chunks_does_the_same_projections(mixer, first, second):
    layer = LayerSpec(mixer, None, 0)
    whole = attention_ops(layer, 256, [Segment.prefill(1, first + second)])
    chunks = [Segment.prefill(1, first), Segment.prefill(1, second, first)]
    parts = attention_ops(layer, 256, chunks)
    for name in {op.name for op in whole if isinstance(op, Gemm)} - {"kv_expand"}:
        alone = sum(op.flops for op in whole if op.name == name)
        assert sum(op.flops for op in parts if op.name == name) == pytest.approx(alone)


@given(mixers, st.integers(1, 64), st.integers(0, 4000))
def test_work_and_traffic_are_linear_in_sequences(mixer, sequences, context):
    layer = LayerSpec(mixer, None, 0)
    one = attention_ops(layer, 256, [Segment.decode(1, context)])
    many = attention_ops(layer, 256, [Segment.decode(sequences, context)])
    for a, b in zip(one, many, strict=True):
        assert b.flops == pytest.approx(sequences * a.flops)
        assert b.moved_bytes <= sequences * a.moved_bytes * (1 + 1e-12)
        assert b.moved_bytes >= a.moved_bytes


@given(mixers, degrees, st.integers(1, 64))
def test_tensor_parallel_ranks_do_the_whole_work_together(mixer, tp, rows):
    """Sharded projections divide exactly; compressions of latent attention are repeated on each rank."""
    layer = LayerSpec(mixer, None, 0)
    segment = [Segment.decode(rows, 100)]
    whole = {op.name: op for op in attention_ops(layer, 256, segment)}
    for op in attention_ops(layer, 256, segment, Sharding(tp=tp)):
        if not isinstance(op, Gemm | AttentionDecode):
            continue
        replicated = op.name in {"qkv_compress", "kv_compress"}
        assert op.flops * (1 if replicated else tp) == pytest.approx(whole[op.name].flops)


@given(mixers, degrees)
def test_projections_hold_the_counted_parameters(mixer, tp):
    """The matrices that decode multiplies by are the counted parameters, but for norms, biases and taps."""
    ops = mixer.ops(256, [Segment.decode(4, 10)], Sharding(tp=tp))
    count = mixer.parameters(256, tp)
    assert 0 <= count - gemm_weights(ops) <= 0.05 * count


@given(grouped(), tokens, st.integers(0, 3000))
def test_a_chunk_of_one_token_is_a_decode(mixer, sequences, context):
    layer = LayerSpec(mixer, None, 0)
    decode, chunk = (
        next(
            op
            for op in attention_ops(layer, 256, [segment])
            if isinstance(op, AttentionDecode | AttentionPrefill)
        )
        for segment in (Segment.decode(sequences, context), Segment.prefill(sequences, 1, context))
    )
    assert decode.flops == pytest.approx(chunk.flops)
    assert decode.moved_bytes == pytest.approx(chunk.moved_bytes)


@given(grouped(), st.integers(0, 3000))
def test_a_window_never_adds_work(mixer, context):
    open_ended = GroupedQueryAttention(
        mixer.num_heads, mixer.num_kv_heads, mixer.head_dim, mixer.v_head_dim, output_gate=mixer.output_gate
    )
    limited, whole = (
        sum(op.flops for op in m.ops(256, [Segment.prefill(2, 50, context)], Sharding()))
        for m in (mixer, open_ended)
    )
    assert limited <= whole


@given(st.lists(st.integers(0, 50), min_size=1, max_size=16), st.booleans(), st.sampled_from(sorted(FORMATS)))
def test_experts_work_by_tokens_and_read_by_touched(counts, gated, name):
    op = expert_op(MoeSpec(64, 4, 96, gated=gated), 128, len(counts), Dtypes(experts=name))
    assert op.flops(counts) == pytest.approx(sum(counts) * 2 * (3 if gated else 2) * 96 * 128)
    touched = sum(c > 0 for c in counts)
    assert op.moved_bytes(counts) >= touched * op.weight_bytes_per_expert
    emptied = op.moved_bytes(np.zeros(len(counts)))
    assert emptied == 0


@given(st.integers(1, 64), degrees, st.sampled_from([256, 1024]), st.booleans())
def test_dense_ranks_do_the_whole_work_together(rows, tp, width, gated):
    ffn = DenseFfn(width, gated)
    one, split = dense_ffn_ops(ffn, 64, rows), dense_ffn_ops(ffn, 64, rows, Sharding(tp=tp))
    assert tp * sum(op.flops for op in split) == pytest.approx(sum(op.flops for op in one))
    assert gemm_weights(one) == ffn.parameters(64)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), mixers)
def test_arrays_over_ranks_give_what_each_number_gives(sequences, mixer):
    layer = LayerSpec(mixer, None, 0)
    together = attention_ops(layer, 256, [Segment.decode(np.array(sequences, dtype=float), 64.0)])
    for index, number in enumerate(sequences):
        for a, b in zip(
            together, attention_ops(layer, 256, [Segment.decode(float(number), 64.0)]), strict=True
        ):
            assert np.broadcast_to(a.flops, len(sequences))[index] == pytest.approx(b.flops)
            assert np.broadcast_to(a.moved_bytes, len(sequences))[index] == pytest.approx(b.moved_bytes)


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_projections_hold_the_counted_parameters(name):
    model = load(name)
    for layer in model.layer_kinds():
        segments = (
            [Segment.decode(1, 1), Segment.prefill(1, 1)] if layer.cross_attention else [Segment.decode(1, 1)]
        )
        if layer.encoder:
            segments = [Segment.prefill(1, 1)]
        weights = gemm_weights(attention_ops(layer, model.hidden_size, segments))
        assert weights == pytest.approx(layer.mixer_parameters(model.hidden_size), rel=0.01)
