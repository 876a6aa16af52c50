"""Programmatic dependent launch (CUDA programming guide; compute capability 9.0): a kernel is launched while
the one before it on the stream still computes, so that the time which a launch takes is hidden.

    before   ─ programs ─┤      ├ their ends
    this                 └ launched ─ waits ─┤ programs ─┤

The rule: every program of a kernel that is launched so waits before it touches memory, whether it has work
or not. Then nothing is read or overwritten too early: waiting ends when the kernel before has completed and
its stores are visible; that one has waited likewise, so all before it are complete. What is launched in the
ordinary way (torch's kernels, cuBLAS, copies, events) begins when all before it is complete, as ever. None
waits for a place that another holds: a kernel is launched when all programs of the one before have begun.
"""

import triton
import triton.language as tl
from triton.language.extra import cuda


@triton.jit
def wait(PDL: tl.constexpr):
    """First of all, if the kernel is launched so: `launch_pdl`. Then the next one may be launched."""
    if PDL:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()
