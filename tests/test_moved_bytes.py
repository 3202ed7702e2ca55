"""Bytes of the kernels of a compiled program."""

import pytest

from benchmarks.accelerators.moved import body_of_loop, read_kernels, summarise

TEXT = """HloModule jit_step

%fused_slice (param_0: bf16[8,128], param_1: f32[128]) -> f32[4,128] {
  %param_0 = bf16[8,128]{1,0} parameter(0)
  %convert = f32[8,128]{1,0} convert(%param_0)
  %slice = f32[4,128]{1,0} slice(%convert), slice={[0:4], [0:128]}
  %param_1 = f32[128]{0} parameter(1)
  %broadcast = f32[4,128]{1,0} broadcast(%param_1), dimensions={1}
  ROOT %add = f32[4,128]{1,0} add(%slice, %broadcast)
}

%fused_slice.1 (param_0.1: bf16[8,128], param_1.1: f32[128]) -> f32[4,128] {
  %param_0.1 = bf16[8,128]{1,0} parameter(0)
  %convert.1 = f32[8,128]{1,0} convert(%param_0.1)
  %slice.1 = f32[4,128]{1,0} slice(%convert.1), slice={[0:4], [0:128]}
  %param_1.1 = f32[128]{0} parameter(1)
  %broadcast.1 = f32[4,128]{1,0} broadcast(%param_1.1), dimensions={1}
  ROOT %add.1 = f32[4,128]{1,0} add(%slice.1, %broadcast.1)
}

ENTRY %main (x.1: bf16[8,128], b.1: f32[128]) -> (f32[4,128], f32[4,128]) {
  %x.1 = bf16[8,128]{1,0} parameter(0)
  %b.1 = f32[128]{0} parameter(1)
  %first = f32[4,128]{1,0} fusion(%x.1, %b.1), kind=kLoop, calls=%fused_slice, \
metadata={op_name="jit(step)/UNet/norm_in/jit(_forward)/add"}
  %second = f32[4,128]{1,0} fusion(%x.1, %b.1), kind=kLoop, calls=%fused_slice.1, \
metadata={op_name="jit(step)/UNet/up_1/feed_forward/add"}
  %gemm = (f32[4,4]{1,0}, s8[4096]{0}) custom-call(%first, %second), \
custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/dot_general"}
  %get-tuple-element.1 = f32[4,4]{1,0} get-tuple-element(%gemm), index=0
  ROOT %tuple = (f32[4,128]{1,0}, f32[4,4]{1,0}) tuple(%first, %get-tuple-element.1)
}
"""


def test_kernels_move_operands_slices_and_results_but_no_workspace():
    first, second, product = read_kernels(TEXT)
    half, bias, result = 4 * 128 * 2, 128 * 4, 4 * 128 * 4
    assert (first.read, first.written) == (half + bias, result)
    assert first.moved == second.moved and first.body == second.body
    assert (product.read, product.written) == (2 * result, 4 * 4 * 4)


def test_a_program_is_summed_by_parts():
    found = summarise(read_kernels(TEXT))
    assert (found["kernels"], found["different"]) == (3, 2)
    counts = {part: count for part, (_, count) in found["parts"].items()}
    assert counts == {"group norms": 1, "feed-forward": 1, "optimiser and others": 1}


def test_what_devices_send_is_summed_by_collective():
    """Once where it begins and ends apart, and of operands and results the larger."""
    text = """
ENTRY %main (x: bf16[8,64]) -> bf16[4,64] {
  %x = bf16[8,64]{1,0} parameter(0)
  %all-gather-start.1 = (bf16[8,64]{1,0}, bf16[16,64]{1,0}) all-gather-start(%x)
  %all-gather-done.1 = bf16[16,64]{1,0} all-gather-done(%all-gather-start.1)
  %all-reduce-start = ((bf16[8,64]{1,0}), bf16[8,64]{1,0}) all-reduce-start(%x)
  %all-reduce-done = bf16[8,64]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %reduce-scatter.2 = bf16[4,64]{1,0} reduce-scatter(%all-reduce-done)
}
"""
    found = read_kernels(text)
    sent = [kernel.sent for kernel in found if kernel.sent]
    sizes = {"all-gather": 2048, "all-reduce": 1024, "reduce-scatter": 1024}
    assert sent == list(sizes.items())
    assert summarise(found)["sent"] == {name: (0.0, 1) for name in sizes}
    assert "sent" not in summarise(read_kernels(TEXT))


def test_the_body_of_the_longest_loop_is_a_program():
    """As of a sampler, whose step is inside of it."""
    text = TEXT.replace("ENTRY %main", "%region_1.2")
    text += """
%short (x.2: f32[4]) -> f32[4] {
  %x.2 = f32[4]{0} parameter(0)
  ROOT %copy = f32[4]{0} copy(%x.2)
}

ENTRY %main (x.3: bf16[8,128]) -> f32[4] {
  %x.3 = bf16[8,128]{1,0} parameter(0)
  %once = f32[4]{0} while(%x.3), condition=%less, body=%short
  ROOT %steps = f32[4]{0} while(%once), condition=%less, body=%region_1.2
}
"""
    assert read_kernels(body_of_loop(text)) == read_kernels(TEXT)
    assert [kernel.name for kernel in read_kernels(text)] == ["once", "steps"]
    with pytest.raises(ValueError, match="no loop"):
        body_of_loop(TEXT)
